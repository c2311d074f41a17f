"""The federated data: one image set, partitioned over clients, served as batches."""

import os
from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
from pydantic import Field, validate_call
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedpara.data.images import BatchedImages, EpochBatches, ImageSet, Transform
from fedpara.data.partition import Partition, matching_part
from fedpara.sampling import derive_seed

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class FederatedDataModule(LightningDataModule):
    """Train batches of each client and test batches of all.

    Args:
        dataset: reads the image set; called once, in `setup`.
        partition: labels, number of clients and seed to one index tensor per client.
        num_clients: clients in total.
        num_classes, in_channels: shape of the data, for which the network is built; checked against the files.
        batch_size: examples of a local step; a client's last batch of an epoch may hold fewer.
        eval_batch_size: examples of a test batch.
        max_train, max_test: cap the examples used, drawn at random once for all seeds; None: all.
        transform: augmentation of training batches, or None.
        num_workers: processes that make batches; batches are the same with any number.
        seed: of the partition.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        dataset: Any,
        partition: Any,
        num_clients: Positive,
        num_classes: Positive,
        in_channels: Positive,
        batch_size: Positive,
        eval_batch_size: Positive = 500,
        max_train: Positive | None = None,
        max_test: Positive | None = None,
        transform: Any = None,
        num_workers: NonNegative = 0,
        seed: NonNegative = 0,
    ) -> None:
        super().__init__()
        self.read: Callable[[], ImageSet] = dataset
        self.partition: Partition = partition
        self.transform: Transform | None = transform
        self.num_classes, self.in_channels = num_classes, in_channels
        self.num_clients, self.batch_size, self.eval_batch_size = num_clients, batch_size, eval_batch_size
        self.max_train, self.max_test = max_train, max_test
        self.num_workers, self.seed = num_workers, seed

    def setup(self, stage: str | None = None) -> None:
        """Read the images into memory and partition them.

        Raises:
            FileNotFoundError: files are missing and cannot be downloaded.
            ValueError: too few examples for the clients, or files that are not what they should be.
        """
        images = self.read()
        self.name = images.name
        self._check_shape(images)
        train = images.train[_subset(len(images.train), self.max_train)]
        test = images.test[_subset(len(images.test), self.max_test)]
        self.parts = self.partition(train.labels, self.num_clients, self.seed)
        self._train = BatchedImages(train, images.mean, images.std, self.transform)
        self._test = BatchedImages(test, images.mean, images.std)

    def _check_shape(self, images: ImageSet) -> None:
        found = {"num_classes": images.num_classes, "in_channels": images.train.pixels.shape[1]}
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)}: {images.name} has {value}")

    def to(self, device: torch.device) -> None:
        """Keep the images on `device` from now on, so that batches are made there; workers make theirs on the CPU."""
        if self.num_workers:
            return
        self._train, self._test = self._train.to(device), self._test.to(device)

    def num_examples(self, client: int) -> int:
        """Training examples of a client."""
        return len(self.parts[client])

    def client_dataloader(self, client: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """A client's training batches; their order is a function of (seed, epoch)."""
        return self._loader(self._train, EpochBatches(self.parts[client], self.batch_size, seed))

    def test_dataloader(self, client: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """The test set in its own order, or the part of it that has a client's own distribution (`matching_part`)."""
        labels = self._test.images.labels.cpu()
        chosen = torch.arange(len(labels))
        if client is not None:
            own = self._train.images.labels.cpu()[self.parts[client]]
            chosen = matching_part(own, labels, derive_seed(self.seed, 0, client, "test part"))
        return self._loader(self._test, EpochBatches(chosen, self.eval_batch_size, seed=0, shuffle=False))

    def _loader(self, batches: BatchedImages, keys: EpochBatches) -> DataLoader[tuple[Tensor, Tensor]]:
        workers = min(self.num_workers, len(keys), os.cpu_count() or 1)
        return DataLoader(cast(Dataset, batches), batch_size=None, sampler=keys, num_workers=workers)


def _subset(size: int, largest: int | None) -> Tensor:
    """Sorted indices of `largest` examples, the same in every run; all where None."""
    if largest is None or largest >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:largest].sort().values
