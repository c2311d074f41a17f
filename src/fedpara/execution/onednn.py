"""A guard against oneDNN's faulty backward pass of strided 1x1 convolutions with few input channels.

Note [oneDNN and strided 1x1 convolutions]
oneDNN 3.12, which torch 2.13 has, overruns its memory in the backward pass by weights of a convolution whose kernel is
1x1 (or 1x1x1), whose stride is more than 1, and which has fewer input channels than a SIMD register holds: 8 floats
with AVX2, 16 with AVX-512 (uxlfoundation/oneDNN#6035). The process aborts or hangs, or the gradients are wrong. Only
channels_last memory leads there, and the executors put every network into it, for most convolutions are quicker so.
`guard` hands such a convolution, and no other, to oneDNN in contiguous memory, and gives its gradients the memory
format that torch.compile expects. It replaces the CPU kernel of `aten::convolution_backward`, so it holds for every way
to write a convolution: a layer of any class, a functional call, a folded network. The check costs each backward pass of
a convolution some 20 microseconds, so it is put in only where a network has such a convolution.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from fedpara.private.torch import DispatchKeySet, TorchDispatchMode, suggest_memory_format

SIMD_CHANNELS = 16  # the floats of the widest register
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of inputs, weight, bias


def is_affected(weight: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether oneDNN may fail at a convolution.

    Args:
        weight: shape of its weight, (O, I / groups, *kernel).
        stride: one number for each dimension of the kernel.
    """
    return prod(weight[2:]) == 1 and max(stride) > 1 and weight[1] < SIMD_CHANNELS


def guard(network: nn.Module, example: Tensor) -> None:
    """Make the backward pass of `network` safe in channels_last memory; once for a process, and at no cost elsewhere.

    Args:
        example: a batch of one, as the network takes it; shows the convolutions that are not layers.
    """
    if any(_is_affected_layer(layer) for layer in network.modules()) or _runs_affected(network, example):
        _install()


def _is_affected_layer(layer: nn.Module) -> bool:
    if not isinstance(layer, CONVOLUTIONS):
        return False
    return is_affected((layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size), layer.stride)


def _runs_affected(network: nn.Module, example: Tensor) -> bool:
    """Whether a copy of the network, in the modes that it is trained in, runs such a convolution; on two examples."""
    watch, types = _Watch(), {parameter.dtype for parameter in network.parameters()}
    if example.is_floating_point() and len(types) == 1:
        example = example.to(types.pop())
    with suppress(Exception), torch.random.fork_rng(), torch.no_grad(), watch:  # training will say what is wrong
        copy.deepcopy(network)(torch.cat([example, example]))
    return watch.found


class _Watch(TorchDispatchMode):
    """Looks out for affected convolutions among the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(
        self,
        operator: Callable[..., object],
        types: Collection[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if operator is torch.ops.aten.convolution.default:
            _, weight, _, stride, *_ = args
            assert isinstance(weight, Tensor)
            assert isinstance(stride, Sequence)
            self.found |= is_affected(weight.shape, stride)
        return operator(*args, **(kwargs or {}))


@cache
def _install() -> torch.library.Library:
    """Put the check in front of the CPU kernel, for as long as the process lives."""
    operator = torch.ops.aten.convolution_backward.default
    kernel = torch.library.get_kernel(operator, "CPU")

    def checked(
        keys: DispatchKeySet,
        gradient: Tensor,
        inputs: Tensor,
        weight: Tensor,
        bias: Sequence[int] | None,
        stride: Sequence[int],
        *rest: object,
    ) -> Gradients:
        if not is_affected(weight.shape, stride):
            return kernel.call_boxed(keys, gradient, inputs, weight, bias, stride, *rest)
        safe = contiguous(inputs), contiguous(weight)
        of_inputs, of_weight, of_bias = kernel.call_boxed(keys, gradient, *safe, bias, stride, *rest)
        return _like_unguarded(of_inputs, inputs, weight), _like_unguarded(of_weight, inputs, weight), of_bias

    library = torch.library.Library("aten", "IMPL")  # ends with the process
    library.impl("convolution_backward", checked, "CPU", with_keyset=True, allow_override=True)
    return library


def _like_unguarded(gradient: Tensor | None, inputs: Tensor, weight: Tensor) -> Tensor | None:
    """In channels_last memory where one of the operands is: compiled networks rely on it."""
    formats = {suggest_memory_format(inputs), suggest_memory_format(weight)} - {torch.contiguous_format}
    return gradient.contiguous(memory_format=formats.pop()) if formats and gradient is not None else gradient


def contiguous(tensor: Tensor) -> Tensor:
    """A copy whose strides are those of contiguous memory, also where a dimension of 1 leaves the choice."""
    return tensor.clone(memory_format=torch.contiguous_format)
