"""Turn the layers of any torch network into factorised ones, and back into dense ones.

`factorize(network, FedPara(gamma=0.1), exclude=["classifier.*"])`, train, `merge(network)`: an ordinary dense network
again, with the same outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedpara.nn.factorizations import Factorization, Hadamard, LowRank, PersonalHadamard
from fedpara.nn.initialization import INITIALIZATIONS
from fedpara.nn.ranks import Shape, hadamard_rank, largest_rank, matrix_size, tucker_size

STRICT = ConfigDict(extra="forbid")
FACTORIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
InitializationName = Literal["variance", "variance_core", "he", "he_fan_in", "he_fan_out"]
assert set(InitializationName.__args__) == set(INITIALIZATIONS)  # type: ignore[attr-defined]


class Recipe(Protocol):
    """Makes the factorisation of one layer, or returns None to leave that layer dense."""

    def __call__(self, name: str, weight: Tensor) -> Factorization | None:
        """The factorisation of the layer `name`, whose dense weight is `weight`."""
        ...

    @property
    def patterns(self) -> Sequence[str]:
        """Layer-name patterns that the recipe relies on; each must match a layer."""
        ...


@dataclass(frozen=True, config=STRICT)
class LayerRule:
    """What differs for the layers of one pattern: another gamma, or a rank given outright."""

    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, config=STRICT)
class FedPara:
    """W = s(W1) * s(W2) for every layer (FedPara, Propositions 1 and 3).

    Args:
        gamma: 0 to 1, the share of the way from the least rank that leaves W full rank (Corollary 1) to the dense size.
        conv: `tucker` is Proposition 3 (the paper's choice), `reshape` is Proposition 1 on O x (I K1 K2).
        nonlinearity: s; the paper uses tanh everywhere except in pFedPara.
        initialization: see `fedpara.nn.initialization`.
        layers: rules by layer-name pattern (fnmatch), the first match wins: `{"*.conv1_1": {"gamma": 1.0}}`.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.1
    conv: Literal["tucker", "reshape"] = "tucker"
    nonlinearity: Literal["tanh", "identity"] = "tanh"
    initialization: InitializationName = "variance"
    layers: Mapping[str, LayerRule] | None = None

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns of `layers`."""
        return list(self.layers or {})

    def rank(self, name: str, shape: Shape) -> int:
        """R of the layer `name`, whose dense weight has `shape`."""
        rule = next((r for pattern, r in (self.layers or {}).items() if fnmatchcase(name, pattern)), LayerRule())
        if rule.rank is not None:
            return rule.rank
        return self._rank(shape, self.gamma if rule.gamma is None else rule.gamma)

    def _rank(self, shape: Shape, gamma: float) -> int:
        return hadamard_rank(*self._sides(shape), prod(shape), partial(self._size, shape), gamma)

    def __call__(self, name: str, weight: Tensor) -> Factorization:
        """The factorisation of one layer, initialised."""
        shape = tuple(weight.shape)
        made = self._make(shape, self.rank(name, shape), self._tucker(shape))
        INITIALIZATIONS[self.initialization](made, weight)
        return made

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return Hadamard(shape, rank, tucker, torch.tanh if self.nonlinearity == "tanh" else None)

    def _sides(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1] if self._tucker(shape) else prod(shape[1:])

    def _tucker(self, shape: Shape) -> bool:
        return self.conv == "tucker" and len(shape) > 2

    def _size(self, shape: Shape, rank: int) -> int:
        return 2 * (tucker_size if self._tucker(shape) else matrix_size)(shape, rank)


@dataclass(frozen=True, config=STRICT)
class EqualSizeLowRank(FedPara):
    """The baseline of Table 2: W = X Y^T or Tucker-2, at the rank whose size is nearest to FedPara's at that gamma.

    Takes the arguments of `FedPara`; with one branch there is no product for `nonlinearity` to act on: no effect.
    """

    def _rank(self, shape: Shape, gamma: float) -> int:
        """The rank of equal size: exactly 2R for matrices, the nearest from either side for Tucker-2."""
        budget = self._size(shape, super()._rank(shape, gamma))
        size = partial(tucker_size if self._tucker(shape) else matrix_size, shape)
        below = largest_rank(size, budget)
        nearest = below if budget - size(below) <= size(below + 1) - budget else below + 1
        return min(nearest, *self._sides(shape))

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return LowRank(shape, rank, tucker)


@dataclass(frozen=True, config=STRICT)
class PFedPara(FedPara):
    """W = W1 * (W2 + 1) for every layer (pFedPara, section 2.3), to be used with `sharing=pfedpara`.

    Takes the arguments of `FedPara`; no non-linearity, whatever `nonlinearity` says, as in the paper.
    """

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return PersonalHadamard(shape, rank, tucker)


@dataclass(frozen=True, config=STRICT)
class Dense(FedPara):
    """No factorisation: the original network. Takes FedPara's arguments, so that the two are exchanged by a word."""

    def __call__(self, name: str, weight: Tensor) -> None:  # type: ignore[override]
        """Leave the layer as it is."""
        return


@validate_call(config={"arbitrary_types_allowed": True})
def factorize(network: nn.Module, recipe: Any, exclude: list[str] | None = None, num_dense: int = 0) -> nn.Module:
    """Replace the weights of every `nn.Linear`, `nn.Conv*d`, `nn.LSTM`, `nn.GRU`, `nn.RNN` by factorisations, in place.

    Biases and norms stay. A weight goes by its layer's name, or by its own where a layer has several: recurrent layers'
    (`lstm.weight_hh_l0`), which torch composes ten times a forward pass; `models/char_lstm.py` does it once.

    Args:
        recipe: `FedPara(...)`, `EqualSizeLowRank(...)`, `Dense()` or anything of the protocol `Recipe`.
        exclude: fnmatch patterns of names that stay dense.
        num_dense: the first so many of the others stay dense too: a hybrid network, as Pufferfish (Wang et al. 2021).

    Raises:
        ValueError: a pattern matches no name, so that a misspelt one cannot go unnoticed; or nothing but dense is left.
    """
    weights = dict(_weights(network))
    exclude = exclude or []
    for pattern in [*exclude, *recipe.patterns]:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise ValueError(f"pattern={pattern!r}: matches no layer; layers are {', '.join(weights) or 'none'}")
    chosen = [name for name in weights if not any(fnmatchcase(name, pattern) for pattern in exclude)]
    if num_dense and not 0 < num_dense < len(chosen):
        raise ValueError(f"num_dense={num_dense}: must be 0 to {len(chosen) - 1}, one less than there are layers")
    for name in chosen[num_dense:]:
        layer, tensor = weights[name]
        weight = getattr(layer, tensor)
        made = recipe(name, weight.detach())
        if made is not None:
            made.to(weight.device, weight.dtype)
            parametrize.register_parametrization(layer, tensor, made)
    return network


def _weights(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """What can be factorised: its name, its layer and its name there."""
    for name, layer in network.named_modules():
        if isinstance(layer, FACTORIZABLE):
            yield name, (layer, "weight")
        elif isinstance(layer, nn.RNNBase):
            for tensor, _ in layer.named_parameters():
                if tensor.startswith("weight"):
                    yield f"{name}.{tensor}".removeprefix("."), (layer, tensor)


def factorizations(network: nn.Module) -> Iterator[tuple[str, Factorization]]:
    """The factorised weights of a network, by the names that `factorize` knows them by."""
    for name, module in network.named_modules():
        if isinstance(module, Factorization):
            layer, _, tensor = f".{name}".removesuffix(".0").partition(".parametrizations.")
            yield f"{layer}.{tensor}".removesuffix(".weight").removeprefix("."), module


def merge(network: nn.Module) -> nn.Module:
    """Compose every weight once and drop the factors, in place: a dense network with the same outputs, bit for bit."""
    for layer in list(network.modules()):
        for tensor, (made, *_) in list(getattr(layer, "parametrizations", {}).items()):
            if isinstance(made, Factorization):
                parametrize.remove_parametrizations(layer, tensor, leave_parametrized=True)
    return network
