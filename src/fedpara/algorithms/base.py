"""FedAvg (McMahan et al., AISTATS 2017, Algorithm 1), and the interface of every algorithm.

FedPara's Algorithm 1 is FedAvg on the factors: it averages the factors, not the weights that they compose.

Algorithms differ at the client in data, not in code: each gives a `Correction` of the gradients. Client and server
remember and send states: the server its `Parts`, the client its memory. There is one local loop for all algorithms.

A link may round. So values that must agree on both ends are computed from decoded messages: a client's memory from its
upload as the server decodes it, and the server's step from the broadcast as the clients decoded it. The server adds the
step to its own model, which is never rounded, so that steps smaller than the rounding add up and are not lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Self

from torch.optim import Optimizer

from fedpara.state import Layout, Parts, State, join, separate, stepped, weighted_mean


@dataclass(frozen=True)
class Correction:
    """A term added to the gradients before each local step, `proximal * (w - anchor) + offset`, and a mask, by name.

    Attributes:
        proximal: weight of the pull towards `anchor`.
        anchor: target of the pull; parameters that it lacks are not pulled.
        offset: a constant; parameters that it lacks have none.
        trained: factors of the sum, which broadcast: 1 for what is trained, 0 for what is frozen; none: 1.
    """

    proximal: float = 0.0
    anchor: State = field(default_factory=dict)
    offset: State = field(default_factory=dict)
    trained: State = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """A message that the server received from one client.

    Attributes:
        parts: the result of the algorithm's `upload`, as the server decoded it.
        num_examples: number of the client's training examples.
    """

    parts: Parts
    num_examples: int


class FedAvg:
    """Broadcast the global model, average the clients' models by their numbers of examples.

    An algorithm object holds only constants. Its functions take the server's state and return the next one.

    Attributes:
        trainable: names in the shared part that are trained; the others are buffers.
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
        """A copy for one federation, with its trainable names and size; the original can serve other federations."""
        own = copy(self)
        own.trainable, own.num_clients = tuple(trainable), num_clients
        return own

    def require(self, optimizer: Optimizer) -> None:
        """Refuse a local optimizer that does not fit the algorithm's formulas; by default every optimizer is fine.

        Raises:
            ValueError: the message names the optimizer and an alternative.
        """

    def start(self, model: State) -> Parts:
        """The server's state before the first round.

        Args:
            model: the shared part of the initial model, buffers included.
        """
        return {"model": model}

    def broadcast(self, server: Parts) -> Parts:
        """The message from the server to each client of the round."""
        return {"model": server["model"]}

    def correction(self, received: Parts, memory: State) -> Correction:
        """The correction of a client's gradients; `memory` comes from its last round and is empty before that."""
        return Correction()

    def sent(self, received: Parts) -> State:
        """The received values of what clients send back of the model: all of it."""
        return received["model"]

    def upload(self, received: Parts, model: State, learning_rate_sum: float, memory: State) -> Parts:
        """The message from a client to the server after training.

        Args:
            model: the shared part of the client's model after training.
            learning_rate_sum: sum of the learning rates of the applied steps.
        """
        return {"model": model}

    def remember(self, received: Parts, sent: Parts, memory: State) -> State:
        """The state that a client remembers until its next round.

        Args:
            sent: its upload as the server decodes it.
        """
        return {}

    def remembered(self, server: Parts) -> Layout:
        """Names, shapes and types of the state that a client remembers."""
        return {}

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """The server's state for the next round, computed in one pass over the uploads.

        Args:
            received: the broadcast as the clients decoded it, from which they started.
        """
        return server | {"model": stepped(server["model"], received["model"], self.mean(uploads))}

    def mean(self, uploads: Iterable[Upload]) -> State:
        """The clients' mean model, each weighted by its number of examples, in one pass."""
        return weighted_mean((upload.parts["model"], upload.num_examples) for upload in uploads)


def uniform_mean(uploads: Iterable[Upload]) -> tuple[Parts, int]:
    """The mean with equal weights, and the number of clients, in one pass."""
    num_clients, names = 0, set[str]()

    def states() -> Iterator[tuple[State, float]]:
        nonlocal num_clients
        for upload in uploads:
            num_clients += 1
            names.update(upload.parts)
            yield join(upload.parts), 1

    mean = weighted_mean(states())
    return separate(mean, names), num_clients
