"""Weights that are not trained: constants of the network, which are neither sent nor saved.

In fine-tuning a weight is W = W0 + D: W0 is pretrained and frozen, and factors compose D. That is LoRA (Hu et al. 2022)
for D = X Y^T, and LoHa (LyCORIS; Yeh et al. 2024) for FedPara's Hadamard product. Everyone has W0 already, so only the
factors, and what else is trained, are part of the network's state.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from fedpara.nn.factorizations import Factorization
from fedpara.private.torch import own_buffers, own_parameters

CONSTANTS = "_constants_of_fine_tuning"  # the attribute of a layer with their names


class Base(nn.Module):
    """The parametrization after the factors: from D, which they compose, to W0 + D.

    Args:
        weight: W0, of the weight's own shape; a constant.
        moves: whether it is no constant but a part of the network's state, which rounds change (`fedpara.nn.mud`).
    """

    def __init__(self, weight: Tensor, moves: bool = False) -> None:
        super().__init__()
        self.moves = moves
        self.register_buffer("weight", weight, persistent=moves)

    def forward(self, delta: Tensor) -> Tensor:
        """W0 + D, in which D may have a first dimension for clients (`fedpara.execution.folding`)."""
        return self.get_buffer("weight") + delta

    def right_inverse(self, weight: Tensor) -> Tensor:
        """D from W; the factors then refuse to take it."""
        return weight - self.get_buffer("weight")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the fnmatch patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def freeze(network: nn.Module, trained: Collection[nn.Parameter]) -> None:
    """Make constants of all parameters but the factors and `trained`, in place; these are trained from now on.

    A constant is a buffer that `state_dict` leaves out. `unfreeze` makes parameters of the constants again; those that
    layers share come apart if the network moves to another type or device in between.
    """
    made: dict[nn.Parameter, Tensor] = {}  # layers that share a parameter share its constant
    kept = set(trained)
    for one in kept:
        one.requires_grad_(True)  # whoever fine-tunes may have frozen the whole network
    for layer in network.modules():
        if isinstance(layer, Factorization):
            continue
        for name, parameter in list(own_parameters(layer).items()):
            if parameter is not None and parameter not in kept:
                del own_parameters(layer)[name]
                layer.register_buffer(name, made.setdefault(parameter, parameter.detach()), persistent=False)
                vars(layer).setdefault(CONSTANTS, []).append(name)


def constants(network: nn.Module) -> set[str]:
    """The names of the constants: those of `freeze`, and each W0 that stays."""
    named = network.named_modules()
    own = {name: _constants(layer) for name, layer in named}
    return {f"{layer}.{name}".removeprefix(".") for layer, names in own.items() for name in names}


def _constants(layer: nn.Module) -> list[str]:
    if isinstance(layer, Base):
        return [] if layer.moves else ["weight"]
    return vars(layer).get(CONSTANTS, [])


def unfreeze(network: nn.Module) -> None:
    """Make parameters of the constants again, in place; they are not trained."""
    parameters: dict[Tensor, nn.Parameter] = {}
    for layer in network.modules():
        for name in vars(layer).pop(CONSTANTS, []):
            if (constant := own_buffers(layer).get(name)) is None:  # the user has put something else in its place
                continue
            delattr(layer, name)
            parameter = parameters.setdefault(constant, nn.Parameter(constant, requires_grad=False))
            layer.register_parameter(name, parameter)
