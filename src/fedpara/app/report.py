"""The program `report`: it makes a page, pictures and a CSV from run folders, finished or not."""

import math
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

from fedpara.app.errors import as_folders, show_usage, stop
from fedpara.app.sweep import LONGEST_NAME, digest
from fedpara.installation import command_of
from fedpara.report import write_report
from fedpara.runs import Run, find_runs

USAGE = (
    "<folder> [<folder> ...] [target=0.8] [metric=test/acc] [baseline=dense] [pool=true] [output=<folder>] "
    "[title=<text>]"
)
KEYS = {"target", "metric", "baseline", "pool", "output", "title"}


def report(arguments: list[str]) -> list[Path]:
    """Write the report of all runs in the given folders; returns the files.

    Raises:
        ValueError: an argument is wrong, or a folder has no runs; the message is one line.
    """
    options = dict(argument.split("=", 1) for argument in arguments if _is_option(argument))
    usage = f"{command_of('report')} {USAGE}"
    roots = as_folders((argument for argument in arguments if not _is_option(argument)), usage)
    if not roots:
        raise ValueError(f"folder: missing; {usage}")
    _refuse_twice(roots)
    runs = find_runs(*roots)
    sweeps = None if _pooled(options) else _sweeps(roots, runs)
    _, *others = dict.fromkeys(sweeps.values()) if sweeps else [""]
    own = "_with_".join(["report", *(Path(name).name for name in others)])  # a sweep keeps the report of itself
    if len(own) > LONGEST_NAME:
        own = f"report_with_{len(others)}_others-{digest(own)}"
    output = Path(options.get("output", roots[0] / own))
    if output.exists() and not output.is_dir():
        raise ValueError(f"output={output}: must be a folder")
    title = options.get("title", ", ".join(map(str, roots)))
    target, metric, baseline = _target(options), options.get("metric"), options.get("baseline")
    return write_report(runs, output, title, target, metric, baseline, sweeps)


def _is_option(argument: str) -> bool:
    """Whether it is a key with a value; a folder may have the name of a key."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and key in KEYS


def _refuse_twice(roots: list[Path]) -> None:
    for one, other in permutations(roots, 2):
        if one.resolve().is_relative_to(other.resolve()):
            same = one.resolve() == other.resolve()
            raise ValueError(f"{one}: given twice" if same else f"{one}: must not be within another folder, {other}")


def _sweeps(roots: list[Path], runs: list[Run]) -> dict[Path, str] | None:
    """The name of each run folder's sweep, in the order of the folders; None if all runs are of one sweep.

    A folder that is given is a sweep; if it is itself a run folder, the one around it is.
    """
    within = [(root, run.folder) for root in roots for run in runs if run.folder.is_relative_to(root)]
    of = {folder: root.resolve().parent if root == folder else root.resolve() for root, folder in within}
    names = Counter(sweep.name for sweep in set(of.values()))
    if len(names) == 1 == names.total():
        return None
    return {folder: sweep.name if names[sweep.name] == 1 else str(sweep) for folder, sweep in of.items()}


def _pooled(options: dict[str, str]) -> bool:
    pool = options.get("pool", "false")
    if pool not in ("true", "false"):
        raise ValueError(f"pool={pool}: must be true or false")
    return pool == "true"


def _target(options: dict[str, str]) -> float | None:
    if "target" not in options:
        return None
    try:
        target = float(options["target"])
    except ValueError:
        target = math.nan
    if not math.isfinite(target):
        raise ValueError(f"target={options['target']}: must be a number")
    return target


def main() -> None:
    """Print the paths of the written files."""
    show_usage(f"{command_of('report')} {USAGE}\n\n{__doc__}")
    try:
        for path in report(sys.argv[1:]):
            print(path)
    except (ValueError, OSError) as error:
        stop(str(error))
