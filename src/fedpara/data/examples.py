"""Labelled examples in memory, and batches, which are made on the device of the examples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, validate_call
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fedpara.sampling import substream

Key = tuple[Tensor, int]
Batch = tuple[Tensor, Tensor]
Prepare = Callable[[Tensor], Tensor]
LoneExample = Literal["keep", "merge", "drop"]


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Attributes:
        inputs: (N, ...) uint8: images (N, C, H, W), or texts (N, T) of character indices.
        labels: (N,) int64, from 0; or (N, ...) of any type if they are not classes, such as numbers or masks.
        owners: (N,) int64, whose each example is (its writer, its speaking role), the same number in train and test;
            None where a data set does not say.

    Example:
        >>> examples = Examples(torch.zeros(6, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> len(examples), examples[torch.tensor([1, 2])].labels.tolist()
        (6, [1, 2])
    """

    inputs: Tensor
    labels: Tensor
    owners: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def have_classes(self) -> bool:
        """Whether each label is a whole number, as that of a class."""
        return self.labels.dtype == torch.int64 and self.labels.dim() == 1

    def __getitem__(self, indices: Tensor) -> "Examples":
        owners = None if self.owners is None else self.owners[indices]
        return Examples(self.inputs[indices], self.labels[indices], owners)

    def to(self, device: torch.device) -> "Examples":
        """A copy on `device`; owners stay where they are, as batches do not contain them."""
        return Examples(self.inputs.to(device), self.labels.to(device), self.owners)


