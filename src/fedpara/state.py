"""A model's parameters and buffers as a dictionary of tensors, and the arithmetic on such dictionaries.

Everything that travels, is averaged or is stored is a `State`. The arithmetic matches tensors by name and refuses
states with different names, so that a renamed or forgotten tensor is an error and never a silent copy.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Parts = dict[str, State]  # a message, or the server's state: "model", and the parts that an algorithm adds
Value = TypeVar("Value")
NARROW = frozenset({torch.float16, torch.bfloat16})  # whose rounding is larger than a client's share of a mean


class TensorSpec(NamedTuple):
    """Shape and type of a tensor, which are known before its values."""

    shape: torch.Size
    dtype: torch.dtype

    def numel(self) -> int:
        """The number of values."""
        return self.shape.numel()


Layout = Mapping[str, TensorSpec]  # of a `State`: names in their order on the wire, with shapes and types
PartsLayout = Mapping[str, Layout]  # of `Parts`


def layout_of(state: State) -> Layout:
    """Names, shapes and types of a state."""
    return {name: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in state.items()}


def parts_layout_of(parts: Parts) -> PartsLayout:
    """Names, shapes and types of parts."""
    return {name: layout_of(part) for name, part in parts.items()}


def arranged(parts: Parts, layout: PartsLayout) -> Parts:
    """The same parts in the order and with the types of a layout, as on the wire.

    Raises:
        ValueError: the names differ.
    """
    require_same_names(join(layout), join(parts))
    return {part: typed(parts[part], specs) for part, specs in layout.items()}


def typed(state: State, layout: Layout) -> State:
    """The tensors of a layout in its order and types; training in float64 gives other types than the model's."""
    return {name: state[name].to(spec.dtype) for name, spec in layout.items()}


