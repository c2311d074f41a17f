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

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    import numpy as np
    from dp_accounting import DpEvent
    from dp_accounting.rdp import RdpAccountant
    from numpy.typing import NDArray

SENSITIVITY = 2  # of the sum, in clips
LEAST, FIRST = 0.1, 2.0  # noise multipliers of the library: the smallest that is tried, and the first guess
# fewer orders than the library's, for the search alone: any choice of orders gives a valid bound
SEARCHED = [1 + x / 10 for x in range(1, 100)] + [11, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 512, 1024]


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
    """The smallest noise multiplier (to 0.002) with which all planned rounds stay within a target.

    Args:
        planned: its noise multiplier is not read.

    Raises:
        ImportError: dp-accounting is not installed.
    """
    dp = _library()

    def rounds(multiplier: float) -> "DpEvent":
        event = _round(planned.model_copy(update={"noise_multiplier": SENSITIVITY * multiplier}))
        return dp.SelfComposedDpEvent(event, planned.rounds)

    def gap(multiplier: float) -> float:
        return _accountant(SEARCHED).compose(rounds(multiplier)).get_epsilon(delta) - target_epsilon

    if gap(LEAST) <= 0:
        return SENSITIVITY * LEAST
    bracket = dp.LowerEndpointAndGuess(LEAST, FIRST)
    found = dp.calibrate_dp_mechanism(
        lambda: _accountant(SEARCHED), rounds, target_epsilon, delta, bracket_interval=bracket, tol=1e-3
    )
    return SENSITIVITY * float(found)


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


def _round(spent: Spent) -> "DpEvent":
    """The event of one round. Who knows the cohorts has no uncertainty about who took part."""
    dp = _library()
    noise = dp.GaussianDpEvent(spent.noise_multiplier / SENSITIVITY)
    if not spent.secret_cohorts:
        return noise
    return dp.SampledWithoutReplacementDpEvent(spent.num_clients, spent.clients_per_round, noise)


@lru_cache
def _rdp(one: Spent) -> "NDArray[np.float64]":
    """The Renyi divergences of a round at the library's orders; half a second to compute, the same in every round."""
    return _accountant().compose(_round(one)).rdp
