"""The federated data: one data set, partitioned over clients and given out in batches."""

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field, validate_call
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedpara.data.examples import Batches, DataSet, EpochBatches, Examples, LoneExample, Transform
from fedpara.data.partition import ClientIndices, Partition
from fedpara.sampling import derive_seed

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class FederatedDataModule(LightningDataModule):
    """Training batches of each client, and test batches of all.

    Args:
        dataset: a function that reads the data set; `setup` calls it once.
        partition: assigns the examples to the clients.
        num_clients: clients in total.
        num_classes, in_channels: shape of the data, for which the network is built; checked against the files. Texts
            have no channels: None. Labels that are numbers or masks have no classes: None.
        batch_size: examples in a local step; the last batch of an epoch may have fewer.
        eval_batch_size: examples in a test batch.
        class_range: the first class that is kept and the one after the last; they are labelled from 0. `num_classes` is
            their number. None: all.
        max_train, max_test: limits on the examples used, drawn at random, the same for all seeds; None: all.
        local_fraction: share of its training examples that each client keeps, drawn at random, at least one.
        validation: share of its training examples that each client holds out, drawn at random, at least one. They are
            tested in place of the test examples, of which none is kept: for choosing hyper-parameters. 0: off.
        lone_example: `keep`, `merge` or `drop` a last batch of a single example; see `EpochBatches`.
        transform: augmentation of training batches, or None.
        num_workers: processes that make batches; the batches do not depend on it.
        seed: seed of the partition.

    Attributes:
        parts: after `setup`, each client's indices into the training examples.
        prepare: after `setup`, the function that turns stored inputs into inputs of the network.
        examples: after `setup`, the training examples and those that are tested, on the CPU.
        flipped: clients that train on the label C - 1 - y in place of y; an attack sets it.

    Example:
        >>> from fedpara.data import IID, mnist_small
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> data.setup()
        >>> [data.num_examples(client) for client in range(3)]
        [400, 400, 400]
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        dataset: Any,
        partition: Partition,
        num_clients: Positive,
        num_classes: Positive | None,
        in_channels: Positive | None,
        batch_size: Positive,
        eval_batch_size: Positive = 500,
        class_range: tuple[NonNegative, Positive] | None = None,
        max_train: Positive | None = None,
        max_test: Positive | None = None,
        local_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0,
        validation: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        lone_example: LoneExample = "keep",
        transform: Transform | None = None,
        num_workers: NonNegative = 0,
        seed: NonNegative = 0,
    ) -> None:
        super().__init__()
        self.read: Callable[[], DataSet] = dataset
        self.partition = partition
        self.transform = transform
        self.num_classes, self.in_channels = num_classes, in_channels
        self.num_clients, self.batch_size, self.eval_batch_size = num_clients, batch_size, eval_batch_size
        self.class_range = class_range
        self.max_train, self.max_test, self.local_fraction = max_train, max_test, local_fraction
        self.validation, self.num_workers, self.seed, self.lone_example = validation, num_workers, seed, lone_example
        self.flipped: Collection[int] = ()
        self._tested: ClientIndices | None = None
        self._pinned = False

    def setup(self, stage: str | None = None) -> None:
        """Read the examples into memory and partition them.

        Raises:
            FileNotFoundError: files are missing and cannot be downloaded.
            ValueError: there are too few examples for the clients, or a file is damaged or of the wrong kind.
        """
        data = self.read()
        self.name, self.prepare = data.name, data.prepare
        if self.class_range is not None:
            data = _of_classes(data, *self.class_range)
        self._check(data)
        train, test = _capped(data.train, self.max_train), _capped(data.test, self.max_test)
        self.parts = ClientIndices.of(self.partition(train, self.num_clients, self.seed))
        if self.local_fraction < 1:
            self.parts, _ = self._split(self.local_fraction, "local fraction")
        if self.validation:
            test = self._hold_out(train)
        self.examples = train, test  # `_train` and `_test` may move to a GPU
        self._train, self._test = self._batches()

    def _batches(self) -> tuple[Batches, Batches]:
        train, test = self.examples
        return Batches(train, self.prepare, self.transform), Batches(test, self.prepare)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the batches on the CPU, so that copies on a GPU are not sent to workers as well."""
        state = dict(vars(self))
        if "examples" in state:
            state["_train"], state["_test"] = self._batches()
        return state

    def _hold_out(self, train: Examples) -> Examples:
        """Take `validation` of every client's examples out of `parts`; they are what is tested."""
        validation, self.parts = self._split(self.validation, "validation")
        if not self.parts.sizes.all():
            least = int((self.parts.sizes + validation.sizes).min())
            raise ValueError(f"validation={self.validation}: leaves no training example to a client that has {least}")
        self._tested = ClientIndices(torch.arange(len(validation.indices)), validation.sizes)
        return train[validation.indices]

    def _split(self, share: float, purpose: str) -> tuple[ClientIndices, ClientIndices]:
        """A random share of every client's indices, and the rest."""
        pairs = [_drawn(part, share, self._seed(client, purpose)) for client, part in enumerate(self.parts)]
        first, rest = zip(*pairs, strict=True)
        return ClientIndices.of(list(first)), ClientIndices.of(list(rest))

    def _seed(self, client: int, purpose: str) -> int:
        return derive_seed(self.seed, 0, client, purpose)

    def _check(self, data: DataSet) -> None:
        for name, part in (("training", data.train), ("test", data.test)):
            if not len(part) or len(part.inputs) != len(part):
                raise ValueError(f"{data.name}: {len(part.inputs)} {name} examples but {len(part)} labels")
            if data.num_classes is None:
                continue
            if not part.have_classes or part.labels.min() < 0 or part.labels.max() >= data.num_classes:
                raise ValueError(f"{data.name}: {name} labels must be whole numbers from 0 to {data.num_classes - 1}")
        found: dict[str, int | None] = {"num_classes": data.num_classes}
        found |= {"in_channels": data.train.inputs.shape[1]} if self.in_channels is not None else {}
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)}: {data.name} has {value}")

    def to(self, device: torch.device) -> None:
        """Move the examples to `device`, so that batches are made there.

        Worker processes make theirs on the CPU; for a GPU they are pinned, so that they travel while it computes.
        """
        self._pinned = bool(self.num_workers) and device.type == "cuda"
        if self.num_workers:
            return
        self._train, self._test = self._train.to(device), self._test.to(device)

    def num_examples(self, client: int) -> int:
        """Number of a client's training examples."""
        return int(self.parts.sizes[client])

    def test_part(self, client: int) -> Tensor:
        """Indices of the test examples that follow a client's own distribution; with `validation` its held-out ones."""
        if self._tested is not None:
            return self._tested[client]
        train, test = self.examples
        return self.partition.test_part(train[self.parts[client]], test, self._seed(client, "test part"))

    def require_test_parts(self) -> None:
        """Refuse a test set without any of a client's classes, before clients are trained for it.

        Raises:
            ValueError: one line, as of `test_part`.
        """
        train, test = self.examples
        if self._tested is None and train.have_classes:
            known = torch.isin(train.labels, test.labels)[self.parts.indices].double()
            of_client = np.bincount(self.parts.clients, known.numpy(), minlength=len(self.parts))
            for client in np.flatnonzero(of_client == 0).tolist():
                self.test_part(client)

    def client_dataloader(self, client: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """A client's training batches; their order is a function of (seed, epoch)."""
        batches = self._train
        if client in self.flipped:
            assert self.num_classes is not None
            batches = batches.flipped(self.num_classes)
        return self._loader(batches, self._keys(client, seed))

    def clients_with_a_lone_example(self) -> list[int]:
        """The clients with a training batch of a single example."""
        one_of = {size: client for client, size in enumerate(self.parts.sizes.tolist())}  # a client of each size
        alone = [size for size, client in one_of.items() if self._keys(client, seed=0).has_lone_example]
        return np.flatnonzero(np.isin(self.parts.sizes, alone)).tolist()

    def _keys(self, client: int, seed: int) -> EpochBatches:
        return EpochBatches(self.parts[client], self.batch_size, seed, lone_example=self.lone_example)

    def test_dataloader(self, client: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """The test set in its own order, or the part that follows a client's own distribution."""
        chosen = torch.arange(len(self.examples[1])) if client is None else self.test_part(client)
        return self._loader(self._test, EpochBatches(chosen, self.eval_batch_size, seed=0, shuffle=False))

    def _loader(self, batches: Batches, keys: EpochBatches) -> DataLoader[tuple[Tensor, Tensor]]:
        workers = min(self.num_workers, len(keys), os.cpu_count() or 1)
        own = torch.Generator()  # leaves the global one to dropout
        return DataLoader(
            cast(Dataset, batches), None, sampler=keys, num_workers=workers, generator=own, pin_memory=self._pinned
        )


def _of_classes(data: DataSet, first: int, end: int) -> DataSet:
    """The examples of the classes from `first` to the one before `end`, labelled from 0."""
    if data.num_classes is None or not first < end <= data.num_classes:
        found = "no classes" if data.num_classes is None else f"the classes 0 to {data.num_classes - 1}"
        raise ValueError(f"class_range={[first, end]}: must be a first class and a later end, {data.name} has {found}")
    parts = []
    for whole in (data.train, data.test):
        part = whole[((whole.labels >= first) & (whole.labels < end)).nonzero().flatten()]
        parts.append(replace(part, labels=part.labels - first))
    return replace(data, train=parts[0], test=parts[1], num_classes=end - first)


def _drawn(part: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random share of the indices, at least one of them, and the rest; both sorted."""
    size = max(1, round(share * len(part)))
    if size == len(part):
        return part, part[:0]
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return part[order[:size]].sort().values, part[order[size:]].sort().values


def _capped(examples: Examples, largest: int | None) -> Examples:
    """At most `largest` examples in their order, the same ones in every run; None: all."""
    if largest is None or largest >= len(examples):
        return examples
    generator = torch.Generator().manual_seed(derive_seed(0, 0, 0, "cap"))
    return examples[torch.randperm(len(examples), generator=generator)[:largest].sort().values]
