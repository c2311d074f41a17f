"""Federated algorithms, one file per paper; configs name them by this package."""

from fedpara.algorithms.base import Correction, FedAvg, Upload
from fedpara.algorithms.fedavgm import FedAvgM
from fedpara.algorithms.feddyn import FedDyn
from fedpara.algorithms.fedluar import FedLUAR
from fedpara.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from fedpara.algorithms.fedprox import FedProx
from fedpara.algorithms.scaffold import Scaffold

__all__ = [
    "Correction", "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedDyn", "FedLUAR", "FedProx", "FedYogi", "Scaffold",
    "Upload",
]  # fmt: skip
