"""Data sets, partitions and batches."""

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.examples import CropAndFlip, DataSet, Examples, Normalize
from fedpara.data.partition import IID, Dirichlet, Natural, Partition, Shards

__all__ = [
    "IID", "CropAndFlip", "DataSet", "Dirichlet", "Examples", "FederatedDataModule", "Natural", "Normalize",
    "Partition", "Shards",
]  # fmt: skip
