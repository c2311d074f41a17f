"""Partitions of the examples over clients: pure functions of labels (or owners), number of clients and seed.

Each takes the training examples, `num_clients` and `seed`, and returns one sorted int64 index tensor per client. These
are disjoint and contain every example (`Natural`: every example of the owners that became clients). Nothing is cached:
each run computes its partition anew.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, validate_call
from torch import Tensor

from fedpara.data.examples import Examples

log = logging.getLogger(__name__)
PATIENCE_S = 3.0  # seconds before a line in the log


class ClientIndices:
    """Each client's indices, as slices of one tensor: 100,000 tensors of their own would take 80 MB more.

    Args:
        indices: (N,) int64, those of the first client, then those of the second, ...
        sizes: the number of each client's indices; their sum is N.
    """

    def __init__(self, indices: Tensor, sizes: Sequence[int] | np.ndarray) -> None:
        self.indices, self.sizes = indices, np.asarray(sizes)
        self._ends = self.sizes.cumsum()

    @classmethod
    def of(cls, parts: "list[Tensor] | ClientIndices") -> "ClientIndices":
        """The same indices as those of a list with a tensor for each client."""
        return parts if isinstance(parts, ClientIndices) else cls(torch.cat(parts), [len(part) for part in parts])

    @property
    def clients(self) -> np.ndarray:
        """(N,) the client of each index."""
        return np.arange(len(self)).repeat(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client: int) -> Tensor:
        return self.indices[self._ends[client] - self.sizes[client] : self._ends[client]]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.indices.split(self.sizes.tolist()))


class Partition(ABC):
    """Base class: assigns training examples to clients, and defines a client's own test distribution."""

    @abstractmethod
    def __call__(self, train: Examples, num_clients: int, seed: int) -> list[Tensor] | ClientIndices:
        """One sorted index tensor into `train` per client."""

    def test_part(self, own: Examples, test: Examples, seed: int) -> Tensor:
        """Indices of the test examples that follow a client's own distribution, that of its labels.

        If labels are not classes, these are all test examples, because nothing else shows the distribution.
        """
        if not own.have_classes:
            return torch.arange(len(test))
        return matching_part(own.labels, test.labels, seed)


def _require_enough(num_examples: int, num_clients: int, least: int) -> None:
    if num_examples < num_clients * least:
        raise ValueError(
            f"num_clients={num_clients}: needs at least {num_clients * least} training examples "
            f"({least} a client), there are {num_examples}"
        )


def _require_classes(train: Examples, name: str) -> None:
    if not train.have_classes:
        raise ValueError(f"partition={name}: the labels of the data set are not classes; take iid or natural")


class IID(Partition):
    """Random parts whose sizes differ by at most one example.

    Example:
        >>> train = Examples(torch.zeros(10, 1, dtype=torch.uint8), torch.arange(10) % 2)
        >>> [len(part) for part in IID()(train, num_clients=3, seed=0)]
        [4, 3, 3]
    """

    def __call__(self, train: Examples, num_clients: int, seed: int) -> ClientIndices:
        """The partition.

        Raises:
            ValueError: fewer examples than clients.
        """
        _require_enough(len(train), num_clients, least=1)
        order = np.random.default_rng(seed).permutation(len(train))
        sizes = len(train) // num_clients + (np.arange(num_clients) < len(train) % num_clients)
        client = np.empty_like(order)
        client[order] = np.arange(num_clients).repeat(sizes)
        return ClientIndices(torch.from_numpy(client.argsort(kind="stable")), sizes)


