"""FedAvg (McMahan et al., AISTATS 2017, Algorithm 1), and the interface of every algorithm.

FedPara's Algorithm 1 is FedAvg on the factors: the factors are averaged, not the weights they compose.

What a client does differently is data, not code: a `Correction` of its gradients. What client and server remember and
send is states: the server's `Parts`, the client's memory. There is one local loop, and it knows no algorithm.

What both ends are to hold alike is computed from what travelled, which a link may have rounded: a client's memory from
its upload as the server decodes it, the server's step from the broadcast as the clients decoded it. The server adds the
step to its own model, which no broadcast rounds: steps smaller than the rounding are summed up and not lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Self

from torch.optim import Optimizer

from fedpara.state import Layout, Parts, State, join, separate, weighted_mean


@dataclass(frozen=True)
class Correction:
    """Added to the gradients before each local step: `proximal * (w - anchor) + offset`, by name.

    Attributes:
        proximal: weight of the pull towards `anchor`.
        anchor: where the pull goes; names it lacks are not pulled.
        offset: a constant; names it lacks have none.
    """

    proximal: float = 0.0
    anchor: State = field(default_factory=dict)
    offset: State = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """What the server received from one client.

    Attributes:
        parts: what the algorithm's `upload` returned, after the wire.
        num_examples: training examples of the client.
    """

    parts: Parts
    num_examples: int


class FedAvg:
    """Broadcast the global model, average the clients' models by their numbers of examples.

    An algorithm holds its own constants, and nothing that a round changes: the server's state goes in and comes out.

    Attributes:
        trainable: names of the shared part that are trained; the rest are buffers.
        num_clients: N, the clients of the federation.

    Example:
        >>> import torch
        >>> algorithm, model = FedAvg(), {"w": torch.zeros(1)}
        >>> received = algorithm.broadcast({"model": model})
        >>> clients = ((torch.tensor([1.0]), 30), (torch.tensor([5.0]), 10))
        >>> uploads = [Upload({"model": {"w": w}}, num_examples) for w, num_examples in clients]
        >>> algorithm.aggregate({"model": model}, received, uploads)["model"]
        {'w': tensor([2.])}
    """

    trainable: Sequence[str] = ()
    num_clients: int = 0

    def bound(self, trainable: Iterable[str], num_clients: int) -> Self:
        """A copy for one federation, which knows what it trains and its size; the object itself may serve others."""
        own = copy(self)
        own.trainable, own.num_clients = tuple(trainable), num_clients
        return own

    def require(self, optimizer: Optimizer) -> None:
        """Refuse a local optimizer under which the algorithm's arithmetic means nothing; by default every one will do.

        Raises:
            ValueError: what it is, and what to take instead.
        """

    def start(self, model: State) -> Parts:
        """What the server keeps, before the first round.

        Args:
            model: the shared part of the initial model, buffers included.
        """
        return {"model": model}

    def broadcast(self, server: Parts) -> Parts:
        """What the server sends to each client of the round."""
        return {"model": server["model"]}

    def correction(self, received: Parts, memory: State) -> Correction:
        """What a client adds to its gradients; `memory` is what its last upload left, or empty."""
        return Correction()

    def upload(self, received: Parts, model: State, learning_rate_sum: float, memory: State) -> Parts:
        """What a client sends after training.

        Args:
            model: the shared part of the client's model after training.
            learning_rate_sum: sum of the learning rates of the steps that were applied.
        """
        return {"model": model}

    def remember(self, received: Parts, sent: Parts, memory: State) -> State:
        """What a client remembers until its next round.

        Args:
            sent: its upload, as the server decodes it.
        """
        return {}

    def remembered(self, server: Parts) -> Layout:
        """Names, shapes and types of what a client remembers."""
        return {}

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """What the server keeps for the next round, in one pass over the uploads.

        Args:
            received: the broadcast, as the clients decoded it: where they started.
        """
        mean = weighted_mean((upload.parts["model"], upload.num_examples) for upload in uploads)
        return server | {"model": mean}


def uniform_mean(uploads: Iterable[Upload]) -> tuple[Parts, int]:
    """The mean in which every client weighs the same, and the number of clients, in one pass."""
    num_clients, names = 0, set[str]()

    def states() -> Iterator[tuple[State, float]]:
        nonlocal num_clients
        for upload in uploads:
            num_clients += 1
            names.update(upload.parts)
            yield join(upload.parts), 1

    mean = weighted_mean(states())
    return separate(mean, names), num_clients


def only(names: Iterable[str], state: State) -> State:
    """`state` cut to `names`."""
    return {name: state[name] for name in names}
