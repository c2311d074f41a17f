"""Where this copy of the package is: in a checkout (also with `pip install -e .`), or installed from a wheel."""

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1]  # setup.py puts configs/ into the wheel
CONFIGS = (CHECKOUT or PACKAGE) / "configs"
HERE = Path.cwd()  # a run may go into its folder later


def _is_command() -> bool:
    """Whether this process is the command `fedpara`, and not a script of src/."""
    started = Path(sys.argv[0])
    return CHECKOUT is None or started.name == "fedpara" or started.resolve() == PACKAGE / "__main__.py"  # -m fedpara


# what Python runs to train, by the program that runs now; -P: no file of the current folder hides a package
TRAIN = ("-P", "-m", "fedpara", "train") if _is_command() else (str(PACKAGE.parent / "train.py"),)


def root() -> Path:
    """The folder whose `logs/` and `data/` are used: PROJECT_ROOT, else the checkout, else the current folder."""
    return Path(os.path.abspath(os.environ.get("PROJECT_ROOT") or CHECKOUT or Path.cwd()))


def command_of(program: str) -> str:
    """How a user starts a program from here: `fedpara train`, or `python src/train.py` if a script of src/ runs."""
    if _is_command():
        return f"fedpara {program}"
    script = PACKAGE.parent / f"{program}.py"
    return f"python {shlex.quote(str(script.relative_to(HERE) if HERE == CHECKOUT else script))}"


def install_line(extra: str) -> str:
    """How a user installs the packages of an extra."""
    if CHECKOUT:
        return f"pip install -e '.[{extra}]'"
    try:
        needed = [line.partition(";")[0].strip() for line in requires("fedpara") or [] if f'"{extra}"' in line]
    except PackageNotFoundError:  # the package was copied by hand
        needed = [f"fedpara[{extra}]"]
    return "pip install " + " ".join(f"'{requirement}'" for requirement in needed)