@dataclass(frozen=True)
class DataSet:
    """A data set as it is stored in files.

    Attributes:
        num_classes: None if labels are not classes, for a module of your own.
        prepare: a batch of inputs as stored to the network's input: `Normalize`, `Tensor.long`, or a callable of your
            own. Clients on machines of their own (`fedpara.deployment`) make it again from what its `to_words` gives.

    Example:
        >>> part = Examples(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> DataSet("stripes", train=part, test=part, num_classes=2, prepare=Normalize((0.5,), (0.25,))).name
        'stripes'
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int | None
    prepare: Prepare


class Normalize:
    """Turns uint8 images into floats with zero mean and unit variance.

    Args:
        mean, std: values per channel, on the scale 0 to 1.

    Example:
        >>> Normalize(mean=(0.5,), std=(0.25,))(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[-2.0, 2.0]]]]
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std
        self._shift = 255 * torch.tensor(mean)[:, None, None]
        self._scale = 255 * torch.tensor(std)[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; `mean` has C values."""
        if self._shift.device != pixels.device:
            self._shift, self._scale = self._shift.to(pixels.device), self._scale.to(pixels.device)
        return (pixels.float() - self._shift) / self._scale

    def to_words(self) -> dict[str, Any]:
        """The `_target_` and the arguments with which Hydra makes it again, in types that JSON has."""
        return {"_target_": "fedpara.data.Normalize", "mean": list(self.mean), "std": list(self.std)}


@runtime_checkable
class Transform(Protocol):
    """Augmentation of a uint8 batch. Random numbers are drawn beforehand, so that no batch waits for them."""

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw random numbers (size, ...) on the CPU, one row for each example."""
        ...

    def __call__(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """(B, C, H, W) and the drawn numbers, on one device, to (B, C, H, W)."""
        ...


class CropAndFlip:
    """Pads with zeros, crops at random, and flips half of the images left to right; each image on its own.

    Args:
        padding: pixels on each side.
    """

    @validate_call
    def __init__(self, padding: Annotated[int, Field(ge=0)] = 4) -> None:
        self.padding = padding

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw (size, 3): rows and columns to shift by, and whether to flip."""
        shift = torch.randint(2 * self.padding + 1, (2, size, 1), generator=generator)
        flip = torch.rand(size, 1, generator=generator) < 0.5
        return torch.cat([*shift, flip], dim=1)

    def __call__(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Crop and flip the whole batch in one gather."""
        size, channels, height, width = pixels.shape
        index = partial(torch.arange, device=pixels.device)
        padded = torch.nn.functional.pad(pixels, [self.padding] * 4)
        down, right, flip = drawn[:, :, None].unbind(1)
        rows = down + index(height)
        columns = right + torch.where(flip.bool(), width - 1 - index(width), index(width))
        return padded[
            index(size)[:, None, None, None], index(channels)[:, None, None], rows[:, None, :, None],
            columns[:, None, None, :],
        ]  # fmt: skip


class Batches(Dataset[Batch]):
    """Whole batches by key (indices, seed): a batch depends only on its key, not on the worker that makes it.

    Args:
        examples: the examples of the batches.
        prepare: turns stored inputs into inputs of the network.
        transform: augmentation, or None.
    """

    def __init__(self, examples: Examples, prepare: Prepare, transform: Transform | None = None) -> None:
        self.examples, self.prepare, self.transform = examples, prepare, transform

    def to(self, device: torch.device) -> "Batches":
        """The same batches, made on `device`."""
        return Batches(self.examples.to(device), self.prepare, self.transform)

    def flipped(self, num_classes: int) -> "Batches":
        """The same batches with the label C - 1 - y in place of y."""
        labels = num_classes - 1 - self.examples.labels
        return Batches(replace(self.examples, labels=labels), self.prepare, self.transform)

    def __getitem__(self, key: Key) -> Batch:
        (batch,) = self.epoch([key])
        return batch

    def epoch(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of several keys; indices and random draws go to the examples' device once, for all of them."""
        keys = list(keys)
        device, sizes = self.examples.labels.device, [len(indices) for indices, _ in keys]
        indices = _moved([indices for indices, _ in keys], device)
        drawn: Sequence[Tensor | None] = [None] * len(keys)
        if self.transform is not None:
            draws = [self.transform.draw(len(i), torch.Generator().manual_seed(seed)) for i, seed in keys]
            drawn = _moved(draws, device).split(sizes)
        for chosen, random in zip(indices.split(sizes), drawn, strict=True):
            inputs, labels = self.examples.inputs[chosen], self.examples.labels[chosen]
            if self.transform is not None and random is not None:
                inputs = self.transform(inputs, random)
            yield self.prepare(inputs), labels


def _moved(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The parts as one tensor on `device`."""
    whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    return whole if whole.device == device else whole.pin_memory().to(device, non_blocking=True)


class EpochBatches(Sampler[Key]):
    """Keys of an epoch's batches, in a new order for every epoch that depends only on (seed, epoch).

    Lightning calls `set_epoch` before each epoch. The last batch may be smaller.

    Args:
        indices: (n,) int64, the examples of one client.
        shuffle: whether to shuffle; otherwise the order is that of `indices`.
        lone_example: treatment of a last batch of a single example, on which batch norms cannot train: `keep` it,
            `merge` it into the batch before, or `drop` it in that epoch. A client's only example is always kept.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, seed: int, shuffle: bool = True, lone_example: LoneExample = "keep"
    ) -> None:
        self.indices, self.batch_size, self.seed, self.shuffle = indices, batch_size, seed, shuffle
        self.lone_example = lone_example
        self._alone = len(indices) > 1 and len(indices) % batch_size == 1 and lone_example != "keep"
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def num_examples(self) -> int:
        """Number of examples in an epoch."""
        return len(self.indices) - (self._alone and self.lone_example == "drop")

    @property
    def has_lone_example(self) -> bool:
        """Whether a batch holds a single example."""
        return self.batch_size == 1 or (len(self.indices) % self.batch_size == 1 and not self._alone)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size) - self._alone

    def _split(self, order: Tensor) -> list[Tensor]:
        batches = list(order.split(self.batch_size))
        if self._alone:
            *batches, last = batches
            if self.lone_example == "merge":
                batches[-1] = torch.cat([batches[-1], last])
        return batches

    def __iter__(self) -> Iterator[Key]:
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=self._stream("batch order"))]
        seeds = torch.randint(2**62, (len(self),), generator=self._stream("augmentation"))
        yield from zip(self._split(order), seeds.tolist(), strict=True)

    def _stream(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(substream(self.seed, purpose, self.epoch))
