"""FedProx (Li et al., MLSys 2020, Algorithm 2): a pull of each client towards the model it received."""

from typing import Annotated

from pydantic import Field, validate_call

from fedpara.algorithms.base import Correction, FedAvg
from fedpara.state import Parts, State


class FedProx(FedAvg):
    """Clients minimise F_k(w) + mu/2 ||w - w^t||^2; with mu = 0 this is FedAvg.

    Args:
        mu: weight of the proximal term; 0.1 in FedPara's Table 3.

    Example:
        >>> FedProx(mu=0.1).correction({"model": {}}, memory={}).proximal
        0.1
    """

    @validate_call
    def __init__(self, mu: Annotated[float, Field(ge=0)] = 0.1) -> None:
        self.mu = mu

    def correction(self, received: Parts, memory: State) -> Correction:
        """mu (w - w^t)."""
        return Correction(self.mu, received["model"])
