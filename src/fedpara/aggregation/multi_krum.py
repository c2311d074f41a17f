"""Multi-Krum (Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017, sections 4 and 5).

A score is the sum of squared distances to the n - f - 2 closest other uploads. The mean is that of the m uploads with
the lowest scores; m = 1 is Krum. Krum's proof needs n >= 2 f + 3 and uploads of one distribution.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, validate_call
from torch import Tensor

from fedpara.aggregation.rule import Keeping, blocks
from fedpara.communication import Codec
from fedpara.state import PartsLayout, State, weighted_mean


class MultiKrum(Keeping):
    """The mean of the uploads that have the closest neighbours.

    Args:
        attackers: f, the most uploads of a round that may be wrong; a round needs 2 f + 3.
        keep: m, of how many uploads to take the mean; None: n - f, at most that.
        memory_gb: the most that the kept uploads may take, in 10^9 bytes.

    Example:
        >>> from fedpara.algorithms import Upload
        >>> values = (1.0, 2.0, 3.0, 4.0, 900.0)
        >>> uploads = [Upload({"model": {"w": torch.tensor([w])}}, num_examples=1) for w in values]
        >>> next(iter(MultiKrum(attackers=1).bound_to(["w"]).replaced(uploads, known={}))).parts["model"]["w"]
        tensor([2.5000])
    """

    @validate_call
    def __init__(
        self,
        attackers: NonNegativeInt = 1,
        keep: Annotated[int, Field(ge=1)] | None = None,
        memory_gb: PositiveFloat = 4.0,
    ) -> None:
        super().__init__(memory_gb)
        self.attackers, self.keep = attackers, keep

    @property
    def least(self) -> int:
        """2 f + 3."""
        return 2 * self.attackers + 3

    @property
    def name(self) -> str:
        """With f."""
        return f"MultiKrum of attackers={self.attackers}"

    def require(self, upload: PartsLayout, clients_per_round: int, up_codec: Codec) -> None:
        """Refuse also a `keep` that would take attackers in."""
        super().require(upload, clients_per_round, up_codec)
        if self.keep and self.keep > (most := clients_per_round - self.attackers):
            raise ValueError(f"aggregation.keep={self.keep}: must be at most {most}, clients_per_round - attackers")

    def center(self, states: Sequence[State]) -> State:
        """The mean of the chosen uploads, in the order in which they came."""
        return weighted_mean((states[index], 1) for index in self.chosen(states))

    def chosen(self, states: Sequence[State]) -> list[int]:
        """Which of the uploads are taken; of equal scores the first ones."""
        others = len(states) - self.attackers
        closest = squared_distances(states).sort(dim=1).values[:, 1 : others - 1]  # the first is an upload's own, 0
        kept = closest.sum(dim=1).argsort(stable=True)[: min(self.keep or others, others)]
        return sorted(kept.tolist())


def squared_distances(states: Sequence[State]) -> Tensor:
    """(n, n) float64: the squared Euclidean distances between states, over all their tensors."""
    total = torch.zeros(len(states), len(states), dtype=torch.float64)
    for name in states[0]:
        for _, block in blocks([state[name] for state in states]):
            values = block.double()  # differences themselves: the form with a product loses small ones
            total += torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total
