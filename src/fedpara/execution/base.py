"""Tasks, results and the interface of every executor: where and how a round's clients are trained."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from fedpara.algorithms.base import Correction
from fedpara.data.datamodule import FederatedDataModule
from fedpara.state import State


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round.

    Attributes:
        client: index of the client, which names its data.
        state: the whole model the client starts from: what it received and what it kept.
        learning_rate_factor: multiplies the optimizer's learning rate.
        correction: what is added to the gradients before each step.
        seed: of batch order, augmentation and dropout.
    """

    client: int
    state: State
    learning_rate_factor: float
    seed: int
    correction: Correction = field(default_factory=Correction)


@dataclass(frozen=True)
class LocalResult:
    """What one client's local training gave.

    Attributes:
        client: index of the client.
        state: the whole model after training.
        num_examples: examples of the client.
        num_steps: optimizer steps that were applied (under fp16 the scaler skips some).
        learning_rate_sum: sum of their learning rates.
        train_loss: mean over all examples of all local epochs, in nats.
        seconds: wall time of the training.
    """

    client: int
    state: State
    num_examples: int
    num_steps: int
    learning_rate_sum: float
    train_loss: float
    seconds: float


class Executor(Protocol):
    """Trains clients and tests models.

    Attributes:
        datamodule: the clients' data.
        trainable: names of the model's state that are trained; the rest are buffers.
    """

    datamodule: FederatedDataModule
    trainable: list[str]

    def initial_state(self) -> State:
        """The state of the freshly built model."""
        ...

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult]:
        """Results in the order of the tasks, as they come, so that no more than one need be held."""
        ...

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """`acc` (0 to 1) and `loss` (nats) of a model on the whole test set, or on a client's own test distribution."""
        ...
