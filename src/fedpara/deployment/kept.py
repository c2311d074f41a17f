"""The states that a client keeps on its own disk: one file for each of its rounds; the last two remain.

The server counts a client's round only when the whole round is done. Every question says which of the client's rounds
counted last, and the client continues from its state after that round. So a client whose reply was late, or whose
server died and resumed from a checkpoint, never continues from a training that did not count.
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
        ValueError: the name cannot be a folder's.
    """

    def __init__(self, folder: Path, run: str, layouts: Layouts) -> None:
        if not re.fullmatch(r"\w[\w.-]*", run):
            raise ValueError(f"run={run!r}: must be letters, digits, points and dashes")
        self.folder = folder / "kept" / run
        self.layout = {"personal": layouts.personal, "memory": layouts.memory, "received": layouts.received}

    def read(self, last: int) -> Kept:
        """The client's states after round `last`; empty for 0, before its first round.

        Raises:
            UnusableFile: the file is lost or damaged. Starting anew silently would give another result.
        """
        if not (last and join(self.layout)):
            return Kept()
        path = self._path(last)
        if not path.is_file():
            raise UnusableFile(f"the state of this client after round {last} is lost; restore it from a backup: {path}")
        state, _ = read_tensors(path, join(self.layout))
        require_same_names(join(self.layout), state)
        return Kept(**separate(state, self.layout))

    def write(self, kept: Kept, round_number: int, last: int) -> None:
        """Write the client's states after a round, beside those after `last`; delete the older ones."""
        if not join(self.layout):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        states = {"personal": kept.personal, "memory": kept.memory, "received": kept.received}
        write_tensors(self._path(round_number), join(states), {})
        needed = {self._path(number) for number in (round_number, last)}
        for path in set(self.folder.glob(f"*{SUFFIX}")) - needed:
            path.unlink()

    def _path(self, round_number: int) -> Path:
        return self.folder / f"{round_number}{SUFFIX}"
