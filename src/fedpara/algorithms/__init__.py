"""Federated algorithms: one paper, one file."""

from fedpara.algorithms.base import FedAvg, Upload

__all__ = ["FedAvg", "Upload"]
