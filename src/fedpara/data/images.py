"""A labelled image set in memory, and batches of it, transformed on the device the images are on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Key = tuple[Tensor, int]


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64, from 0.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Images":
        """A copy on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageSet:
    """A data set as its file gives it: train, test, and the constants of its normalisation (per channel, 0 to 1)."""

    name: str
    train: Images
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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


class BatchedImages(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches by key (indices, seed): a batch is a function of its key, whichever worker makes it.

    Args:
        images: where batches are taken from.
        mean, std: per channel, on the scale 0 to 1.
        transform: augmentation, or None.
    """

    def __init__(
        self, images: Images, mean: tuple[float, ...], std: tuple[float, ...], transform: Transform | None = None
    ) -> None:
        device = images.pixels.device
        self.images, self.mean, self.std, self.transform = images, mean, std, transform
        self._shift = 255 * torch.tensor(mean, device=device)[:, None, None]
        self._scale = 255 * torch.tensor(std, device=device)[:, None, None]

    def to(self, device: torch.device) -> "BatchedImages":
        """The same batches, made on `device`."""
        return BatchedImages(self.images.to(device), self.mean, self.std, self.transform)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        indices, seed = key
        pixels, labels = self.images.pixels[indices], self.images.labels[indices]
        if self.transform is not None:
            pixels = self.transform(pixels, torch.Generator().manual_seed(seed))
        return (pixels.float() - self._shift) / self._scale, labels


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
