"""Sends objects to and from another process: they are pickled, but their tensors go through shared memory.

Note [Rooms and identity]
~~~~~~~~~~~~~~~~~~~~~~~~~
The tasks of a round share the broadcast model: all of them contain the same tensor objects. A `Room` places a tensor
by its identity (`id`), so that a shared tensor is written once for all workers, and a task's bytes hold only its place.
Values are not compared; that would take as long as writing them. An identity is valid only while its object lives,
because Python may give it to another object afterwards. So `Room.laid` keeps the tensors alive, and a room must outlive
every use of its places. If a tensor changed in place later, its copy would be out of date. So the shared tensors of a
round are written before the first task is sent, and do not change until the round is over.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpara.private.torch import inject

# number of the memory, offset in bytes, type, shape and strides
Place = tuple[int, int, torch.dtype, torch.Size, tuple[int, ...]]
ALIGNMENT = 64  # bytes, as torch aligns its own tensors, so that the same kernels run


class Room:
    """A range of memory in which each tensor is placed once. See Note [Rooms and identity].

    Args:
        start, end: bounds in bytes; a tensor must end before `end`.
        known: tensors that have places elsewhere, such as another room's `laid`.
        memory: number of this memory among those of the reader.

    Attributes:
        laid: the tensors and their places, by identity; keeping them here keeps their identities unique.
        end: end of the last tensor, in bytes.
    """

    def __init__(
        self, start: int, end: int, known: Mapping[int, tuple[Tensor, Place]] | None = None, memory: int = 0
    ) -> None:
        self.end, self._limit, self._memory = start, end, memory
        self._known = known or {}
        self.laid: dict[int, tuple[Tensor, Place]] = {}

    def place(self, tensor: Tensor) -> Place | None:
        """The place of the tensor, valid after `write`; None if there is no room for it."""
        if found := self._known.get(id(tensor)) or self.laid.get(id(tensor)):
            return found[1]
        start = -(-self.end // ALIGNMENT) * ALIGNMENT
        if start + tensor.nbytes > self._limit:
            return None
        # keep the strides, without holes: channels_last weights use other kernels, which round differently
        place = self._memory, start, tensor.dtype, tensor.shape, torch.empty_like(tensor, device="meta").stride()
        self.laid[id(tensor)] = tensor, place
        self.end = start + tensor.nbytes
        return place

    def write(self, memory: Tensor) -> None:
        """Copy the placed tensors into `memory`."""
        for tensor, place in self.laid.values():
            look(place, memory).copy_(tensor)


def look(place: Place, memory: Tensor) -> Tensor:
    """The tensor at `place` of its memory, without a copy."""
    _, start, dtype, shape, strides = place
    return memory[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)


def dump(thing: object, room: Room) -> bytes:
    """Pickle `thing`; its tensors get places in `room`, and only those without a place are in the bytes."""
    file = io.BytesIO()
    _Pickler(file, room).dump(thing)
    return file.getvalue()


def load(data: bytes, *memories: Tensor, copy: bool) -> Any:
    """The inverse of `dump` after `Room.write`; tensors are copies, or views of the memories."""
    return _Unpickler(io.BytesIO(data), memories, copy).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, room: Room) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._room = room

    def persistent_id(self, thing: object) -> Place | None:
        return self._room.place(thing) if type(thing) is Tensor else None

    def reducer_override(self, thing: object) -> tuple[Callable[..., nn.Module], tuple[type, object]]:
        """Pickle a module with parametrizations, which torch refuses, because its class is created at runtime."""
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
        tensor = look(place, self._memories[place[0]])
        return tensor.clone() if self._copy else tensor


def _rebuild(kind: type[nn.Module], attributes: dict[str, object]) -> nn.Module:
    """Make a module with parametrizations again. See Note [Parametrized modules in a pickle]."""
    module = kind.__new__(kind)
    module.__dict__.update(attributes)
    inject(module)
    module.__setstate__(attributes)  # for classes with their own: recurrent layers list their weights
    return module
