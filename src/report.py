"""Make a page, pictures and a CSV from run folders: `python src/report.py logs/train/multiruns/<sweep>`."""

import math
import sys
from pathlib import Path

from fedpara.report import write_report
from fedpara.runs import find_runs

USAGE = (
    "python src/report.py <folder> [<folder> ...] [target=0.8] [metric=test/acc] [baseline=dense] [output=<folder>] "
    "[title=<text>]"
)
KEYS = {"target", "metric", "baseline", "output", "title"}


def report(arguments: list[str]) -> list[Path]:
    """Write the report of all runs in the given folders; returns the files.

    Raises:
        ValueError: an argument is wrong, or a folder has no runs; the message is one line.
    """
    options = dict(argument.split("=", 1) for argument in arguments if argument.partition("=")[0] in KEYS)
    roots = [Path(argument) for argument in arguments if argument.partition("=")[0] not in KEYS]
    if not roots:
        raise ValueError(f"folder: missing; {USAGE}")
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
    try:
        for path in report(sys.argv[1:]):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
