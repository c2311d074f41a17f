"""The private names of torch that this package uses.

Note [torch.func at work]
~~~~~~~~~~~~~~~~~~~~~~~~~
FedPara's weight has its own backward pass, which works in place. Under `torch.func` (vmap, grad) it must use the slower
formula that torch differentiates itself. No public function tells which case it is.
`torch.autograd.Function.apply` calls `torch._C._are_functorch_transforms_active` for the same purpose. It is called in
every composition, so it is exported directly, without a function around it.

Note [One LSTM call]
~~~~~~~~~~~~~~~~~~~~
The weights of the LSTM of Section 3 are computed (they may be factorised), while `torch.nn.LSTM` takes parameters only.
`torch._VF.lstm` is the function that `nn.LSTM.forward` calls; `torch.lstm` is the same, without a type or a page.

Note [Parametrized modules in a pickle]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
`torch.nn.utils.parametrize` gives a module a class that is created at runtime. pickle cannot name it, so torch refuses.
`inject` creates such a class again in the other process, in the two steps of `register_parametrization`:
`_inject_new_class` and `_inject_property`. Registering anew would compute factors from the weight and change the bits.

Note [Scaled gradients]
~~~~~~~~~~~~~~~~~~~~~~~
Under fp16 an optimizer with `_step_supports_amp_scaling` (the fused ones) divides gradients by the scale within `step`.
A client's corrections are added before that and would be divided too. The scaler reads the same attribute.

Note [Own parameters of a layer]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
A folded layer gets parameters of another shape under the old names. `register_parameter` refuses a name that a
property hides, such as a parametrized weight, and `named_parameters` names a shared parameter only once. Both work on
the dictionaries `_parameters` and `_buffers`. A recurrent layer computes with the weights in `_flat_weights_names`,
even if others are registered.

Note [Copies of a recurrent layer]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
A recurrent layer keeps the weights of its last forward pass in `_flat_weights`. Composed ones are no leaves of a graph,
and `copy.deepcopy` refuses those. The next forward pass takes its weights anew.

Note [Operators that run]
~~~~~~~~~~~~~~~~~~~~~~~~~
`TorchDispatchMode` sees every operator of a network, including convolutions that are not layers. torch documents it
but keeps it in `torch.utils._python_dispatch`. `suggest_memory_format` (`torch._prims_common`) says in which memory
format a compiled network expects a gradient; `Tensor.is_contiguous` answers another question where a dimension is 1.
A kernel that is put in front of another one is handed a `torch._C.DispatchKeySet`, which has no public name.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "DispatchKeySet",
    "TorchDispatchMode",
    "copyable",
    "flat_weights_names",
    "inject",
    "lstm",
    "own_buffers",
    "own_parameters",
    "suggest_memory_format",
    "transforming",
    "unscales_gradients",
]

transforming = torch._C._are_functorch_transforms_active  # see Note [torch.func at work]
DispatchKeySet = torch._C.DispatchKeySet  # the type alone; see Note [Operators that run]
lstm = torch._VF.lstm  # see Note [One LSTM call]


def inject(module: nn.Module) -> None:
    """Give a module with `parametrizations` its class. See Note [Parametrized modules in a pickle]."""
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)


def flat_weights_names(layer: nn.RNNBase) -> list[str]:
    """Names of all weights of a recurrent layer, layer by layer. See Note [Own parameters of a layer]."""
    return layer._flat_weights_names


@contextmanager
def copyable(layer: nn.RNNBase) -> Iterator[None]:
    """Within this a recurrent layer has no weights of a graph. See Note [Copies of a recurrent layer]."""
    kept = layer._flat_weights
    layer._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in kept]
    try:
        yield
    finally:
        layer._flat_weights = kept


def unscales_gradients(optimizer: object) -> bool:
    """Whether the optimizer divides gradients by the scale itself. See Note [Scaled gradients]."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def own_parameters(layer: nn.Module) -> dict[str, nn.Parameter | None]:
    """The layer's own parameters, without its parts'. See Note [Own parameters of a layer]."""
    return layer._parameters


def own_buffers(layer: nn.Module) -> dict[str, Tensor | None]:
    """The layer's own buffers. See Note [Own parameters of a layer]."""
    return layer._buffers
