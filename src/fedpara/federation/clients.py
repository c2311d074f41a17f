"""The clients as the server's partner: it asks, and they answer, wherever they are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedpara.execution.base import ClientFailure, ClientTask, Executor, LocalResult
from fedpara.federation.client import Broadcast, ClientSide, Kept, Reply
from fedpara.federation.store import ClientStore
from fedpara.state import State


class Clients(Protocol):
    """All clients of a federation."""

    @property
    def workers(self) -> int:
        """Clients, or chunks of clients, that this machine trains at once."""
        ...

    @property
    def store(self) -> ClientStore | None:
        """What the clients keep; None where they keep it on machines of their own."""
        ...

    def train(
        self, cohort: Sequence[int], broadcast: Broadcast, attempt: int, test: bool
    ) -> Iterator[Reply | ClientFailure]:
        """Train a cohort from what was broadcast: replies `in_turn`, as they come, and failures anywhere between.

        Args:
            attempt: how often these clients have failed in this round.
            test: whether each client tests what it trained on its own test distribution.
        """
        ...

    def keep(self, round_number: int, clients: Sequence[int]) -> None:
        """The round, from 1, counts: these clients keep what they made of it, the others what they had."""
        ...

    def evaluate(self, clients: Iterable[int], broadcast: Broadcast) -> dict[int, float]:
        """Accuracy, 0 to 1, of the model from which each client would start, on its own test distribution.

        Who does not answer is left out.
        """
        ...

    def model(self, client: int, broadcast: Broadcast) -> State:
        """The model from which a client would start.

        Raises:
            ValueError: it is on the client's own machine.
        """
        ...

    def close(self) -> None:
        """End what runs beside this process, if anything does."""
        ...


MakeClients = Callable[[ClientSide], Clients]


def in_turn(num_examples: int, client: int) -> tuple[int, int]:
    """The key by which clients are ordered, on which the bits of their mean depend.

    The longest go first, so that workers end together.
    """
    return -num_examples, client


class SimulatedClients:
    """Clients in this process, or in processes of its own.

    Args:
        side: the half of a round that is theirs.
        executor: trains them and tests their models.
        store: where they keep what is theirs.
    """

    def __init__(self, side: ClientSide, executor: Executor, store: ClientStore) -> None:
        self.side, self.executor, self._store = side, executor, store
        self._pending: dict[int, Kept] = {}

    @property
    def workers(self) -> int:
        """The executor's."""
        return self.executor.workers

    @property
    def store(self) -> ClientStore:
        """Where the clients keep what is theirs."""
        return self._store

    def train(
        self, cohort: Sequence[int], broadcast: Broadcast, attempt: int, test: bool
    ) -> Iterator[Reply | ClientFailure]:
        """What the executor makes of the cohort's tasks."""
        if not attempt:
            self._pending = {}
        size = self.executor.datamodule.num_examples
        chosen = sorted(cohort, key=lambda client: in_turn(size(client), client))
        for outcome in self.executor.run(self._tasks(chosen, broadcast, attempt)):
            yield self._reply(outcome, broadcast, test) if isinstance(outcome, LocalResult) else outcome

    def keep(self, round_number: int, clients: Sequence[int]) -> None:
        """Into the store."""
        self._store.write({client: self._pending[client] for client in clients})
        self._pending = {}

    def evaluate(self, clients: Iterable[int], broadcast: Broadcast) -> dict[int, float]:
        """Each on the executor."""
        return {client: self._accuracy(self.model(client, broadcast), client) for client in clients}

    def model(self, client: int, broadcast: Broadcast) -> State:
        """Of what was received and what is in the store."""
        return self.side.model(broadcast.received["model"], self._store.read(client))

    def close(self) -> None:
        """The executor's processes."""
        self.executor.close()

    def _tasks(self, chosen: Iterable[int], broadcast: Broadcast, attempt: int = 0) -> Iterator[ClientTask]:
        for client in chosen:
            yield self.side.task(client, broadcast, self._store.read(client), attempt)

    def _reply(self, result: LocalResult, broadcast: Broadcast, test: bool) -> Reply:
        reply, kept = self.side.reply(result, broadcast, self._store.read(result.client))
        self._pending[result.client] = kept
        if not (test and reply.report.finite):
            return reply
        return replace(reply, report=replace(reply.report, accuracy=self._accuracy(result.state, result.client)))

    def _accuracy(self, state: State, client: int) -> float:
        return self.executor.evaluate(state, client)["acc"]


def simulated(executor: Executor, folder: Path | None = None, memory_gb: float = 1.0) -> MakeClients:
    """Clients in this process, for `Federation(clients=...)`.

    Args:
        folder, memory_gb: of their `ClientStore`; None: what they keep is in memory.
    """
    return lambda side: SimulatedClients(side, executor, ClientStore(side.layouts, folder, memory_gb))
