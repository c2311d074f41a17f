"""Virtual environments of the other simulators, made once: their requirements conflict with each other's and ours."""

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(os.environ.get("BENCHMARK_ENVIRONMENTS", Path(__file__).resolve().parent / ".environments"))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REQUIREMENTS = {"flower": "flwr[simulation]==1.41.*", "pfl": "pfl==0.6.*", "fedlab": "fedlab==1.3.*"}
MODULES = {"flower": "flwr"}  # where a peer's name differs


def is_at_hand(peer: str) -> bool:
    """Whether `python_of` has nothing to install."""
    return find_spec(MODULES.get(peer, peer)) is not None or (FOLDER / peer / ".installed").is_file()


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment with our version of torch; a missing one is made, which takes minutes.

    An interpreter that has the peer already needs no other environment.
    """
    if find_spec(MODULES.get(peer, peer)) is not None:
        return sys.executable
    folder = FOLDER / peer
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.is_file():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        torch = f"torch=={version('torch')}"
        if _install(python, torch, "--quiet").returncode:
            _install(python, torch, "--index-url", CPU_INDEX).check_returncode()
        _install(python, REQUIREMENTS[peer], torch, "numpy", "pydantic").check_returncode()
        done.touch()
    return str(python)


def _install(python: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([python, "-m", "pip", "install", "-q", *arguments], stdout=sys.stderr)


if __name__ == "__main__":
    python_of(*sys.argv[1:])
