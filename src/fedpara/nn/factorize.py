"""Turn the layers of any torch network into factorised ones, and back into dense ones.

Call `factorize(network, FedPara(gamma=0.1), exclude=["classifier.*"])`, train, and call `merge(network)`: it is an
ordinary dense network again, with the same weights.
"""

import logging
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import field, replace
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from math import ceil, prod
from typing import Annotated, Any, Literal, Protocol, Self

import torch
from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from fedpara.nn.factorizations import Factorization, Hadamard, LowRank, PersonalHadamard
from fedpara.nn.frozen import Base, freeze, matches, unfreeze
from fedpara.nn.initialization import INITIALIZATIONS, kept_share, mean_step
from fedpara.nn.mud import MUD, Update
from fedpara.nn.ranks import Shape, hadamard_rank, largest_rank, matrix_size, ranks_within, tucker_size
from fedpara.private.torch import copyable, flat_weights_names, own_parameters

log = logging.getLogger(__name__)
STRICT = ConfigDict(extra="forbid")
FACTORIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention
InitializationName = Literal["variance", "variance_core", "he", "he_fan_in", "he_fan_out", "fitted"]
assert set(InitializationName.__args__) == set(INITIALIZATIONS)  # type: ignore[attr-defined]


class Recipe(Protocol):
    """Makes the factorisation of one layer, or returns None to leave that layer dense.

    It may have `patterns` of layer names that it relies on; each must match a layer.
    """

    def __call__(self, name: str, weight: Tensor) -> Factorization | None:
        """The factorisation of the layer `name`, whose dense weight is `weight`."""
        ...


