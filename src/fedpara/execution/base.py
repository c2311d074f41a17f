"""Tasks, results and the interface of every executor: where and how a round's clients are trained."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch

from fedpara.algorithms.base import Correction
from fedpara.data.datamodule import FederatedDataModule
from fedpara.execution.training import LocalTraining
from fedpara.models.contract import FederatedModule
from fedpara.state import State

FailureKind = Literal["dropped", "late", "diverged", "crashed", "out_of_memory"]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round.

    Attributes:
        client: index of the client, which names its data.
        state: the whole model the client starts from: what it received and what it kept.
        learning_rate_factor: multiplies the optimizer's learning rate.
        correction: what is added to the gradients before each step.
        seed: of batch order, augmentation and dropout, each of which has a `substream` of its own.
        attempt: how often the client has failed in this round; a second try trains on the same batches.
    """

    client: int
    state: State
    learning_rate_factor: float
    seed: int
    correction: Correction = field(default_factory=Correction)
    attempt: int = 0


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


@dataclass(frozen=True)
class ClientFailure:
    """A client that returned nothing usable in this round.

    Attributes:
        client: index of the client.
        kind: `dropped` never answered, `late` answered after the deadline, `diverged` returned NaN or infinite values,
            `crashed` and `out_of_memory` raised.
        error: what the client raised, or would have; None for one that was merely absent.
        outside: whether its cause is outside of this run's configuration and data: injected, or on a client's own
            machine.
    """

    client: int
    kind: FailureKind
    error: Exception | None = None
    outside: bool = False

    @property
    def recurs(self) -> bool:
        """Whether the same configuration and data may be expected to make the client fail again."""
        return self.kind in ("crashed", "out_of_memory") and not self.outside

    @property
    def reason(self) -> str:
        """The kind, and the error of one that crashed, in one line."""
        error = f" ({' '.join(f'{type(self.error).__name__}: {self.error}'.split())[:200]})"
        return self.kind.replace("_", " ") + (error if self.kind == "crashed" else "")


def failure(client: int, error: Exception) -> ClientFailure:
    """The failure of a client that raised `error`, whose frames are emptied: they hold the client's tensors."""
    traceback.clear_frames(error.__traceback__)
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return ClientFailure(client, "out_of_memory" if memory else "crashed", error)


class Executor(Protocol):
    """Trains clients and tests models."""

    @property
    def training(self) -> LocalTraining:
        """How one client is trained."""
        ...

    @property
    def module(self) -> FederatedModule:
        """The module in this process, whose weights are those of whatever was loaded last."""
        ...

    @property
    def datamodule(self) -> FederatedDataModule:
        """The clients' data."""
        ...

    @property
    def device(self) -> torch.device:
        """Where models are tested, and clients trained where that is in this process."""
        ...

    @property
    def max_epochs(self) -> int:
        """Local epochs of a client."""
        ...

    @property
    def trainable(self) -> list[str]:
        """Names of the model's state that are trained; the rest are buffers."""
        ...

    @property
    def workers(self) -> int:
        """Clients, or chunks of clients, in training at once."""
        ...

    def prepare(self) -> None:
        """Before the first round, with the data at hand: see that the network takes them, choose, join a cluster.

        Raises:
            ValueError: it does not, or there is none.
        """
        ...

    def rehearse(self) -> None:
        """Train a step of a client where a user's objects take part, so that what they refuse is said at once.

        Raises:
            ValueError: a client cannot be trained with them.
        """
        ...

    def initial_state(self) -> State:
        """The state of the freshly built model."""
        ...

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Results in the order of the tasks, as they come, so that no more than one need be held; failures anywhere."""
        ...

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """What the module logs of a model on the whole test set, or on a client's own test distribution.

        Of classification `acc` (0 to 1) and `loss` (nats).
        """
        ...

    def close(self) -> None:
        """End at once what runs beside this process, if anything does; another `run` would start it again."""
        ...


MakeExecutor = Callable[[LocalTraining], Executor]


class Around:
    """An executor around another: all that it does not do itself, the other does, word for word.

    Args:
        inner: the other one.
    """

    def __init__(self, inner: Executor) -> None:
        self.inner = inner

    @property
    def training(self) -> LocalTraining:
        """As of the inner executor."""
        return self.inner.training

    @property
    def module(self) -> FederatedModule:
        """As of the inner executor."""
        return self.inner.module

    @property
    def datamodule(self) -> FederatedDataModule:
        """As of the inner executor."""
        return self.inner.datamodule

    @property
    def device(self) -> torch.device:
        """As of the inner executor."""
        return self.inner.device

    @property
    def max_epochs(self) -> int:
        """As of the inner executor."""
        return self.inner.max_epochs

    @property
    def trainable(self) -> list[str]:
        """As of the inner executor."""
        return self.inner.trainable

    @property
    def workers(self) -> int:
        """As of the inner executor."""
        return self.inner.workers

    def prepare(self) -> None:
        """As of the inner executor."""
        self.inner.prepare()

    def rehearse(self) -> None:
        """As of the inner executor."""
        self.inner.rehearse()

    def initial_state(self) -> State:
        """As of the inner executor."""
        return self.inner.initial_state()

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """As of the inner executor."""
        return self.inner.run(tasks)

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """As of the inner executor."""
        return self.inner.evaluate(state, client)

    def close(self) -> None:
        """As of the inner executor."""
        self.inner.close()
