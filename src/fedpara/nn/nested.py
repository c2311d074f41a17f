"""Nested ranks: a network with the first columns of every factor, for clients that cannot hold them all.

Slices of one model by position are those of HeteroFL (Diao, Ding and Tarokh, ICLR 2021), here of factors instead of
layers; `fedpara.federation.tiers` has the mean over clients of different rank.

A client of rank r holds X[:, :r], Y[:, :r] and T[:r, :r] of a layer of rank R. A column means the same at every rank,
so columns can be averaged as they are. What remains is the size of W, which a fixed scale of each branch keeps. It is
in the composition and not in the factors, so that it never travels and is never averaged. Let the entries of the
factors be independent, with mean 0 and variances a, b and c of X, Y and T, as every initialisation draws them:

    matrix:  (X Y^T)[o, i] is a sum of r uncorrelated products, var = r a b, so the scale is sqrt(R / r);
    core:    (T x1 X x2 Y)[o, i, k] is a sum of r^2 of them, var = r^2 a b c, so the scale is R / r.

Each branch of a Hadamard product is scaled like that, before its non-linearity. So both keep their std, and so does
their product: without tanh, W of two matrix branches is scaled by R / r in all, and of two with cores by (R / r)^2. For
plain low rank it is the square root of rank-stabilised LoRA (Kalajdzievski, arXiv 2312.03732), not LoRA's alpha / r.
The scale also keeps how far an SGD step on the factors moves W (`mean_step`): there are r / R of the terms, with a core
(r / R)^2, each times the square of the scale.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from fedpara.nn.factorize import RankByGamma, Recipe, factorizations
from fedpara.nn.mud import Update

Ranks = Mapping[str, int]  # by the name of a factorised weight, as `factorizations` gives it


def ranks_at(network: nn.Module, recipe: Recipe, gamma: float) -> dict[str, int]:
    """The rank that the recipe of a network gives each factorised weight at another gamma, at most the weight's own.

    Raises:
        ValueError: the recipe's ranks do not follow from gamma.

    Example:
        >>> from fedpara.nn import FedPara, factorize
        >>> network = factorize(nn.Sequential(nn.Linear(64, 64)), FedPara(gamma=0.5))
        >>> ranks_at(network, FedPara(gamma=0.5), gamma=0.1)
        {'0': 9}
    """
    if not isinstance(recipe, RankByGamma):
        raise ValueError(f"gamma={gamma}: {type(recipe).__name__} has none; take factorization=fedpara or low_rank")
    if recipe.budget is not None:
        raise ValueError(f"gamma={gamma}: needs factorization.budget=null, not {recipe.budget}, which sets all ranks")
    other = replace(recipe, gamma=gamma)
    return {name: min(made.rank, other.rank(name, made.shape)) for name, made in factorizations(network)}


def factor_names(network: nn.Module) -> dict[str, list[str]]:
    """The names of each factorised weight's factors in the network's state, by the weight's name."""
    modules = {module: name for name, module in network.named_modules()}
    return {
        weight: [f"{modules[made]}.{name}" for name, _ in made.named_parameters()]
        for weight, made in factorizations(network)
    }


def narrow(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Keep so many columns of the factors of each weight, in place; the Jacobian correction does not fit the result.

    Args:
        ranks: 1 to the weight's own rank; weights without one stay as they are.

    Raises:
        ValueError: a rank is out of its range, or there is no such weight, or it has no columns to leave out.

    Example:
        >>> from fedpara.nn import FedPara, factorize
        >>> network = factorize(nn.Sequential(nn.Linear(64, 64)), FedPara(gamma=0.5))
        >>> narrow(network, {"0": 8})[0].weight.shape, dict(factorizations(network))
        (torch.Size([64, 64]), {'0': Hadamard(shape=(64, 64), rank=8, matrix)})
    """
    found = dict(factorizations(network))
    for name, rank in ranks.items():
        if name not in found:
            raise ValueError(f"ranks={name!r}: no factorised weight has this name; they are {', '.join(found)}")
        if isinstance(found[name], Update):
            raise ValueError(f"ranks={name!r}: the factors of {type(found[name]).__name__} cannot be narrowed")
        if not 1 <= rank <= found[name].rank:
            raise ValueError(f"ranks={name!r}: {rank} must be 1 to {found[name].rank}")
    for name, rank in ranks.items():
        if rank < found[name].rank:
            found[name].narrow(rank)
    return network
