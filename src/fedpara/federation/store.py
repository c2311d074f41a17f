"""The states that simulated clients keep: in memory, or in files with the most recent ones in memory."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

from fedpara.federation.client import Kept, Layouts
from fedpara.record import GIGABYTE
from fedpara.state import State
from fedpara.storage import ClientStates

Kind = Literal["personal", "memories"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Versions = Mapping[str, Mapping[int, int]]  # by kind, of each client's files


class StatesInMemory(dict[int, State]):
    """The clients' states by client, with the methods of `ClientStates`: a next state counts once it is kept."""

    def __init__(self) -> None:
        self._next: dict[int, State] = {}

    def add(self, client: int, state: State) -> None:
        """Take the client's next state."""
        self._next[client] = state

    def keep(self, clients: Iterable[int]) -> None:
        """Make the next states of these clients count; drop those of all others."""
        self.update({client: self._next[client] for client in clients if client in self._next})
        self._next = {}


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

    def add(self, client: int, kept: Kept) -> None:
        """Take a client's states after a round, which may not count yet; where there are files they are written now."""
        for states, new in ((self.personal, kept.personal), (self.memories, kept.memory)):
            if new:
                states.add(client, new)

    def keep(self, clients: Iterable[int]) -> None:
        """Make the added states of these clients count; drop those of all others."""
        self.personal.keep(clients)
        self.memories.keep(clients)

    def paths(self, clients: Iterable[int] | None = None) -> dict[str, Path]:
        """The files of clients' states that count, by name, `<kind>/<client>-<version>.safetensors`.

        Args:
            clients: None: all.
        """
        found: dict[str, Path] = {}
        for kind, states in self._files().items():
            chosen = states.versions if clients is None else [one for one in clients if one in states.versions]
            found |= {f"{kind}/{path.name}": path for path in map(states.path, chosen)}
        return found

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

    def _states(self, kind: Kind, states: Mapping[int, State]) -> StatesInMemory | ClientStates:
        own: StatesInMemory | ClientStates = StatesInMemory()
        if self.folder is not None:
            own = ClientStates(self.folder / kind, self._layouts[kind], self._memory_bytes)
        for client, state in states.items():
            own.add(client, state)
        own.keep(states)
        return own

    def _files(self) -> dict[Kind, ClientStates]:
        own: dict[Kind, StatesInMemory | ClientStates] = {"personal": self.personal, "memories": self.memories}
        return {kind: states for kind, states in own.items() if isinstance(states, ClientStates)}
