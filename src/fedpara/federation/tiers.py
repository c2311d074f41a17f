"""Clients of different size: each holds the first columns of every factor, and a column's mean is over those with it.

The rule is that of raFLoRA (Wu, Hu, Min and Wang, arXiv 2602.13486; we read its abstract), which averages each
partition of LoRA's ranks over the clients that contribute to it; here it is applied to columns of FedPara's factors.

A tier is a share of the clients and the ranks that these have. They are sent, train and send back only their columns,
so their network is a small one (`fedpara.nn.nested` has its formula). The server keeps all columns. Column j of its
next model is the mean over the clients of the round with r_k >= j, weighted by their numbers of examples, and stays as
it is if there is none. The same holds for the entries T[a, b] of a core, with r_k >= max(a, b). All else is averaged
over all clients, as in FedAvg. If all tiers have all columns, that is FedAvg, bit for bit.

Two other ways were not taken. With zero padding a column is divided by the weights of all clients, so it shrinks in
every round in which some lack it: weights that ignore the ranks, in which raFLoRA sees the cause of its rank collapse.
Truncating an SVD of the mean to each client's rank, where the collapse was found, has no counterpart for a Hadamard
product, and changes the meaning of every column in every round.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedpara.nn import factor_names, factorizations
from fedpara.nn.factorizations import core_of, first_columns
from fedpara.sampling import drawn_groups
from fedpara.state import State, mean_by_name, stepped


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Tier:
    """The clients of one size.

    Attributes:
        share: of all clients, above 0; those of all tiers sum to 1.
        ranks: number of columns by factorised weight; weights without one have all of theirs.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    ranks: Mapping[str, Annotated[int, Field(ge=1)]]


class Tiers:
    """The tiers of a federation: who is in which, what each holds, and the mean over clients of different size.

    Args:
        tiers: by name.
        network: has all columns.
        num_clients, seed: of the federation; who is in which tier is drawn from them, once.

    Attributes:
        names: the tiers' names.
        of: by client, the number of its tier.

    Raises:
        ValueError: the shares do not sum to 1, a tier has no client, or none has all columns.
    """

    def __init__(self, tiers: Mapping[str, Tier], network: nn.Module, num_clients: int, seed: int) -> None:
        shares = [tier.share for tier in tiers.values()]
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of tiers must sum to 1, and sum to {sum(shares):g}")
        self.names = list(tiers)
        self.of = drawn_groups(seed, num_clients, shares)
        for number, name in enumerate(tiers):
            if not name.isidentifier():
                raise ValueError(f"the tier {name!r} must have a name of letters, digits and _, for columns")
            if number not in self.of:
                raise ValueError(f"the tier {name} has none of {num_clients} clients, its share is {shares[number]:g}")
        whole = {weight: made.rank for weight, made in factorizations(network)}
        factors = factor_names(network)
        self._ranks = [
            {factor: rank for weight, rank in tier.ranks.items() if rank < whole[weight] for factor in factors[weight]}
            for tier in tiers.values()
        ]
        if all(self._ranks):
            raise ValueError("one of the tiers must have factorization.gamma, or nobody trains the last columns")
        self._bounds = {
            factor: sorted({0, whole[weight], *(ranks.get(factor, whole[weight]) for ranks in self._ranks)})
            for weight, names in factors.items()
            for factor in names
        }

    def is_whole(self, tier: int) -> bool:
        """Whether the clients of a tier have all columns."""
        return not self._ranks[tier]

    def narrowed(self, tier: int, state: State) -> State:
        """The part of a state that the clients of a tier hold."""
        ranks = self._ranks[tier]
        return {
            name: first_columns(_kind(name), tensor, ranks[name]) if name in ranks else tensor
            for name, tensor in state.items()
        }

    def mean(self, model: State, received: State, uploads: Iterable[tuple[State, float]]) -> State:
        """The server's next model: each column's mean over the uploads that have it.

        Args:
            model: the server's, which lends the columns that no upload has.
            received: the same as clients decoded it, value by value, so that it holds for every tier.
            uploads: clients' models, each with the shapes of its tier, and their weights.
        """
        mean = mean_by_name((self._cut(state), weight) for state, weight in uploads)
        after = {name: tensor.clone() for name, tensor in model.items()}
        pieces = self._cut(after)
        for name, piece in stepped(pieces, self._cut(received), mean).items():
            pieces[name].copy_(piece)
        return after

    def figures(self, up_bytes: Mapping[int, int], down_bytes: Mapping[int, int]) -> dict[str, float]:
        """The bytes of a round by tier, from those by client: `comm/up_bytes_<tier>` and `comm/down_bytes_<tier>`."""
        figures: dict[str, float] = {}
        for column, sent in (("comm/up_bytes", up_bytes), ("comm/down_bytes", down_bytes)):
            total: Counter[int] = Counter()
            for client, number in sent.items():
                total[self.of[client]] += number
            figures |= {f"{column}_{name}": total[tier] for tier, name in enumerate(self.names)}
        return figures

    def _cut(self, state: State) -> State:
        """A state in pieces, which are views: of each factor the columns between two ranks, as far as it goes."""
        pieces: State = {}
        for name, tensor in state.items():
            bounds = self._bounds.get(name, [])
            if len(bounds) <= 2:
                pieces[name] = tensor
                continue
            for low, high in pairwise(bounds):
                pieces |= {f"{name}[{low}:{high}]{i}": piece for i, piece in enumerate(_ring(name, tensor, low, high))}
        return pieces


def _ring(name: str, factor: Tensor, low: int, high: int) -> Iterator[Tensor]:
    """The columns `low` to `high` of a factor; of a core the rows below and the columns beside T[:low, :low].

    Nothing if the factor is narrower.
    """
    if _kind(name) != "t":
        if high <= factor.shape[-1]:
            yield factor[..., low:high]
    elif high <= factor.shape[-2]:
        core = core_of(factor)
        yield core[..., low:high, :, :high]
        yield core[..., :low, :, low:high]


def _kind(name: str) -> str:
    """x, y or t, from the name of a factor in a state."""
    return name.rpartition(".")[2][0]
