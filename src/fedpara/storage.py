"""States in files: written atomically, checked, and read without running code; a mapping of more than memory holds."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from zlib import crc32

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpara.files import UnusableFile, make_durable, write_atomically
from fedpara.state import Layout, State, as_bytes, num_bytes, require_same_names

SUFFIX = ".safetensors"


def write_tensors(
    path: Path,
    state: State,
    metadata: Mapping[str, str],
    durable: bool = True,
    ready: Callable[[Path], None] = lambda temporary: None,
) -> None:
    """Write a state and strings atomically, with a checksum over both.

    Args:
        durable: whether the file is safely on the disk on return.
        ready: called with the temporary file once it is whole, before it counts.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    checksum = {"crc32": str(_checksum(tensors, metadata))}
    write_atomically(path, save(tensors, {**metadata, **checksum}), durable, ready)


def read_tensors(path: Path, layout: Layout) -> tuple[State, dict[str, str]]:
    """Read the state and the strings that `write_tensors` wrote.

    Args:
        layout: names, shapes and types that the file must have; they are checked before any tensor is read.

    Raises:
        UnusableFile: the file is missing, damaged, not a safetensors file, or does not match the layout.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for name, spec in layout.items():
                found = file.get_slice(name)
                if found.get_shape() != list(spec.shape):
                    raise ValueError(f"{name} is of shape {found.get_shape()}, not {list(spec.shape)}")
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnusableFile(f"{path}: cannot be used, it is damaged or of another model ({error})") from error
    wrong = [name for name, spec in layout.items() if state[name].dtype != spec.dtype]
    checksum = metadata.pop("crc32", None)  # older runs have no checksum
    if wrong or (checksum is not None and checksum != str(_checksum(state, metadata))):
        raise UnusableFile(f"{path}: cannot be used, it is damaged (its content does not match its checksum)")
    return state, metadata


def _checksum(state: State, metadata: Mapping[str, str]) -> int:
    total = crc32(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(state.items()):
        total = crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = crc32(as_bytes(tensor).numpy().data, total)
    return total


class ClientStates(Mapping[int, State]):
    """The clients' states by client: each one in a file, and those used last also in memory.

    A client's next state is written at once, as a new version, but it counts only if `keep` names the client. A file
    that counts is never overwritten, and it stays until `prune`. So a checkpoint that names versions remains valid,
    whatever happens after it, and no states wait in memory until a round ends.

    Args:
        folder: the folder of the files `<client>-<version>.safetensors`.
        layout: the layout of each state; a file with other names is refused.
        memory_bytes: bytes of states that also stay in memory; 0: none.
        versions: each client's version, from a checkpoint.
    """

    def __init__(
        self, folder: Path, layout: Layout, memory_bytes: int, versions: Mapping[int, int] | None = None
    ) -> None:
        self.folder, self.layout, self.memory_bytes = folder, layout, memory_bytes
        self.versions = dict(versions or {})
        self._next_version = max(self.versions.values(), default=0) + 1
        self._next: set[int] = set()
        self._in_memory: OrderedDict[Path, State] = OrderedDict()
        self._held_bytes = 0
        self._unsafe: set[int] = set()

    def __getitem__(self, client: int) -> State:
        path = self._path(client, self.versions[client])
        state = self._forget(path)
        if state is None:
            state = self._read(path)
        self._remember(path, state)
        return state

    def add(self, client: int, state: State) -> None:
        """Write the client's next state; if it is added again before `keep`, the last one is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(client, self._next_version)
        write_tensors(path, state, {}, durable=False)
        self._next.add(client)
        for replaced in (path, self._path(client, self.versions.get(client, 0))):
            self._forget(replaced)
        self._remember(path, state)

    def keep(self, clients: Iterable[int]) -> None:
        """Make the next states of these clients count; drop those of all others."""
        counted = [client for client in clients if client in self._next]
        for client in self._next.difference(counted):
            self._forget(self._path(client, self._next_version))
        self.versions |= dict.fromkeys(counted, self._next_version)
        self._next_version += bool(counted)
        self._unsafe.update(counted)
        self._next = set()

    def __iter__(self) -> Iterator[int]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def path(self, client: int) -> Path:
        """The file of the client's state that counts."""
        return self._path(client, self.versions[client])

    def flush(self) -> None:
        """Flush every state to the disk, before a checkpoint names it."""
        make_durable(*map(self.path, self._unsafe))
        self._unsafe.clear()

    def prune(self) -> None:
        """Delete old versions; call it when no checkpoint names them any more."""
        if not self.folder.is_dir():
            return
        current = {self._path(client, version).name for client, version in self.versions.items()}
        for name in os.listdir(self.folder):
            if name not in current:
                (self.folder / name).unlink()

    def _read(self, path: Path) -> State:
        state, _ = read_tensors(path, self.layout)
        try:
            require_same_names(self.layout, state)
        except ValueError as error:
            raise UnusableFile(f"{path}: cannot be used, it is of another model or algorithm ({error})") from error
        return state

    def _path(self, client: int, version: int) -> Path:
        return self.folder / f"{client}-{version}{SUFFIX}"

    def _remember(self, path: Path, state: State) -> None:
        """Keep it in memory as the most recently used; the least recently used ones leave."""
        self._in_memory[path] = state
        self._held_bytes += num_bytes(state)
        while self._held_bytes > self.memory_bytes:
            self._forget(next(iter(self._in_memory)))

    def _forget(self, path: Path) -> State | None:
        """Remove the state from memory and return it; its file stays."""
        state = self._in_memory.pop(path, None)
        self._held_bytes -= num_bytes(state or {})
        return state
