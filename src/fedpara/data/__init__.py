"""Data sets, partitions and batches."""

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.images import Images, ImageSet, crop_and_flip
from fedpara.data.partition import Dirichlet, iid

__all__ = ["Dirichlet", "FederatedDataModule", "ImageSet", "Images", "crop_and_flip", "iid"]
