"""FedPara's factorised weights: Propositions 1 to 3, rank rule, initialisation, Jacobian correction; FedMUD."""

from fedpara.nn.factorizations import Factorization, Hadamard, LowRank, PersonalHadamard
from fedpara.nn.factorize import (
    Dense,
    EqualSizeLowRank,
    FedPara,
    PFedPara,
    factorizations,
    factorize,
    merge,
    stacked_factors,
)
from fedpara.nn.jacobian import jacobian_correction, jacobian_penalty
from fedpara.nn.mud import MUD

__all__ = [
    "Dense",
    "EqualSizeLowRank",
    "Factorization",
    "FedPara",
    "Hadamard",
    "LowRank",
    "MUD",
    "PFedPara",
    "PersonalHadamard",
    "factorizations",
    "factorize",
    "jacobian_correction",
    "jacobian_penalty",
    "merge",
    "stacked_factors",
]
