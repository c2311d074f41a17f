"""The command `fedpara`: one program for each script of src/, for where there is no checkout.

Whatever it is installed from, it uses `logs/` and `data/` of the current folder.
"""

import difflib
import os
import sys
from importlib import import_module

from fedpara import __version__
from fedpara.app.errors import stop

PROGRAMS = {  # the module of each program, and what it does
    "train": ("fedpara.app.cli", "train a federation, or every job of a sweep (-m)"),
    "eval": ("fedpara.app.evaluation", "test the model of a run folder, and export it"),
    "audit": ("fedpara.app.audit", "check a run against its log, and do rounds of it again"),
    "report": ("fedpara.app.report", "make a page, pictures and a CSV from run folders"),
    "status": ("fedpara.app.status", "show the progress of runs, and the time left"),
    "reproduce": ("fedpara.app.reproduce", "run the paper's experiments as a queue"),
    "dashboard": ("fedpara.app.dashboard", "print the W&B workspace, or save it to W&B"),
}
USAGE = """fedpara <program> [arguments]: federated learning with few bytes

{programs}

`fedpara train` alone runs the quickstart; `fedpara <program> --help` lists a program's arguments.
Results are written to logs/ in the current folder; data are read from DATA_DIR, else from data/ in the current folder.
For completion with the Tab key: eval "$(fedpara train -sc install=bash)"
"""


def main() -> None:
    """Start the program that the first argument names; exit with status 2 and one line if there is no such program."""
    given = sys.argv[1:]
    if given[:1] == ["-sc"]:  # the shell asks how to complete a line, see hydra.plugins.completion_plugin
        given = _completing(given)
    if not given or given[0] in ("--help", "-h", "help"):
        programs = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in PROGRAMS.items())
        print(USAGE.format(programs=programs).strip())
    elif given[0] in ("--version", "-V"):
        print(f"fedpara {__version__}")
    elif given[0] in PROGRAMS:
        start(given[0], given[1:])
    else:
        near = difflib.get_close_matches(given[0], PROGRAMS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        stop(f"{given[0]}: must be one of {', '.join(PROGRAMS)}{hint}")


def start(program: str, arguments: list[str]) -> None:
    """Run a program as its script in src/ does, in the current folder."""
    os.environ["PROJECT_ROOT"] = os.environ.get("PROJECT_ROOT") or os.getcwd()
    sys.argv[1:] = arguments
    import_module(PROGRAMS[program][0]).main()


def _completing(query: list[str]) -> list[str]:
    """The arguments that answer a shell's query, which Hydra's script makes of the line's first word alone.

    The line is `fedpara train <what to complete>` in COMP_LINE. Hydra completes it for `train`, if it is told of a line
    without that word; for other programs nothing is printed, and the shell completes names of files.
    """
    command, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    program, space, words = rest.lstrip().partition(" ")
    if not space:
        print(" ".join(name for name in PROGRAMS if name.startswith(program)))
    if not space or program != "train":
        sys.exit(0)
    os.environ["COMP_LINE"] = f"{command} {words}"
    return [program, *query]
