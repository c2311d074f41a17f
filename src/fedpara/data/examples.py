"""Labelled examples in memory, and batches of them, made on the device the examples are on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Key = tuple[Tensor, int]
Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Attributes:
        inputs: (N, ...) uint8: images (N, C, H, W), or texts (N, T) of character indices.
        labels: (N,) int64, from 0.
        owners: (N,) int64, whose each example is (its writer, its speaking role), the same number in train and test;
            None where a data set does not say.
    """

    inputs: Tensor
    labels: Tensor
    owners: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "Examples":
        owners = None if self.owners is None else self.owners[indices]
        return Examples(self.inputs[indices], self.labels[indices], owners)

    def to(self, device: torch.device) -> "Examples":
        """A copy on `device`; owners stay, no batch holds them."""
        return Examples(self.inputs.to(device), self.labels.to(device), self.owners)


@dataclass(frozen=True)
class DataSet:
    """A data set as its files give it.

    Attributes:
        prepare: a batch of inputs as stored to what the network takes: `Normalize`, `Tensor.long`.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    prepare: Prepare


class Normalize:
    """uint8 images to float, zero mean and unit variance.

    Args:
        mean, std: per channel, on the scale 0 to 1.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self._shift = 255 * torch.tensor(mean)[:, None, None]
        self._scale = 255 * torch.tensor(std)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), C as many as `mean` has."""
        if self._shift.device != pixels.device:
            self._shift, self._scale = self._shift.to(pixels.device), self._scale.to(pixels.device)
        return (pixels.float() - self._shift) / self._scale


class Transform(Protocol):
    """uint8 batch to uint8 batch, random only through the generator it is handed."""

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        ...


def crop_and_flip(pixels: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Zero-pad by `padding`, crop back at random, flip half of the images left to right; each image on its own.

    One gather over the whole batch (B, C, H, W), on the device of `pixels`.
    """
    size, channels, height, width = pixels.shape
    device = pixels.device
    padded = torch.nn.functional.pad(pixels, [padding] * 4)
    shift = torch.randint(2 * padding + 1, (2, size, 1), generator=generator).to(device)
    flip = torch.rand(size, 1, generator=generator).to(device) < 0.5
    columns = torch.arange(width, device=device)
    rows = shift[0] + torch.arange(height, device=device)
    columns = shift[1] + torch.where(flip, width - 1 - columns, columns)
    images = torch.arange(size, device=device)[:, None, None, None]
    return padded[
        images, torch.arange(channels, device=device)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches by key (indices, seed): a batch is a function of its key, whichever worker makes it.

    Args:
        examples: where batches are taken from.
        prepare: stored inputs to network inputs.
        transform: augmentation, or None.
    """

    def __init__(self, examples: Examples, prepare: Prepare, transform: Transform | None = None) -> None:
        self.examples, self.prepare, self.transform = examples, prepare, transform

    def to(self, device: torch.device) -> "Batches":
        """The same batches, made on `device`."""
        return Batches(self.examples.to(device), self.prepare, self.transform)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        indices, seed = key
        inputs, labels = self.examples.inputs[indices], self.examples.labels[indices]
        if self.transform is not None:
            inputs = self.transform(inputs, torch.Generator().manual_seed(seed))
        return self.prepare(inputs), labels


class EpochBatches(Sampler[Key]):
    """Keys of an epoch's batches: a fresh order for every epoch, a function of (seed, epoch) alone.

    Lightning calls `set_epoch` before each epoch. The last batch may be smaller; none is dropped.

    Args:
        indices: (n,) int64, the examples of one client.
        shuffle: whether order depends on the seed; otherwise as given.
    """

    def __init__(self, indices: Tensor, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.indices, self.batch_size, self.seed, self.shuffle = indices, batch_size, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=generator)]
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        yield from zip(order.split(self.batch_size), seeds.tolist(), strict=True)
