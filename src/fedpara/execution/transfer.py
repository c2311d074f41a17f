"""Objects to and from another process: pickled, their tensors beside, in memory that both processes see.

Note [Rooms and identity]
~~~~~~~~~~~~~~~~~~~~~~~~~
The tasks of a round share the model that was broadcast: the same tensor objects are in all of them. A `Room` places a
tensor by its identity (`id`), so that such a tensor is written once for all workers, and a task's bytes hold only the
place. Equal values are not compared; that would cost as much as writing them. An identity is safe only while its object
lives, since Python gives it to another object afterwards. Hence `Room.laid` holds the tensors, and a room must outlive
every use of its places. A tensor that changes in place after it was laid would be stale there: what a round's tasks
share is written once, before the first is sent, and nobody changes it until the round is over.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpara.private.torch import inject

# which memory, the offset in bytes there, and what to read
Place = tuple[int, int, torch.dtype, torch.Size, tuple[int, ...]]
ALIGNMENT = 64  # bytes: what torch gives its own tensors, so that the same kernels run


class Room:
    """A stretch of memory to lay tensors down in, each once. See Note [Rooms and identity].

    Args:
        start, end: in bytes; what is not before `end` finds no room.
        known: tensors that lie elsewhere, as another room's `laid`.
        memory: its number among those that are there to read from.

    Attributes:
        laid: the tensors and their places, by identity; that they are held here keeps an identity from coming twice.
        end: in bytes, of what is laid.
    """

    def __init__(
        self, start: int, end: int, known: Mapping[int, tuple[Tensor, Place]] | None = None, memory: int = 0
    ) -> None:
        self.end, self._limit, self._memory = start, end, memory
        self._known = known or {}
        self.laid: dict[int, tuple[Tensor, Place]] = {}

    def place(self, tensor: Tensor) -> Place | None:
        """Where the tensor lies, or will after `write`; None: there is no room."""
        if found := self._known.get(id(tensor)) or self.laid.get(id(tensor)):
            return found[1]
        start = -(-self.end // ALIGNMENT) * ALIGNMENT
        if start + tensor.nbytes > self._limit:
            return None
        # strides as they are, without holes: channels_last weights take other kernels, which round otherwise
        place = self._memory, start, tensor.dtype, tensor.shape, torch.empty_like(tensor, device="meta").stride()
        self.laid[id(tensor)] = tensor, place
        self.end = start + tensor.nbytes
        return place

    def write(self, memory: Tensor) -> None:
        """Copy what is laid into `memory`."""
        for tensor, place in self.laid.values():
            _look(memory, place).copy_(tensor)


def look(place: Place, *memories: Tensor) -> Tensor:
    """The tensor at `place`, without a copy."""
    return _look(memories[place[0]], place)


def _look(memory: Tensor, place: Place) -> Tensor:
    _, start, dtype, shape, strides = place
    return memory[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)


def dump(thing: object, room: Room) -> bytes:
    """`thing` without its tensors, which are given places in `room`; those without a place are in the bytes."""
    file = io.BytesIO()
    _Pickler(file, room).dump(thing)
    return file.getvalue()


def load(data: bytes, *memories: Tensor, copy: bool) -> Any:
    """The inverse of `dump` after `Room.write`; tensors are copies, or what lies in the memories themselves."""
    return _Unpickler(io.BytesIO(data), memories, copy).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, room: Room) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._room = room

    def persistent_id(self, thing: object) -> Place | None:
        return self._room.place(thing) if type(thing) is Tensor else None

    def reducer_override(self, thing: object) -> tuple[Callable[..., nn.Module], tuple[type, object]]:
        """torch refuses to pickle a module with parametrizations, since its class is made on the spot."""
        if isinstance(thing, nn.Module) and parametrize.is_parametrized(thing):
            kind = parametrize.type_before_parametrizations(thing)
            state = cast(Callable[[nn.Module], object], kind.__getstate__)(thing)
            return _rebuild, (kind, state)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memories: tuple[Tensor, ...], copy: bool) -> None:
        super().__init__(file)
        self._memories, self._copy = memories, copy

    def persistent_load(self, place: Place) -> Tensor:
        tensor = look(place, *self._memories)
        return tensor.clone() if self._copy else tensor


def _rebuild(kind: type[nn.Module], attributes: dict[str, object]) -> nn.Module:
    """A module with parametrizations. See Note [Parametrized modules in a pickle]."""
    module = kind.__new__(kind)
    module.__dict__.update(attributes)
    inject(module)
    module.__setstate__(attributes)  # what its own class does besides: recurrent layers list their weights
    return module
