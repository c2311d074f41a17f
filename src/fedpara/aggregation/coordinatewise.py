"""Coordinate-wise median and trimmed mean (Yin, Chen, Ramchandran, Bartlett, ICML 2018, Definitions 1 and 2).

Both look at each value alone. Yin et al. prove an error of order (share of attackers) / sqrt(examples of a client), up
to logarithms, for clients whose data are from one distribution.
"""

from collections.abc import Sequence

from pydantic import NonNegativeInt, PositiveFloat, validate_call

from fedpara.aggregation.rule import Keeping, middle, reduced
from fedpara.communication import Codec, TopK
from fedpara.state import PartsLayout, State, weighted_mean


class CoordinateWise(Keeping):
    """A rule that looks at each value of the uploads alone."""

    def require(self, upload: PartsLayout, clients_per_round: int, up_codec: Codec) -> None:
        """Refuse also a codec that sends a few values of each upload: the middle of a value would be that it stays."""
        super().require(upload, clients_per_round, up_codec)
        if isinstance(up_codec, TopK):
            raise ValueError(
                f"{self.name} and link=topk: most clients do not send a value, so that its middle would never move; "
                "take aggregation=multi_krum or geometric_median, or another link"
            )


class Median(CoordinateWise):
    """The median of each value; the mean of the middle two of an even number.

    It stands fewer than half of the uploads.

    Args:
        memory_gb: the most that the kept uploads may take, in 10^9 bytes.

    Example:
        >>> import torch
        >>> from fedpara.algorithms import Upload
        >>> uploads = [Upload({"model": {"w": torch.tensor([w])}}, num_examples=1) for w in (1.0, 2.0, 900.0)]
        >>> [upload.parts["model"]["w"] for upload in Median().bound_to(["w"]).replaced(uploads, known={})]
        [tensor([2.]), tensor([2.]), tensor([2.])]
    """

    def center(self, states: Sequence[State]) -> State:
        """The median of each value."""
        return {name: reduced([state[name] for state in states], middle) for name in states[0]}


class TrimmedMean(CoordinateWise):
    """The mean of each value without its `attackers` smallest and largest ones; without any, the mean.

    Args:
        attackers: f, the most uploads of a round that may be wrong; a round needs 2 f + 1. (Yin et al. cut a share.)
        memory_gb: the most that the kept uploads may take, in 10^9 bytes.

    Example:
        >>> import torch
        >>> from fedpara.algorithms import Upload
        >>> uploads = [Upload({"model": {"w": torch.tensor([w])}}, num_examples=1) for w in (-9.0, 1.0, 2.0, 900.0)]
        >>> next(iter(TrimmedMean(attackers=1).bound_to(["w"]).replaced(uploads, known={}))).parts["model"]["w"]
        tensor([1.5000])
    """

    @validate_call
    def __init__(self, attackers: NonNegativeInt = 1, memory_gb: PositiveFloat = 4.0) -> None:
        super().__init__(memory_gb)
        self.attackers = attackers

    @property
    def least(self) -> int:
        """2 f + 1, so that a value is left."""
        return 2 * self.attackers + 1

    @property
    def name(self) -> str:
        """With f."""
        return f"TrimmedMean of attackers={self.attackers}"

    def center(self, states: Sequence[State]) -> State:
        """The mean of the n - 2 f middle values."""
        if not (f := self.attackers):
            return weighted_mean((state, 1) for state in states)
        return {
            name: reduced(
                [state[name] for state in states], lambda block: block.sort(dim=0).values[f:-f].double().mean(dim=0)
            )
            for name in states[0]
        }
