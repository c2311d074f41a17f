"""The states that simulated clients keep: in memory, or in files with the most recent ones in memory."""

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Literal, get_args

from fedpara.federation.client import Kept, Layouts
from fedpara.record import GIGABYTE
from fedpara.state import State
from fedpara.storage import ClientStates

Kind = Literal["personal", "memories"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Versions = Mapping[str, Mapping[int, int]]  # by kind, of each client's files


class ClientStore:
    """Each client's personal part and memory.

    Args:
        layouts: layouts of the federation.
        folder: folder of the files `<kind>/<client>-<version>.safetensors`; None: all states stay in memory.
        memory_gb: gigabytes (10^9 bytes) of states per kind that stay in memory besides their files; the others are
            read when they are needed.

    Attributes:
        personal: each client's personal part of the model; empty if nothing is personal.
        memories: each client's memory; empty if the algorithm needs none.
    """

    def __init__(self, layouts: Layouts, folder: Path | None = None, memory_gb: float = 1.0) -> None:
        self.folder, self._memory_bytes = folder, int(memory_gb * GIGABYTE)
        self._layouts = {"personal": layouts.personal, "memories": layouts.memory}
        self.personal, self.memories = self._states("personal", {}), self._states("memories", {})

    @property
    def is_used(self) -> bool:
        """Whether clients keep any state."""
        return any(self._layouts.values())

    def read(self, client: int) -> Kept:
        """The states of a client; empty before its first round that counted."""
        return Kept(self.personal.get(client, {}), self.memories.get(client, {}))

    def write(self, kept: Mapping[int, Kept]) -> None:
        """Replace the states of some clients."""
        self.personal.update({client: one.personal for client, one in kept.items() if one.personal})
        self.memories.update({client: one.memory for client, one in kept.items() if one.memory})

    def save(self) -> Versions:
        """Force every file onto the disk; return the versions by which `load` finds them again."""
        files = self._files()
        for states in files.values():
            states.flush()
        return {kind: dict(states.versions) for kind, states in files.items()}

    def prune(self) -> None:
        """Delete old versions, once no checkpoint names them."""
        for states in self._files().values():
            states.prune()

    def load(self, folder: Path, versions: Versions) -> None:
        """Take the states that `save` left in a folder: in place if it is this store's folder, else as copies."""
        for kind in KINDS:
            saved = ClientStates(folder / kind, self._layouts[kind], self._memory_bytes, versions[kind])
            setattr(self, kind, saved if folder == self.folder else self._states(kind, saved))

    def _states(self, kind: Kind, states: Mapping[int, State]) -> MutableMapping[int, State]:
        if self.folder is None:
            return dict(states)
        own = ClientStates(self.folder / kind, self._layouts[kind], self._memory_bytes)
        own.update(states)
        return own

    def _files(self) -> dict[Kind, ClientStates]:
        own: dict[Kind, MutableMapping[int, State]] = {"personal": self.personal, "memories": self.memories}
        return {kind: states for kind, states in own.items() if isinstance(states, ClientStates)}
