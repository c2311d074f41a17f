"""Epsilon of a federation, by Renyi differential privacy in Google's `dp-accounting` (the extra `fedpara[privacy]`).

Two federations are neighbours if they differ in one client, all of whose examples are replaced (replace-one: the number
of clients is public). A round draws a cohort of fixed size without replacement, and releases the sum of its clipped
updates with noise: the event `SampledWithoutReplacementDpEvent` (Wang, Balle, Kasiviswanathan, AISTATS 2019, Theorem
27). A replaced client moves the sum by up to twice the clip, from an update to its opposite. So the library's noise
multiplier, which is in units of that distance, is half of ours, which is in clips.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from dp_accounting.rdp import RdpAccountant
    from numpy.typing import NDArray

SENSITIVITY = 2  # of the sum, in clips
LEAST, FIRST, MOST = 0.2, 4.0, 2.0**32  # noise multipliers: the smallest that is tried, the first guess, where it ends
TOLERANCE = 0.002  # of the noise multiplier that is searched for


class Spent(BaseModel):
    """Rounds that were released with one noise.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum of a round's updates, in clips.
        num_clients, clients_per_round: of the federation.
        secret_cohorts: whether nobody who sees the models knows the cohorts.
        rounds: how many there were.
    """

    model_config = ConfigDict(frozen=True)
    noise_multiplier: NonNegativeFloat
    num_clients: PositiveInt
    clients_per_round: PositiveInt
    secret_cohorts: bool = True
    rounds: NonNegativeInt = 0

    def of(self, rounds: int) -> "Spent":
        """The same for another number of rounds."""
        return self.model_copy(update={"rounds": rounds})


def epsilon(spent: Sequence[Spent], delta: float) -> float:
    """The epsilon of all released rounds together.

    Args:
        delta: the probability for which epsilon need not hold.

    Raises:
        ImportError: dp-accounting is not installed.

    Example:
        >>> epsilon([Spent(noise_multiplier=0.0, num_clients=100, clients_per_round=10, rounds=1)], delta=1e-3)
        inf
    """
    released = [one for one in spent if one.rounds]
    if not released:
        return 0.0
    if not all(one.noise_multiplier for one in released):
        return inf
    rdp = sum(one.rounds * _rdp(one.of(1)) for one in released)
    return float(_library().rdp.compute_epsilon(_accountant().orders, rdp, delta)[0])


def calibrated(planned: Spent, target_epsilon: float, delta: float) -> float:
    """The smallest noise multiplier (to 0.002, and at least 0.2) with which all planned rounds stay within a target.

    Args:
        planned: its noise multiplier is not read.

    Raises:
        ImportError: dp-accounting is not installed.
        ValueError: no noise is enough, because delta is so small.
    """
    compute = _library().rdp.compute_epsilon

    def within(multiplier: float, orders: Sequence[float]) -> list[float]:
        """The orders that bound epsilon by the target."""
        one = planned.of(1).model_copy(update={"noise_multiplier": multiplier})
        found = zip(orders, planned.rounds * _divergences(one, orders), strict=True)
        return [order for order, rdp in found if compute([order], [rdp], delta)[0] <= target_epsilon]

    every = _accountant().orders.tolist()
    lower, upper = 0.0, LEAST
    while not (enough := within(upper, every)):
        if upper >= MOST:
            raise ValueError(f"target_epsilon={target_epsilon:g}: no noise is enough for it with delta={delta:g}")
        lower, upper = upper, max(FIRST, 2 * upper)
    # more noise lowers every divergence, so an order that misses the target at one multiplier misses it below
    while lower and upper - lower > TOLERANCE:
        middle = (lower + upper) / 2
        if fewer := within(middle, enough):
            upper, enough = middle, fewer
        else:
            lower = middle
    return upper


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ImportError("epsilon needs dp-accounting: pip install 'fedpara[privacy]'") from error
    from absl import logging

    # it would close the stream that it found on import, once somebody has redirected standard error and set up logging
    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    return dp_accounting


def _accountant(orders: Sequence[float] | None = None) -> "RdpAccountant":
    dp = _library()
    return dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.REPLACE_ONE)


@lru_cache
def _rdp(one: Spent) -> "NDArray[np.float64]":
    """The Renyi divergences of a round at the library's orders; 0.2 s to compute, the same in every round."""
    return _divergences(one, _accountant().orders.tolist())


def _divergences(one: Spent, orders: Sequence[float]) -> "NDArray[np.float64]":
    """The Renyi divergences of a round, the smaller of two bounds at each order.

    Who knows the cohorts has no uncertainty about who took part, so the noise alone bounds that case. It bounds that of
    secret cohorts too: neighbours draw the same cohorts, and the divergence of two mixtures with the same weights is at
    most the largest of their parts, by joint quasi-convexity (van Erven and Harremoes, IEEE TIT 2014, Theorem 13).
    Theorem 27 exceeds it for large cohorts, where its bound is not tight.
    """
    dp = _library()
    noise = dp.GaussianDpEvent(one.noise_multiplier / SENSITIVITY)
    plain = _accountant(orders).compose(noise).rdp
    if not one.secret_cohorts:
        return plain
    sampled = dp.SampledWithoutReplacementDpEvent(one.num_clients, one.clients_per_round, noise)
    return np.minimum(plain, _accountant(orders).compose(sampled).rdp)
