"""The program `report`: it makes a page, pictures and a CSV from run folders, finished or not."""

import math
import sys
from pathlib import Path

from fedpara.app.errors import show_usage, stop
from fedpara.installation import command_of
from fedpara.report import write_report
from fedpara.runs import find_runs

USAGE = "<folder> [<folder> ...] [target=0.8] [metric=test/acc] [baseline=dense] [output=<folder>] [title=<text>]"
KEYS = {"target", "metric", "baseline", "output", "title"}


def report(arguments: list[str]) -> list[Path]:
    """Write the report of all runs in the given folders; returns the files.

    Raises:
        ValueError: an argument is wrong, or a folder has no runs; the message is one line.
    """
    options = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in KEYS)
    roots = [Path(argument) for argument in arguments if argument.partition("=")[0] not in KEYS]
    if not roots:
        raise ValueError(f"folder: missing; {command_of('report')} {USAGE}")
    output = Path(options.get("output", roots[0] / "report"))
    title = options.get("title", ", ".join(map(str, roots)))
    target, metric, baseline = _target(options), options.get("metric"), options.get("baseline")
    return write_report(find_runs(*roots), output, title, target, metric, baseline)


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