class Natural(Partition):
    """A client is an owner: a writer of FEMNIST, a speaking role of Shakespeare (LEAF, Caldas et al. 2018).

    If there are more owners than clients, `num_clients` of them are drawn at random; the others' examples are not used.

    Args:
        min_examples: owners with fewer training examples do not become clients.

    Example:
        >>> labels, owners = torch.zeros(25, dtype=torch.int64), torch.arange(25) // 10
        >>> train = Examples(torch.zeros(25, 1, dtype=torch.uint8), labels, owners)
        >>> [len(part) for part in Natural(min_examples=10)(train, num_clients=2, seed=0)]
        [10, 10]
    """

    @validate_call
    def __init__(self, min_examples: Annotated[int, Field(ge=1)] = 10) -> None:
        self.min_examples = min_examples

    def __call__(self, train: Examples, num_clients: int, seed: int) -> list[Tensor]:
        """The partition.

        Raises:
            ValueError: the data set knows no owners, or too few of them.
        """
        if train.owners is None:
            raise ValueError("partition=natural: the data set names no owners; take femnist or shakespeare")
        names, sizes = np.unique(train.owners.numpy(), return_counts=True)
        order = np.argsort(
            train.owners.numpy(), kind="stable"
        )  # once, because a pass for every owner would be quadratic
        parts = dict(zip(names, np.split(order, np.cumsum(sizes)[:-1]), strict=True))
        owners = names[sizes >= self.min_examples]
        if num_clients > len(owners):
            raise ValueError(
                f"num_clients={num_clients}: must be at most {len(owners)}, "
                f"the number of owners with {self.min_examples} training examples or more"
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(owners)[:num_clients])
        return [torch.from_numpy(parts[owner]) for owner in chosen]

    def test_part(self, own: Examples, test: Examples, seed: int) -> Tensor:
        """The owner's own test examples; if there are none, examples with the distribution of the owner's labels."""
        assert own.owners is not None
        if test.owners is not None and (test.owners == own.owners[0]).any():
            return (test.owners == own.owners[0]).nonzero()[:, 0]
        return super().test_part(own, test, seed)


class Shards(Partition):
    """At most `classes_per_client` classes a client (McMahan et al. 2017, section 3, the pathological non-IID split).

    Examples are cut into num_clients x classes_per_client shards of one class each; larger classes get more shards.
    Every client gets the same number of shards at random. (McMahan et al. cut the sorted list into equal shards, some
    of which contain two classes.)

    Args:
        classes_per_client: 2 in FedPara's MNIST experiments.

    Example:
        >>> train = Examples(torch.zeros(60, 1, dtype=torch.uint8), torch.arange(60) % 3)
        >>> [len(train[part].labels.unique()) <= 2 for part in Shards(classes_per_client=2)(train, 3, seed=0)]
        [True, True, True]
    """

    @validate_call
    def __init__(self, classes_per_client: Annotated[int, Field(ge=1)] = 2) -> None:
        self.classes_per_client = classes_per_client

    def __call__(self, train: Examples, num_clients: int, seed: int) -> list[Tensor]:
        """The partition.

        Raises:
            ValueError: fewer shards than classes, or fewer examples than shards.
        """
        labels = train.labels
        _require_enough(len(labels), num_clients, self.classes_per_client)
        _require_classes(train, "shards")
        generator = np.random.default_rng(seed)
        values, sizes = np.unique(labels.numpy(), return_counts=True)
        num_shards = num_clients * self.classes_per_client
        if num_shards < len(values):
            raise ValueError(
                f"classes_per_client={self.classes_per_client}: {num_clients} clients would leave out some of the "
                f"{len(values)} classes; must be {-(-len(values) // num_clients)} or more"
            )
        counts = np.ones(len(values), dtype=int)
        while counts.sum() < num_shards:  # the next shard to the class whose shards are the largest
            counts[np.argmax(sizes / counts)] += 1
        shards = [
            shard
            for value, count in zip(values, counts, strict=True)
            for shard in np.array_split(generator.permutation(np.flatnonzero(labels.numpy() == value)), count)
        ]
        hands = np.array_split(generator.permutation(num_shards), num_clients)
        return [torch.from_numpy(np.sort(np.concatenate([shards[i] for i in hand]))) for hand in hands]


