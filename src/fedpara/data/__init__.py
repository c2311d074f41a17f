"""Data sets, partitions and batches."""

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.images import Images, ImageSet, crop_and_flip
from fedpara.data.partition import Dirichlet, Shards, iid

__all__ = ["Dirichlet", "FederatedDataModule", "ImageSet", "Images", "Shards", "crop_and_flip", "iid"]
