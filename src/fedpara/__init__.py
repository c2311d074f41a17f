"""FedPara and pFedPara (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022): communication-efficient federated learning.

The names that a program of your own needs, each imported when it is first asked for: `import fedpara` alone is quick.

Example:
    >>> import fedpara
    >>> from torch import nn
    >>> network = fedpara.factorize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), fedpara.FedPara())
    >>> sum(parameter.numel() for parameter in fedpara.merge(network).parameters())
    4810
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpara.algorithms import FedAdam, FedAvg, FedDyn, FedProx, Scaffold
    from fedpara.communication import Cast, Link, StochasticUniform
    from fedpara.cost import cost_to_target
    from fedpara.data import IID, DataSet, Dirichlet, Examples, FederatedDataModule, Natural, Normalize, Shards
    from fedpara.execution import LocalTraining, ProcessesExecutor, SerialExecutor, VectorizedExecutor
    from fedpara.federation import Federation
    from fedpara.models import MLP, VGG, ClassificationModule, FederatedModule
    from fedpara.nn import Dense, EqualSizeLowRank, FedPara, PFedPara, factorizations, factorize, merge
    from fedpara.sharing import Split

__version__ = "0.1.0"
__all__ = [
    "Cast", "ClassificationModule", "DataSet", "Dense", "Dirichlet", "EqualSizeLowRank", "Examples", "FedAdam",
    "FedAvg", "FedDyn", "FedPara", "FedProx", "FederatedDataModule", "FederatedModule", "Federation", "IID", "Link",
    "LocalTraining", "MLP", "Natural", "Normalize", "PFedPara", "ProcessesExecutor", "Scaffold", "SerialExecutor",
    "Shards", "Split", "StochasticUniform", "VGG", "VectorizedExecutor", "cost_to_target", "factorizations",
    "factorize", "merge",
]  # fmt: skip
_HOMES = {
    "algorithms": {"FedAdam", "FedAvg", "FedDyn", "FedProx", "Scaffold"},
    "communication": {"Cast", "Link", "StochasticUniform"},
    "cost": {"cost_to_target"},
    "data": {"DataSet", "Dirichlet", "Examples", "FederatedDataModule", "IID", "Natural", "Normalize", "Shards"},
    "execution": {"LocalTraining", "ProcessesExecutor", "SerialExecutor", "VectorizedExecutor"},
    "federation": {"Federation"},
    "models": {"ClassificationModule", "FederatedModule", "MLP", "VGG"},
    "nn": {"Dense", "EqualSizeLowRank", "FedPara", "PFedPara", "factorizations", "factorize", "merge"},
    "sharing": {"Split"},
}


def __getattr__(name: str) -> object:
    """A public name from its package (PEP 562): torch takes seconds to import, and not every program needs it."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"fedpara.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