@dataclass(frozen=True, config=STRICT)
class LayerRule:
    """A rule for the layers of one pattern: another gamma, or a fixed rank.

    A fixed rank is used even if the factors have more values than the weight.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        """Refuse both at once."""
        if self.gamma is not None and self.rank is not None:
            raise ValueError(f"gamma={self.gamma}: must be null together with rank={self.rank}")


@dataclass(frozen=True, config=STRICT)
class RankByGamma:
    """Chooses the rank of each layer by gamma; a subclass makes the factorisation.

    Args:
        gamma: 0 to 1, the share of the way from the least rank that leaves W full rank (Corollary 1) to the dense size.
        conv: `tucker` is Proposition 3 (the paper's choice), `reshape` is Proposition 1 on O x (I K1 K2).
        initialization: see `fedpara.nn.initialization`.
        layers: rules by layer-name pattern (fnmatch), the first match wins: `{"*.conv1_1": {"gamma": 1.0}}`.
        step: how far one SGD step on the factors moves W at the start, as a share of dense's step; the gradients of
            each layer's factors are scaled for that, so another optimizer is refused. None: as far as the factors move
            it by themselves.
        budget: parameters of the whole network, as a share of dense's; in fine-tuning, values that are trained, as a
            share of those that would be if the factorised weights were. In place of gamma, each layer then gets the
            rank of `ranks_within`, at least that of gamma 0. It excludes `layers`.
    """

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.1
    conv: Literal["tucker", "reshape"] = "tucker"
    initialization: InitializationName = "variance"
    layers: Mapping[str, LayerRule] | None = None
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    budget: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns of `layers`."""
        return list(self.layers or {})

    def rank(self, name: str, shape: Shape) -> int:
        """R of the layer `name`, whose dense weight has `shape`."""
        rule = self._rule(name)
        if rule.rank is not None:
            return rule.rank
        return self._rank(shape, self.gamma if rule.gamma is None else rule.gamma)

    def within_budget(self, shapes: Mapping[str, Shape], others: int) -> Self:
        """The recipe with a fixed rank for each layer, if there is a budget; they are logged.

        Args:
            shapes: of the dense weights to factorise, by layer; empty ones stay dense.
            others: number of the network's other values.

        Raises:
            ValueError: there are rules for layers too, or the budget is too small for gamma 0.
        """
        if self.budget is None:
            return self
        if self.layers:
            raise ValueError(f"budget={self.budget}: must be null together with layers, it sets every layer's rank")
        shapes = {name: shape for name, shape in shapes.items() if prod(shape)}
        limits = {name: (self._rank(shape, 0.0), self._rank(shape, 1.0)) for name, shape in shapes.items()}
        sizes = {name: partial(self._values, shape) for name, shape in shapes.items()}
        names = [name for name, shape in shapes.items() if sizes[name](limits[name][0]) < prod(shape)]
        if not names:  # `factorize` says so
            return self
        others += sum(prod(shape) for name, shape in shapes.items() if name not in names)  # too small for factors
        dense = others + sum(prod(shapes[name]) for name in names)
        lowest, highest = zip(*(limits[name] for name in names), strict=True)
        try:
            ranks = ranks_within(int(self.budget * dense) - others, [sizes[name] for name in names], lowest, highest)
        except ValueError as error:
            least = others + sum(sizes[name](limits[name][0]) for name in names)
            raise ValueError(
                f"budget={self.budget}: must be at least {ceil(1e4 * least / dense) / 1e4:g}, at which gamma is 0"
            ) from error
        log.info("ranks within the budget: %s", ", ".join(f"{n} {r}" for n, r in zip(names, ranks, strict=True)))
        rules = {escape(name): LayerRule(rank=rank) for name, rank in zip(names, ranks, strict=True)}
        return replace(self, gamma=0.0, layers=rules)  # gamma 0: no factors where even those are too many

    def _rule(self, name: str) -> LayerRule:
        return next((r for pattern, r in (self.layers or {}).items() if fnmatchcase(name, pattern)), LayerRule())

    def _rank(self, shape: Shape, gamma: float) -> int:
        return hadamard_rank(*self._sides(shape), prod(shape), partial(self._size, shape), gamma)

    def __call__(self, name: str, weight: Tensor) -> Factorization | None:
        """The initialised factorisation of one layer; None, with a line in the log, if it has more values than W."""
        shape = tuple(weight.shape)
        if not weight.numel():
            log.info("%s stays dense: its weight %s is empty", name, shape)
            return None
        made = self._make(shape, self.rank(name, shape), self._tucker(shape))
        values = sum(factor.numel() for factor in made.parameters())
        if values > weight.numel() and self._rule(name).rank is None:
            text = "%s stays dense: its factors of rank %d would have %d values, but its weight %s has %d"
            log.info(text, name, made.rank, values, shape, weight.numel())
            return None
        try:
            INITIALIZATIONS[self.initialization](made, weight)
        except ValueError as error:
            raise ValueError(f"{name}: {error}, or exclude it (model.keep_dense)") from error
        self._log_narrow(name, made)
        if self.initialization == "fitted":
            kept = 100 * kept_share(made, weight)
            log.info("%s: factors of rank %d keep %.0f %% of its weight", name, made.rank, kept)
        if self.step is not None:
            made.gradient_scale = self.step / mean_step(made)
        return made

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        raise NotImplementedError

    def _log_narrow(self, name: str, made: Factorization) -> None:
        """Say it where so few input channels bound R that no gamma gives all filters, by Proposition 3 (without s)."""
        outputs, inputs, *kernel = made.shape
        reached, whole = made.rank**2, min(outputs, inputs * prod(kernel))
        if made.tucker and len(made.branches()) == 2 and made.rank == inputs and reached < whole:
            text = (
                "%s (input channels: %d): each branch has filters of rank %d at most; dense (model.keep_dense) has %d"
            )
            log.info(text, name, inputs, made.rank, whole)

    def _sides(self, shape: Shape) -> tuple[int, int]:
        return shape[0], shape[1] if self._tucker(shape) else prod(shape[1:])

    def _tucker(self, shape: Shape) -> bool:
        return self.conv == "tucker" and len(shape) > 2

    def _values(self, shape: Shape, rank: int) -> int:
        """Number of values in the factors of a layer."""
        return self._size(shape, rank)

    def _size(self, shape: Shape, rank: int) -> int:
        return 2 * (tucker_size if self._tucker(shape) else matrix_size)(shape, rank)


@dataclass(frozen=True, config=STRICT)
class FedPara(RankByGamma):
    """W = s(W1) * s(W2) for every layer (FedPara, Propositions 1 and 3).

    Args:
        gamma: 0 to 1, the share of the way from the least rank that leaves W full rank (Corollary 1) to the dense size.
        conv: `tucker` is Proposition 3 (the paper's choice), `reshape` is Proposition 1 on O x (I K1 K2).
        initialization: see `fedpara.nn.initialization`.
        layers: rules by layer-name pattern (fnmatch), the first match wins: `{"*.conv1_1": {"gamma": 1.0}}`.
        nonlinearity: s; the paper uses tanh everywhere except in pFedPara.

    Example:
        >>> FedPara(gamma=0.1).rank("features.0", (512, 512, 3, 3))
        52
        >>> FedPara(layers={"features.0": {"rank": 12}}).rank("features.0", (512, 512, 3, 3))
        12
    """

    nonlinearity: Literal["tanh", "identity"] = "tanh"

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return Hadamard(shape, rank, tucker, torch.tanh if self.nonlinearity == "tanh" else None)


@dataclass(frozen=True, config=STRICT)
class EqualSizeLowRank(RankByGamma):
    """The baseline of Table 2: W = X Y^T or Tucker-2, at the rank whose size is nearest to FedPara's at that gamma.

    It takes the arguments of `FedPara` except `nonlinearity`, which acts on a product of two branches.

    Example:
        >>> FedPara(gamma=0.1).rank("layer", (256, 784)), EqualSizeLowRank(gamma=0.1).rank("layer", (256, 784))
        (24, 48)
    """

    def _rank(self, shape: Shape, gamma: float) -> int:
        """The rank of equal size: exactly 2R for matrices, for Tucker-2 the nearest that is no larger than W.

        It is at most the shorter side, beyond which more rank is nothing; then the network is smaller than FedPara's.
        """
        budget = self._size(shape, super()._rank(shape, gamma))
        size = partial(tucker_size if self._tucker(shape) else matrix_size, shape)
        below = largest_rank(size, budget)
        above = size(below + 1)
        nearest = below if budget - size(below) <= above - budget or above > prod(shape) else below + 1
        return min(nearest, *self._sides(shape))

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return LowRank(shape, rank, tucker)

    def _values(self, shape: Shape, rank: int) -> int:
        return super()._values(shape, rank) // 2  # one branch


@dataclass(frozen=True, config=STRICT)
class PFedPara(RankByGamma):
    """W = W1 * (W2 + 1) for every layer (pFedPara, section 2.3), to be used with `sharing=pfedpara`.

    It takes the arguments of `FedPara` except `nonlinearity`: the paper's pFedPara has none.

    Example:
        >>> from torch import nn
        >>> layer = factorize(nn.Linear(32, 16), PFedPara(gamma=0.5))
        >>> [name.rpartition(".")[2] for name, _ in layer.named_parameters()]
        ['bias', 'x1', 'y1', 'x2', 'y2']
    """

    def _make(self, shape: Shape, rank: int, tucker: bool) -> Factorization:
        return PersonalHadamard(shape, rank, tucker)


@dataclass(frozen=True, config=STRICT)
class Dense:
    """No factorisation: the original network.

    Example:
        >>> from torch import nn
        >>> list(factorize(nn.Linear(3, 2), Dense()).state_dict())
        ['weight', 'bias']
    """

    def __call__(self, name: str, weight: Tensor) -> None:
        """Leave the layer as it is."""
        return


@dataclass(config={"arbitrary_types_allowed": True})
class Weight:
    """A weight that can be factorised, together with all layers that share it.

    Attributes:
        names: names of its layers, or its own name in a layer with several weights; the first identifies it.
        holders: each layer once, with the weight's name in it.
        elsewhere: its names in modules of other kinds.
    """

    names: list[str] = field(default_factory=list)
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weight itself; None if it is computed anew for every use."""
        layer, tensor = self.holders[0]
        return own_parameters(layer).get(tensor)

    @property
    def frozen(self) -> bool:
        """Whether it is excluded from training."""
        parameters = self.holders[0][0].parameters() if self.parameter is None else [self.parameter]
        return not any(parameter.requires_grad for parameter in parameters)

    def matches(self, patterns: Sequence[str]) -> bool:
        """Whether one of its names matches one of the patterns."""
        return any(matches(name, patterns) for name in self.names)

    def __str__(self) -> str:
        """Its names, for an error message."""
        first, *others = self.names
        return f"{first} (tied to {', '.join(others)})" if others else first or "the layer"

    def require_plain(self) -> nn.Parameter:
        """The weight itself, if factors can replace it.

        Raises:
            ValueError: they cannot; the message names the weight and the reason.
        """
        weight, way_out = self.parameter, "name it in exclude (model.keep_dense)"
        if weight is None:
            by = "a parametrisation or a hook (weight norm, spectral norm, pruning, factors)"
            raise ValueError(f"{self}: {by} already computes its weight; remove that first, or {way_out}")
        if isinstance(weight, UninitializedParameter):
            raise ValueError(f"{self}: its weight has no shape yet; run the network on a batch first")
        if self.elsewhere:
            raise ValueError(
                f"{self}: its weight is shared with {self.elsewhere[0]}, which cannot have factors; {way_out}"
            )
        if not weight.is_floating_point():
            raise ValueError(f"{self}: its weight is {weight.dtype}, but factors are real numbers; {way_out}")
        return weight


@validate_call(config={"arbitrary_types_allowed": True})
def factorize(
    network: nn.Module,
    recipe: Any,
    exclude: list[str] | None = None,
    num_dense: int = 0,
    delta: bool = False,
    trainable: list[str] | None = None,
) -> nn.Module:
    """Replace the weights of linear, convolutional, recurrent and attention layers by factorisations, in place.

    These are `nn.Linear`, `nn.Conv*d`, `nn.LSTM`, `nn.GRU`, `nn.RNN` and `nn.MultiheadAttention`. Biases, norms and
    frozen weights stay. A weight has its layer's name; those of recurrent layers and of attention have names of their
    own (`lstm.weight_hh_l0`, `attention.in_proj_weight`). torch composes those of a recurrent layer and attention's
    `in_proj_weight` three times in a forward pass; `models/char_lstm.py` does it once. Layers that share a weight share
    its factors; the weight then has the name of the first of these layers.

    Args:
        recipe: `FedPara(...)`, `EqualSizeLowRank(...)`, `Dense()` or any object with the protocol `Recipe`.
        exclude: fnmatch patterns of names that stay dense; a shared weight can be given by any of its names.
        num_dense: so many of the first layers stay dense too: a hybrid network, as in Pufferfish (Wang et al. 2021).
        delta: fine-tuning, see `fedpara.nn.frozen`: the factors compose what is added to each weight, which is 0 at the
            start, so that the outputs stay as they are. All other parameters become constants, which are not in the
            network's state, except those that match `trainable`. With `Dense()` these alone are trained.
        trainable: fnmatch patterns of the names of parameters that are trained beside the factors, as they are.

    Raises:
        ValueError: a pattern matches no name, for instance a misspelt one; no layer is left to factorise; or a weight
            cannot be factorised, because something else already computes it, another kind of module shares it, it is
            not of real numbers, or it has no shape yet. The network is then unchanged.

    Example:
        >>> network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> network = factorize(network, FedPara(gamma=0.1), exclude=["2"])
        >>> {name: tuple(tensor.shape) for name, tensor in network.named_parameters() if name.startswith("0.p")}
        {'0.parametrizations.weight.0.x': (2, 64, 9), '0.parametrizations.weight.0.y': (2, 64, 9)}
        >>> network[0].weight.shape
        torch.Size([64, 64])
    """
    weights, exclude, trainable = _weights(network), exclude or [], trainable or []
    rules = getattr(recipe, "patterns", ())
    _require_matches(weights, exclude, rules)
    _require_trainable(network, trainable, delta)
    kept = {tensor for name, tensor in network.named_parameters(remove_duplicate=False) if matches(name, trainable)}
    free = [weight for weight in weights if weight.parameter not in kept and (delta or not weight.frozen)]
    chosen = [weight for weight in free if not weight.matches(exclude)]
    if num_dense and not 0 < num_dense < len(chosen):
        raise ValueError(f"num_dense={num_dense}: must be 0 to {len(chosen) - 1}, one less than the number of layers")
    _require_addable(recipe, delta, kept)
    chosen = [] if isinstance(recipe, Dense) else chosen[num_dense:]
    _require_used(rules, chosen)
    made = _factors(network, recipe, chosen, kept if delta else None)
    if not made and not isinstance(recipe, Dense):
        left = "each one is excluded, frozen or smaller than its factors"
        raise ValueError(f"no layer is left to factorise, {left}; take Dense() (factorization=dense)")
    for weight, factors in made:
        stays = delta or isinstance(factors, Update)
        base = [Base(weight.require_plain().detach(), moves=not delta)] if stays else []
        _register(weight, [factors, *base])
    if delta:
        freeze(network, kept)
    return network


def _register(weight: Weight, steps: Sequence[nn.Module]) -> None:
    """Let the steps compose the weight, one after the other, in each of its layers."""
    for layer, tensor in weight.holders:
        _own_class(layer)
        for step in steps:
            parametrize.register_parametrization(layer, tensor, step)
        if isinstance(layer, nn.RNNBase):
            type(layer).__deepcopy__ = _copied  # type: ignore[attr-defined]  # the class is this layer's own


def _factors(
    network: nn.Module, recipe: Recipe, weights: Sequence[Weight], beside: Collection[nn.Parameter] | None
) -> list[tuple[Weight, Factorization]]:
    """The factors of each weight. The network is not changed yet, so an error here leaves it as it was.

    Args:
        beside: in fine-tuning, the parameters that are trained beside the factors, which then start at 0.
    """
    plain, made = [weight.require_plain() for weight in weights], []
    if isinstance(recipe, RankByGamma):
        shapes = {weight.names[0]: tuple(dense.shape) for weight, dense in zip(weights, plain, strict=True)}
        factorized = set(plain)
        state = {tensor for tensor in network.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
        others = state - factorized if beside is None else beside
        recipe = recipe.within_budget(shapes, sum(tensor.numel() for tensor in others))
    for weight, dense in zip(weights, plain, strict=True):
        if (factors := recipe(weight.names[0], dense.detach())) is not None:
            factors.to(dense.device, dense.dtype)
            with torch.no_grad():
                shape = factors().shape
            if shape != dense.shape:
                raise ValueError(f"{weight}: the recipe's weight is {tuple(shape)}, but must be {tuple(dense.shape)}")
            if beside is not None:
                _start_at_zero(factors, getattr(recipe, "step", None))
            made.append((weight, factors))
    return made


@torch.no_grad()
def _start_at_zero(factors: Factorization, step: float | None) -> None:
    """Let the factors compose 0, with a gradient for the first branch's X alone, as LoRA does (Hu et al. 2022)."""
    factors.branches()[0]["x"].zero_()
    if step is not None:
        factors.gradient_scale = step / mean_step(factors)


def _require_addable(recipe: Any, delta: bool, kept: Collection[nn.Parameter]) -> None:
    """Refuse, with `delta`, a recipe that adds no factors to frozen weights, or fits them to these."""
    if delta and isinstance(recipe, Dense) and not kept:
        raise ValueError("trainable=[]: must name parameters with delta=True and Dense(), nothing else is trained then")
    if delta and isinstance(recipe, MUD):
        raise ValueError("delta=True: must be False with MUD(), which has no factors to add to the weights")
    if delta and getattr(recipe, "initialization", None) == "fitted":
        raise ValueError("initialization='fitted': must be another one with delta=True, where the factors compose 0")


def _require_trainable(network: nn.Module, trainable: Sequence[str], delta: bool) -> None:
    """Refuse a pattern that matches no parameter, or any without `delta`, where all parameters are trained."""
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    for pattern in trainable:
        if not delta:
            raise ValueError(f"trainable={trainable}: must be empty without delta, all parameters are trained then")
        if not any(matches(name, [pattern]) for name in names):
            raise ValueError(f"trainable={pattern!r}: matches no parameter; they are {', '.join(names)}")


def _require_matches(weights: Sequence[Weight], exclude: Sequence[str], rules: Sequence[str]) -> None:
    """Refuse a pattern that matches no layer; a rule must match the name that identifies the weight."""
    layers = ", ".join(map(str, weights)) or "none"
    for pattern in exclude:
        if not any(weight.matches([pattern]) for weight in weights):
            raise ValueError(f"pattern={pattern!r}: matches no layer; layers are {layers}")
    for pattern in rules:
        if not any(fnmatchcase(weight.names[0], pattern) for weight in weights):
            raise ValueError(f"pattern={pattern!r}: matches no layer; layers are {layers}")


def _require_used(rules: Sequence[str], weights: Sequence[Weight]) -> None:
    """Refuse a rule whose layers all stay dense for another reason."""
    for pattern in rules:
        if not any(fnmatchcase(weight.names[0], pattern) for weight in weights):
            raise ValueError(
                f"pattern={pattern!r}: its layers stay dense (excluded, frozen, or of num_dense); leave it out"
            )


def _weights(network: nn.Module) -> list[Weight]:
    """Every weight that can be factorised, once."""
    found: dict[Hashable, Weight] = {}
    for name, layer in network.named_modules(remove_duplicate=False):
        for tensor in _factorizable(layer):
            weight = found.setdefault(own_parameters(layer).get(tensor, (layer, tensor)), Weight())
            weight.names.append(f"{name}.{tensor}".removesuffix(".weight").removeprefix("."))
            if (layer, tensor) not in weight.holders:
                weight.holders.append((layer, tensor))
    for name, module in network.named_modules():
        for tensor in own_parameters(module).keys() - _factorizable(module):
            if shared := found.get(own_parameters(module)[tensor]):
                shared.elsewhere.append(f"{name}.{tensor}".removeprefix("."))
    return list(found.values())


def _factorizable(layer: nn.Module) -> list[str]:
    """The names of the layer's own weights: `weight`, or several in a recurrent layer or in attention."""
    if isinstance(layer, FACTORIZABLE):
        return ["weight"]
    if isinstance(layer, nn.MultiheadAttention):  # its out_proj is a layer of its own
        return [name for name in PROJECTIONS if _has_weight(layer, name)]
    names = flat_weights_names(layer) if isinstance(layer, nn.RNNBase) else []
    return [name for name in names if name.startswith("weight")]


def _has_weight(layer: nn.Module, name: str) -> bool:
    """Whether the layer has this weight, as a parameter or composed; nothing is composed to find out."""
    return own_parameters(layer).get(name) is not None or parametrize.is_parametrized(layer, name)


def _copied(layer: nn.RNNBase, memo: dict[int, Any]) -> nn.RNNBase:
    """A deep copy of a recurrent layer, also after a forward pass with gradients."""
    copied = memo[id(layer)] = type(layer).__new__(type(layer))
    with copyable(layer):
        copied.__dict__ = deepcopy(layer.__dict__, memo)
    return copied


def _own_class(layer: nn.Module) -> None:
    """Give a parametrized layer a class of its own; it shares one with its deep copies."""
    if parametrize.is_parametrized(layer):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def factorizations(network: nn.Module) -> Iterator[tuple[str, Factorization]]:
    """The factorised weights of a network, by the names that `factorize` uses.

    Example:
        >>> dict(factorizations(factorize(nn.Sequential(nn.Linear(32, 16)), FedPara(gamma=0.1))))
        {'0': Hadamard(shape=(16, 32), rank=4, matrix)}
    """
    for name, module in network.named_modules():
        if isinstance(module, Factorization):
            layer, _, tensor = f".{name}".removesuffix(".0").partition(".parametrizations.")
            yield f"{layer}.{tensor}".removesuffix(".weight").removeprefix("."), module


def stacked_factors(network: nn.Module) -> list[str]:
    """Names of the parameters whose first dimension is the branch, those of `Hadamard`.

    Example:
        >>> stacked_factors(factorize(nn.Sequential(nn.Linear(32, 16)), FedPara(gamma=0.1)))
        ['0.parametrizations.weight.0.x', '0.parametrizations.weight.0.y']
    """
    modules = network.named_modules()
    return [f"{name}.{own}" for name, one in modules if isinstance(one, Hadamard) for own, _ in one.named_parameters()]


@torch.no_grad()
def merge(network: nn.Module) -> nn.Module:
    """Compose every weight once and drop the factors, in place: a dense network with the same weights, bit for bit.

    Constants of fine-tuning are parameters again. A deep copy of the network stays factorised. Layers that shared
    factors share a weight afterwards.

    Example:
        >>> network = factorize(nn.Sequential(nn.Linear(32, 16)), FedPara(gamma=0.1))
        >>> inputs = torch.randn(2, 32)
        >>> before = network(inputs)
        >>> bool((merge(network)(inputs) == before).all()), list(network.state_dict())
        (True, ['0.bias', '0.weight'])
    """
    merged: dict[tuple[nn.Module, ...], nn.Parameter] = {}
    for layer in list(network.modules()):
        for tensor, steps in list(getattr(layer, "parametrizations", {}).items()):
            if isinstance(steps[0], Factorization):
                trained = any(factor.requires_grad for factor in steps.parameters())
                _own_class(layer)
                parametrize.remove_parametrizations(layer, tensor, leave_parametrized=True)
                weight = merged.setdefault(tuple(steps), nn.Parameter(getattr(layer, tensor), trained))
                setattr(layer, tensor, weight)
    unfreeze(network)
    return network
