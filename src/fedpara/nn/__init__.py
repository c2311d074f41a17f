"""FedPara's factorised weights: Propositions 1 to 3, rank rule, initialisation, Jacobian correction."""

from fedpara.nn.factorizations import Factorization, Hadamard, LowRank
from fedpara.nn.factorize import Dense, EqualSizeLowRank, FedPara, factorizations, factorize, merge
from fedpara.nn.jacobian import jacobian_correction, jacobian_penalty

__all__ = [
    "Dense",
    "EqualSizeLowRank",
    "Factorization",
    "FedPara",
    "Hadamard",
    "LowRank",
    "factorizations",
    "factorize",
    "jacobian_correction",
    "jacobian_penalty",
    "merge",
]
