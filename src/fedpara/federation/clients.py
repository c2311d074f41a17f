"""The clients as the server's partner: the server asks and they answer, in this process or on other machines."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedpara.execution.base import ClientFailure, Executor, LocalResult
from fedpara.federation.client import Broadcast, ClientSide, Reply
from fedpara.federation.store import ClientStore
from fedpara.metric import Metric
from fedpara.state import State


class Clients(Protocol):
    """All clients of a federation."""

    @property
    def workers(self) -> int:
        """How many clients, or chunks of clients, this machine trains at once."""
        ...

    @property
    def store(self) -> ClientStore | None:
        """The states that the clients keep; None where they keep them on machines of their own."""
        ...

    def train(
        self, cohort: Sequence[int], broadcast: Broadcast, attempt: int, test: bool
    ) -> Iterator[Reply | ClientFailure]:
        """Train a cohort from the broadcast; yield the replies in the order of `in_turn`, and the failures among them.

        Args:
            attempt: how often these clients have failed in this round.
            test: whether each client tests its trained model on its own test distribution.
        """
        ...

    def keep(self, round_number: int, clients: Sequence[int]) -> None:
        """A round, from 1, counts: these clients keep their new states, and the others their old ones."""
        ...

    def evaluate(self, clients: Iterable[int], broadcast: Broadcast) -> dict[int, float]:
        """The headline metric of the model from which each client would start, on its own test distribution.

        Clients that do not answer are left out.
        """
        ...

    def model(self, client: int, broadcast: Broadcast) -> State:
        """The model from which a client would start.

        Raises:
            ValueError: the client keeps its part of the model on its own machine.
        """
        ...

    def close(self) -> None:
        """End the processes that were started for the clients, if any."""
        ...


MakeClients = Callable[[ClientSide], Clients]


def in_turn(num_examples: int, client: int) -> tuple[int, int]:
    """Sorting key: the order of the clients in a round, on which the bits of their mean depend.

    Clients with more examples go first, so that workers end together.
    """
    return -num_examples, client


class SimulatedClients:
    """Clients in this process, or in worker processes of it.

    Args:
        side: the clients' half of a round.
        executor: trains the clients and tests their models.
        store: holds the states that they keep.
    """

    def __init__(self, side: ClientSide, executor: Executor, store: ClientStore) -> None:
        self.side, self.executor, self.store = side, executor, store

    @property
    def workers(self) -> int:
        """The executor's."""
        return self.executor.workers

    def train(
        self, cohort: Sequence[int], broadcast: Broadcast, attempt: int, test: bool
    ) -> Iterator[Reply | ClientFailure]:
        """Run the cohort's tasks on the executor."""
        if not attempt:
            self.store.keep([])  # drop the states of a round that failed
        size = self.executor.datamodule.num_examples
        chosen = sorted(cohort, key=lambda client: in_turn(size(client), client))
        tasks = (self.side.task(client, broadcast, self.store.read(client), attempt) for client in chosen)
        for outcome in self.executor.run(tasks):
            yield self._reply(outcome, broadcast, test) if isinstance(outcome, LocalResult) else outcome

    def keep(self, round_number: int, clients: Sequence[int]) -> None:
        """Make the new states of these clients count in the store."""
        self.store.keep(clients)

    def evaluate(self, clients: Iterable[int], broadcast: Broadcast) -> dict[int, float]:
        """Test the clients' models on the executor, one by one."""
        return {client: score(self.executor, self.model(client, broadcast), client) for client in clients}

    def model(self, client: int, broadcast: Broadcast) -> State:
        """Joined from the broadcast and the client's part in the store."""
        return self.side.model(broadcast.of(client).received["model"], self.store.read(client))

    def close(self) -> None:
        """End the executor's processes."""
        self.executor.close()

    def _reply(self, result: LocalResult, broadcast: Broadcast, test: bool) -> Reply:
        reply, kept = self.side.reply(result, broadcast, self.store.read(result.client))
        self.store.add(result.client, kept)
        if not (test and reply.report.finite):
            return reply
        return replace(reply, report=replace(reply.report, score=score(self.executor, result.state, result.client)))


def score(executor: Executor, state: State, client: int) -> float:
    """The headline metric of a model on a client's own test distribution."""
    return Metric.of(executor.module).of_test(executor.evaluate(state, client))


def simulated(executor: Executor, folder: Path | None = None, memory_gb: float = 1.0) -> MakeClients:
    """Simulated clients, for `Federation(clients=...)`.

    Args:
        folder, memory_gb: of their `ClientStore`; folder None: all states stay in memory.
    """
    return lambda side: SimulatedClients(side, executor, ClientStore(side.layouts, folder, memory_gb))
