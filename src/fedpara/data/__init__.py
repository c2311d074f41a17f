"""Data sets, partitions and batches."""

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.examples import DataSet, Examples, Normalize, crop_and_flip
from fedpara.data.partition import IID, Dirichlet, Natural, Partition, Shards

__all__ = [
    "IID", "DataSet", "Dirichlet", "Examples", "FederatedDataModule", "Natural", "Normalize", "Partition", "Shards",
    "crop_and_flip",
]  # fmt: skip
