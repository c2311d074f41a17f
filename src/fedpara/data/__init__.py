"""Data sets, partitions and batches; configs name everything by this package."""

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.examples import CropAndFlip, DataSet, Examples, Normalize
from fedpara.data.partition import IID, Dirichlet, Natural, Partition, Shards
from fedpara.data.sets.cifar import cifar10, cifar100
from fedpara.data.sets.cinic10 import cinic10
from fedpara.data.sets.leaf import femnist
from fedpara.data.sets.mnist import fashion_mnist, mnist
from fedpara.data.sets.mnist_small import mnist_small
from fedpara.data.sets.shakespeare import shakespeare

__all__ = [
    "IID", "CropAndFlip", "DataSet", "Dirichlet", "Examples", "FederatedDataModule", "Natural", "Normalize",
    "Partition", "Shards", "cifar10", "cifar100", "cinic10", "fashion_mnist", "femnist", "mnist", "mnist_small",
    "shakespeare",
]  # fmt: skip
