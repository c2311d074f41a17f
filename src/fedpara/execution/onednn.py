"""A guard against oneDNN's faulty backward pass of strided 1x1 convolutions with few input channels.

Note [oneDNN and strided 1x1 convolutions]
oneDNN 3.12, which torch 2.13 contains, overruns its memory when it computes the weight gradient of a convolution whose
kernel is 1x1 (or 1x1x1), whose stride is more than 1, and which has fewer input channels than a SIMD register has
floats: 8 with AVX2, 16 with AVX-512 (uxlfoundation/oneDNN#6035). The process aborts or hangs, or the gradients are
wrong. This happens only in channels_last memory, in which the executors put every network because most convolutions are
faster there. `guard` passes such a convolution, and no other, to oneDNN in contiguous memory, and gives its gradients
the memory format that torch.compile expects. It replaces the CPU kernel of `aten::convolution_backward`, so it covers
every way to write a convolution: a layer of any class, a functional call, a folded network. The check takes about 20
microseconds in the backward pass of each convolution, so it is installed only if a network has such a convolution.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from fedpara.private.torch import DispatchKeySet, TorchDispatchMode, suggest_memory_format

SIMD_CHANNELS = 16  # floats in the widest register
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of inputs, weight, bias


def is_affected(weight: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether oneDNN may fail on a convolution.

    Args:
        weight: shape of the weight, (O, I / groups, *kernel).
        stride: one number for each dimension of the kernel.
    """
    return prod(weight[2:]) == 1 and max(stride) > 1 and weight[1] < SIMD_CHANNELS


def guard(network: nn.Module, example: Tensor) -> None:
    """Make the backward pass of `network` safe in channels_last memory; other networks pay nothing.

    Args:
        example: a batch of one, as the network takes it, to find convolutions that are not layers.
    """
    if any(_is_affected_layer(layer) for layer in network.modules()) or _runs_affected(network, example):
        _install()


def _is_affected_layer(layer: nn.Module) -> bool:
    if not isinstance(layer, CONVOLUTIONS):
        return False
    return is_affected((layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size), layer.stride)


def _runs_affected(network: nn.Module, example: Tensor) -> bool:
    """Whether a copy of the network, in training mode and on two examples, runs such a convolution."""
    watch, types = _Watch(), {parameter.dtype for parameter in network.parameters()}
    if example.is_floating_point() and len(types) == 1:
        example = example.to(types.pop())
    with suppress(Exception), torch.random.fork_rng(), torch.no_grad(), watch:  # an error will appear again in training
        copy.deepcopy(network)(torch.cat([example, example]))
    return watch.found


class _Watch(TorchDispatchMode):
    """Looks for affected convolutions among the operators that run."""

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
    """Put the check in front of the CPU kernel until the process ends."""
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
    """The gradient in channels_last memory if one of the operands is, because compiled networks rely on that."""
    formats = {suggest_memory_format(inputs), suggest_memory_format(weight)} - {torch.contiguous_format}
    return gradient.contiguous(memory_format=formats.pop()) if formats and gradient is not None else gradient


def contiguous(tensor: Tensor) -> Tensor:
    """A copy with the strides of contiguous memory, even if a dimension of 1 allows others."""
    return tensor.clone(memory_format=torch.contiguous_format)