def first_names(module: nn.Module) -> dict[str, str]:
    """For every name in the module's `state_dict` the first name of its tensor, which layers may share."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in module.state_dict(keep_vars=True).items()}


def tensors(module: nn.Module) -> State:
    """Every parameter and buffer without gradient; a tensor that layers share appears once, by its first name."""
    first: dict[int, str] = {}
    named = module.state_dict(keep_vars=True)
    return {name: t.detach() for name, t in named.items() if first.setdefault(id(t), name) == name}


def on_cpu(state: State) -> State:
    """The tensors on the CPU; those that are there already are not copied.

    Those of a GPU travel one behind the other to pinned memory, and the host waits once.
    """
    arriving = {name: tensor.to("cpu", non_blocking=tensor.is_cuda) for name, tensor in state.items()}
    for device in {tensor.device for tensor in state.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return arriving


def copy_of(state: State) -> State:
    """A copy on the CPU, where the server is, in memory that is not pinned, because states may be kept."""
    return {name: tensor.clone() for name, tensor in on_cpu(state).items()}


def read_state(module: nn.Module) -> State:
    """A copy of `tensors(module)` on the CPU."""
    return copy_of(tensors(module))


def load_state(module: nn.Module, state: State) -> None:
    """Copy `state` into `module` in place.

    Raises:
        ValueError: the names of `state` are not exactly those of `module`.
    """
    own = tensors(module)
    require_same_names(own, state)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def require_same_names(expected: Iterable[str], given: Iterable[str]) -> None:
    """Raise a `ValueError` with up to three names of each kind if two states have different names."""
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or extra:
        raise ValueError(f"states disagree: missing {missing[:3]}, unexpected {extra[:3]}")


def weighted_mean(items: Iterable[tuple[State, float]]) -> State:
    """The weighted mean of states, in one pass and in the memory of one state (McMahan et al. 2017, Alg. 1).

    Integer buffers (counters) take their largest value, because a mean has no meaning for them.

    Args:
        items: pairs of a state and a positive weight, such as a number of examples.

    Raises:
        ValueError: there are no items, a weight is not positive, or names differ.
    """
    return mean_by_name(_of_equal_names(items))


def mean_by_name(items: Iterable[tuple[State, float]]) -> State:
    """As `weighted_mean`, but of each tensor over the states that have it; names that no state has are left out.

    The running form `mean += (x - mean) * w / sum(w)` keeps its numbers at the size of the parameters, so fp32 is
    enough for any cohort. Narrower types are not: their steps are larger than a client's share, so they are rounded
    once, at the end.
    """
    mean: State = {}
    totals: dict[str, float] = {}
    narrow: dict[str, torch.dtype] = {}
    for state, weight in items:
        if not weight > 0:
            raise ValueError(f"weight={weight}: must be positive")
        for name, tensor in state.items():
            total = totals[name] = totals.get(name, 0.0) + weight
            if tensor.dtype in NARROW:
                narrow[name], tensor = tensor.dtype, tensor.float()
            if name not in mean:
                mean[name] = tensor.clone()
            elif tensor.is_floating_point():
                mean[name].lerp_(tensor, weight / total)
            else:
                torch.maximum(mean[name], tensor, out=mean[name])
    return mean | {name: mean[name].to(dtype) for name, dtype in narrow.items()}


def _of_equal_names(items: Iterable[tuple[State, float]]) -> Iterator[tuple[State, float]]:
    names: list[str] | None = None
    for state, weight in items:
        names = list(state) if names is None else names
        require_same_names(names, state)
        yield state, weight
    if names is None:
        raise ValueError("no states to average: at least one client must report")


def as_bytes(tensor: Tensor) -> Tensor:
    """All values in logical order as a 1-D uint8 tensor; a copy if they do not lie side by side."""
    flat = tensor.reshape(-1)
    # `contiguous` leaves the stride of a single value alone, which `view` refuses
    beside = flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
    return beside.view(torch.uint8)


def zeros_like(state: State) -> State:
    """Zeros in the shapes of `state`."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def stepped(state: State, start: State, end: State) -> State:
    """The tensors of `end`, as `state` after the step from `start` to them; they themselves where `start` is `state`.

    What is not a floating-point number is taken as it is.

    Example:
        >>> own, rounded, mean = ({"w": torch.tensor([value])} for value in (1.25, 1.0, 1.5))
        >>> stepped(own, rounded, mean)
        {'w': tensor([1.7500])}
    """
    return {
        name: after
        if not after.is_floating_point() or torch.equal(start[name], state[name])
        else state[name] + (after - start[name])
        for name, after in end.items()
    }


def combine(first: State, scale: float, second: State) -> State:
    """`first + scale * second` for the names of `second`; the other tensors of `first` are unchanged.

    Raises:
        KeyError: `second` has a name that `first` does not have.
    """
    return first | {name: torch.add(first[name], tensor, alpha=scale) for name, tensor in second.items()}


def difference(after: State, before: State, names: Iterable[str]) -> State:
    """`after - before` for these names."""
    return {name: after[name] - before[name] for name in names}


def only(names: Iterable[str], given: Mapping[str, Value]) -> dict[str, Value]:
    """The part of a state, of a layout or of parts with these names, in their order."""
    return {name: given[name] for name in names}


def join(parts: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """One state, or one layout, of all parts, with names `part/name`."""
    return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def separate(state: State, names: Iterable[str]) -> Parts:
    """The inverse of `join`, for parts of the given names. Some may be empty."""
    parts: Parts = {name: {} for name in names}
    for name, tensor in state.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    return parts


def is_finite(*states: State) -> bool:
    """Whether no value of the states is NaN or infinite.

    A sum is finite only if all its terms are, and takes a twentieth of the time. If it is not, it may have overflowed.
    """
    tensors = [tensor for state in states for tensor in state.values() if tensor.is_floating_point()]
    return all(bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all()) for tensor in tensors)


def num_elements(state: State) -> int:
    """The number of values in all tensors of `state`."""
    return sum(tensor.numel() for tensor in state.values())


def num_bytes(state: State) -> int:
    """The bytes of all values of `state` in memory."""
    return sum(tensor.nbytes for tensor in state.values())
