"""What a client keeps, on its own disk: a file for each round it took part in, until the server is past the one before.

The server counts a client's round only when the round is done. It says in every question after which round of the
client's that counted to go on, so that one whose reply was late, or whose server died and goes on from its checkpoint,
never goes on from a training that nobody has counted.
"""

import re
from pathlib import Path

from fedpara.federation import Kept, Layouts
from fedpara.files import UnusableFile
from fedpara.state import join, require_same_names, separate
from fedpara.storage import SUFFIX, read_tensors, write_tensors


class KeptStates:
    """The states that a client has kept in one run, by round.

    Args:
        folder: the client's own; a run's files are in `kept/<run>/`.
        run: the run's name, as the server gives it.
        layouts: of the federation.

    Raises:
        ValueError: the name is none for a folder.
    """

    def __init__(self, folder: Path, run: str, layouts: Layouts) -> None:
        if not re.fullmatch(r"\w[\w.-]*", run):
            raise ValueError(f"run={run!r}: must be letters, digits, points and dashes")
        self.folder = folder / "kept" / run
        self.layout = {"personal": layouts.personal, "memory": layouts.memory}

    def read(self, last: int) -> Kept:
        """What the client kept after a round; before its first one, 0, nothing.

        Raises:
            UnusableFile: it is lost or damaged: to start anew in silence would be another result.
        """
        if not (last and join(self.layout)):
            return Kept()
        path = self._path(last)
        if not path.is_file():
            raise UnusableFile(f"what this client kept after round {last} is lost; put it back from a backup: {path}")
        state, _ = read_tensors(path, join(self.layout))
        require_same_names(join(self.layout), state)
        return Kept(**separate(state, self.layout))

    def write(self, kept: Kept, round_number: int, last: int) -> None:
        """Have what the client keeps after a round on the disk, beside that after `last`; older ones are deleted."""
        if not join(self.layout):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(round_number), join({"personal": kept.personal, "memory": kept.memory}), {})
        needed = {self._path(number) for number in (round_number, last)}
        for path in set(self.folder.glob(f"*{SUFFIX}")) - needed:
            path.unlink()

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{round_number}{SUFFIX}"