class Dirichlet(Partition):
    """Label skew as in FedML (He et al. 2020), which FedPara follows with alpha = 0.5.

    For each class, the clients' shares are drawn from Dirichlet(alpha). A client that already has its equal share of
    all examples gets none of the class, but for one example that the last client may get, by rounding, as in FedML.
    The whole draw is repeated until every client has `min_examples`.

    Args:
        alpha: concentration; small values give skewed parts, large ones approach IID.
        min_examples: smallest number of examples of a client.
        max_draws: number of draws before giving up.

    Example:
        >>> train = Examples(torch.zeros(200, 1, dtype=torch.uint8), torch.arange(200) % 4)
        >>> parts = Dirichlet(alpha=0.5, min_examples=10)(train, num_clients=5, seed=0)
        >>> sum(len(part) for part in parts), min(len(part) for part in parts) >= 10
        (200, True)
    """

    @validate_call
    def __init__(
        self,
        alpha: Annotated[float, Field(gt=0)] = 0.5,
        min_examples: Annotated[int, Field(ge=1)] = 10,
        max_draws: Annotated[int, Field(ge=1)] = 1_000,
    ) -> None:
        self.alpha, self.min_examples, self.max_draws = alpha, min_examples, max_draws

    def __call__(self, train: Examples, num_clients: int, seed: int) -> list[Tensor]:
        """The partition.

        Raises:
            ValueError: too few examples for `min_examples` a client, or no draw in `max_draws` gave it.
        """
        labels = train.labels
        _require_enough(len(labels), num_clients, self.min_examples)
        _require_classes(train, "dirichlet")
        classes = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
        generator, begun = np.random.default_rng(seed), time.monotonic()
        for number in range(1, self.max_draws + 1):
            parts = self._draw(classes, len(labels), num_clients, generator)
            if parts is not None:
                return [torch.from_numpy(np.sort(part)) for part in parts]
            if time.monotonic() > begun + PATIENCE_S:
                begun = float("inf")
                log.info(
                    "partition: %d draws so far did not give every client %d examples; at most %d are tried",
                    number,
                    self.min_examples,
                    self.max_draws,
                )
        raise ValueError(
            f"alpha={self.alpha}: {self.max_draws} draws left a client below {self.min_examples} examples; "
            "take a larger alpha or fewer clients"
        )

    def _draw(
        self, classes: list[np.ndarray], num_examples: int, num_clients: int, generator: np.random.Generator
    ) -> list[np.ndarray] | None:
        """Each client's examples, or None if one has too few; they are counted first, because cutting is slower."""
        held, drawn = np.zeros(num_clients, dtype=int), []
        for members in classes:
            shares = generator.dirichlet(np.full(num_clients, self.alpha)) * (held < num_examples / num_clients)
            if not shares.sum() > 0:  # a tiny alpha underflows; the draw is repeated
                return None
            cuts = (np.cumsum(shares / shares.sum()) * len(members)).astype(int)[:-1]
            drawn.append((generator.permutation(members), cuts))
            held += np.diff(cuts, prepend=0, append=len(members))
        if held.min() < self.min_examples:
            return None
        pieces = [np.split(members, cuts) for members, cuts in drawn]
        return [np.concatenate([of_class[client] for of_class in pieces]) for client in range(num_clients)]


def matching_part(own: Tensor, labels: Tensor, seed: int) -> Tensor:
    """The largest part of a test set in which classes have the client's proportions: its own test distribution.

    Args:
        own: labels of the client's training examples.
        labels: labels of the test set.

    Returns:
        Sorted indices into the test set, one or more of each class. Classes that the test set lacks are left out.

    Raises:
        ValueError: it lacks all of them.
    """
    num_classes = int(max(own.max(), labels.max())) + 1
    shares = np.bincount(own.numpy(), minlength=num_classes) / len(own)
    available = np.bincount(labels.numpy(), minlength=num_classes)
    wanted = np.flatnonzero((shares > 0) & (available > 0))
    if not len(wanted):
        classes = ", ".join(map(str, np.flatnonzero(shares)))
        raise ValueError(
            f"none of the {len(labels)} test examples is of a client's classes, {classes}; take a larger max_test, or "
            "federation.evaluate_personal=false"
        )
    size = (available[wanted] / shares[wanted]).min()
    generator = np.random.default_rng(seed)
    parts = [
        generator.permutation(np.flatnonzero(labels.numpy() == c))[: max(1, int(shares[c] * size))] for c in wanted
    ]
    return torch.from_numpy(np.sort(np.concatenate(parts)))
