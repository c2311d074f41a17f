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
from fedpara.nn.nested import factor_names, narrow, ranks_at

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
    "factor_names",
    "factorizations",
    "factorize",
    "jacobian_correction",
    "jacobian_penalty",
    "merge",
    "narrow",
    "ranks_at",
    "stacked_factors",
]
