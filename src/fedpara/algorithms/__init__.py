"""Federated algorithms: one paper, one file; each is named by its own module in its yaml."""

from fedpara.algorithms.base import Correction, FedAvg, Upload

__all__ = ["Correction", "FedAvg", "Upload"]
