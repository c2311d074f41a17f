"""Tasks, results and the interface of every executor: where and how a round's clients are trained."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

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
        state: the whole model from which the client starts: the received part and its own.
        learning_rate_factor: factor of the optimizer's learning rate.
        correction: term added to the gradients before each step.
        seed: seed of batch order, augmentation and dropout, each of which has its own `substream`.
        attempt: number of times that the client has failed in this round; a retry trains on the same batches.
        personal: names in `state` that stay with the client.
    """

    client: int
    state: State
    learning_rate_factor: float
    seed: int
    correction: Correction = field(default_factory=Correction)
    attempt: int = 0
    personal: Sequence[str] = ()


@dataclass(frozen=True)
class LocalResult:
    """The result of one client's local training.

    Attributes:
        client: index of the client.
        state: the whole model after training.
        num_examples: number of the client's examples.
        num_steps: number of applied optimizer steps (with fp16 the scaler skips some).
        learning_rate_sum: sum of the learning rates of these steps.
        train_loss: mean loss over all examples of all local epochs, in nats.
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
        error: the error that the client raised, or would have raised; None if it was only absent.
        outside: whether the cause is outside of this run's configuration and data: an injected fault, or a problem of a
            client's own machine.
    """

    client: int
    kind: FailureKind
    error: Exception | None = None
    outside: bool = False

    @property
    def recurs(self) -> bool:
        """Whether the client is likely to fail again with the same configuration and data."""
        return self.kind in ("crashed", "out_of_memory") and not self.outside

    @property
    def reason(self) -> str:
        """The kind in one line, with the error if the client crashed."""
        error = f" ({' '.join(f'{type(self.error).__name__}: {self.error}'.split())[:200]})"
        return self.kind.replace("_", " ") + (error if self.kind == "crashed" else "")


def failure(client: int, error: Exception) -> ClientFailure:
    """The failure of a client that raised `error`; the error's frames are cleared, since they hold its tensors."""
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
        """The module in this process; it has the weights that were loaded last."""
        ...

    @property
    def datamodule(self) -> FederatedDataModule:
        """The clients' data."""
        ...

    @property
    def device(self) -> torch.device:
        """The device on which models are tested, and clients trained if that happens in this process."""
        ...

    @property
    def trainable(self) -> list[str]:
        """Names in the model's state that are trained; the others are buffers."""
        ...

    @property
    def workers(self) -> int:
        """Number of clients, or chunks of clients, that are trained at once."""
        ...

    def prepare(self) -> None:
        """Prepare the first round, once the data are there: check that the network takes them, choose, join a cluster.

        Raises:
            ValueError: the network does not take the data, or there is no cluster.
        """
        ...

    def rehearse(self) -> None:
        """Try one step of a client if a user's own objects take part, so that their errors appear at once.

        Raises:
            ValueError: clients cannot be trained with these objects.
        """
        ...

    def initial_state(self) -> State:
        """The state of the freshly built model."""
        ...

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Yield results lazily in the order of the tasks, so that one is held at a time; failures may come anywhere."""
        ...

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """The metrics that the module logs for a model on the whole test set, or on a client's own test distribution.

        For classification they are `acc` (0 to 1) and `loss` (nats).
        """
        ...

    def close(self) -> None:
        """End any other processes at once; another `run` starts them again."""
        ...


MakeExecutor = Callable[[LocalTraining], Executor]


class Around:
    """An executor around another one: what it does not define itself is the inner one's.

    Args:
        inner: the wrapped executor.
    """

    training: LocalTraining
    module: FederatedModule
    datamodule: FederatedDataModule
    device: torch.device
    trainable: list[str]

    def __init__(self, inner: Executor) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """Ask the inner executor for what this one lacks."""
        if name == "inner":  # not set yet, in a copy
            raise AttributeError(name)
        return getattr(self.inner, name)
