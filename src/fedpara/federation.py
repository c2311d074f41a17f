"""The federation: one round, written once (FedPara, ICLR 2022, Algorithm 1; McMahan et al. 2017)."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, validate_call

from fedpara.algorithms.base import FedAvg, Upload
from fedpara.client import ClientSide, Kept, Reply, known_to_both
from fedpara.communication import Link, Packet
from fedpara.errors import CrashesAgain
from fedpara.execution.base import FAILURE_KINDS, ClientFailure, ClientTask, Executor, LocalResult
from fedpara.interruption import interruption
from fedpara.record import RoundRecord
from fedpara.sampling import cohort, derive_seed
from fedpara.sharing import Split
from fedpara.state import Parts, State, is_finite, join, num_elements, separate

log = logging.getLogger(__name__)
Positive = Annotated[int, Field(ge=1)]
Awaited = TypeVar("Awaited")
Outcome = Literal["finished", "failed", "interrupted"]


class FederationCallback:
    """What may be done beside a run: watch, log, store. Every method does nothing by default."""

    def on_fit_start(self, federation: "Federation") -> None:
        """Before the first round; a resumed federation has `round` > 0."""

    def on_client_end(self, federation: "Federation", result: LocalResult) -> None:
        """After one client's training, where it succeeded."""

    def on_round_end(self, federation: "Federation", record: RoundRecord) -> None:
        """After one round; `federation.round` and `federation.server` are those of the finished round."""

    def on_fit_end(self, federation: "Federation", outcome: Outcome) -> None:
        """After the last round, an error or an interruption."""


@dataclass(frozen=True)
class Broadcast:
    """What the server sends at the start of a round.

    Attributes:
        packet: what travels, once to each client of the round.
        received: what every client reads from it.
    """

    packet: Packet
    received: Parts


class Federation:
    """Server and clients, round by round.

    Args:
        executor: trains clients and tests models.
        algorithm: what is broadcast and how uploads become the next global model.
        link: encodes, counts and decodes what travels.
        split: which tensors travel.
        callbacks: called in this order.
        num_clients: clients in total.
        clients_per_round: clients of a cohort, sampled uniformly without replacement.
        num_rounds: T.
        eval_every: the global model is tested every so many rounds, and after the last.
        evaluate_personal: whether clients' models are tested on the clients' own distributions too, both as they are
            trained and as the next round would start from; None: where something is personal.
        min_clients: a round that fewer clients finish leaves server and clients as they were; where so many failed by
            an error, rather than by absence, that it could not be otherwise, the run ends with the first error.
        retries: more tries in a round for a client that failed; what never succeeds is left out of the round's means,
            and what the client itself keeps stays as it was.
        max_crashes: a client that crashes, or runs out of memory, in so many of its rounds running ends the run, since
            configuration or data make it; injected faults do not count. None: it is left out, however often.
        lr_decay: tau; a round's learning rate is the optimizer's times tau^(rounds before it).
        seed: of cohorts, batch orders, augmentation and dropout.

    Attributes:
        server: what the server keeps: the shared part of the global model, under "model", and the algorithm's own.
        personal: each client's personal part of the model; empty where nothing is personal.
        memories: what the algorithm lets each client remember; empty where it needs none.
        round: rounds finished.
        total_bytes: bytes both ways in the finished rounds.
        crashes: of clients that crashed in their last rounds, in how many running.

    Raises:
        ValueError: more clients per round than clients, or more wanted than there are in a round.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        executor: Any,
        algorithm: FedAvg,
        link: Link,
        split: Split,
        callbacks: list[FederationCallback],
        num_clients: Positive,
        clients_per_round: Positive,
        num_rounds: Positive,
        eval_every: Positive = 1,
        evaluate_personal: bool | None = None,
        min_clients: Positive = 1,
        retries: Annotated[int, Field(ge=0)] = 0,
        max_crashes: Positive | None = 2,
        lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.992,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        if clients_per_round > num_clients:
            raise ValueError(f"clients_per_round={clients_per_round}: must be 1 to num_clients ({num_clients})")
        if min_clients > clients_per_round:
            raise ValueError(f"min_clients={min_clients}: must be 1 to clients_per_round ({clients_per_round})")
        self.executor: Executor = executor
        self.link, self.split, self.callbacks = link, split, callbacks
        self.num_clients, self.clients_per_round, self.num_rounds = num_clients, clients_per_round, num_rounds
        self.eval_every, self.lr_decay, self.seed = eval_every, lr_decay, seed
        self.min_clients, self.retries, self.max_crashes = min_clients, retries, max_crashes
        self.tests_personal = bool(split.personal) if evaluate_personal is None else evaluate_personal
        self._initial = executor.initial_state()
        shared = split.shared_part(self._initial)
        self.algorithm = algorithm.bound([name for name in executor.trainable if name in shared], num_clients)
        self.server = self.algorithm.start(shared)
        self.personal: MutableMapping[int, State] = {}
        self.memories: MutableMapping[int, State] = {}
        self.round = 0
        self.total_bytes = 0
        self.crashes: dict[int, int] = {}

    def fit(self) -> None:
        """Train until `num_rounds`; callbacks learn of the end, whatever it was."""
        outcome: Outcome = "failed"
        with ExitStack() as ending:  # every callback's, even where another one's end fails
            for callback in reversed(self.callbacks):
                ending.callback(lambda callback: callback.on_fit_end(self, outcome), callback)
            try:
                for callback in self.callbacks:
                    callback.on_fit_start(self)
                while self.round < self.num_rounds:
                    record = self.run_round()
                    with interruption.held_back():  # a round is in every file and log, or in none
                        for callback in self.callbacks:
                            callback.on_round_end(self, record)
                outcome = "finished"
            except KeyboardInterrupt:
                outcome = "interrupted"
                raise

    def run_round(self) -> RoundRecord:
        """One round; on return `server`, `personal`, `memories`, `round` and `total_bytes` are those after it."""
        start = time.perf_counter()
        chosen = cohort(self.seed, self.round, self.num_clients, self.clients_per_round)
        chosen.sort(key=self.executor.datamodule.num_examples, reverse=True)  # the longest first: workers end together
        broadcast = self.broadcast(self.round)
        due = (self.round + 1) % self.eval_every == 0 or self.round + 1 == self.num_rounds
        tally = Tally(tests_trained=due and self.tests_personal)
        try:
            uploads = self._uploads(chosen, broadcast, tally)
            self.server = self._finite(self.algorithm.aggregate(self.server, broadcast.received, uploads))
            self.keep(tally.kept)
        except _TooFewClients:  # a round without effect, but not without costs
            log.warning("round %d: nothing changes, federation.min_clients=%d", self.round + 1, self.min_clients)
        down_bytes = broadcast.packet.num_bytes * len(chosen)
        self.total_bytes += tally.up_bytes + down_bytes
        metrics = self.evaluate() if due else {}
        personal = self.evaluate_personal(self.round + 1) if due and self.tests_personal else ()
        self.round += 1  # last: a round that is interrupted while it is tested has not been
        return RoundRecord(
            round=self.round,
            train_loss=tally.loss_sum / tally.num_examples if tally.num_examples else float("nan"),
            metrics=metrics,
            up_bytes=tally.up_bytes,
            down_bytes=down_bytes,
            total_bytes=self.total_bytes,
            num_clients=len(chosen),
            clients=tally.outcomes(),
            client_seconds=tally.busy_seconds / max(1, tally.num_clients),
            train_seconds=tally.train_seconds,
            busy_seconds=tally.busy_seconds,
            idle_seconds=max(0.0, self.executor.workers * tally.train_seconds - tally.busy_seconds),
            wait_seconds=tally.wait_seconds,
            seconds=time.perf_counter() - start,
            personal_accuracy=personal,
            trained_accuracy=tuple(tally.trained_accuracy),
        )

    def model(self, client: int | None = None) -> State:
        """The global model, with the common start of what is personal; or that from which a client would start now."""
        if client is None:
            return self.client_side.model(self.server["model"], Kept())
        return self._start_of(client, self.broadcast(self.round))

    def evaluate(self) -> dict[str, float]:
        """`test/acc` and `test/loss` of the global model, with the common start of what is personal."""
        metrics = self.executor.evaluate(self.model())
        return {f"test/{name}": value for name, value in metrics.items()}

    def evaluate_personal(self, round_index: int) -> tuple[float, ...]:
        """Accuracy of the model from which every client would start a round, from 0 to 1, on its own distribution."""
        broadcast = self.broadcast(round_index)
        models = (self._start_of(client, broadcast) for client in range(self.num_clients))
        return tuple(self.executor.evaluate(model, client)["acc"] for client, model in enumerate(models))

    @property
    def client_side(self) -> ClientSide:
        """What clients do, at the moment."""
        like, remembers = self.algorithm.broadcast(self.server), bool(self.algorithm.remembered(self.server))
        return ClientSide(
            self.algorithm, self.link, self.split, self._initial, like, self.seed, self.lr_decay, remembers
        )

    def broadcast(self, round_index: int) -> Broadcast:
        """What the server would send in a round, were it as it is now."""
        message = self.algorithm.broadcast(self.server)
        packet = self.link.encode_down(join(message), derive_seed(self.seed, round_index, 0, "broadcast"))
        return Broadcast(packet, self.client_side.receive(packet))

    def replies(
        self, chosen: list[int], broadcast: Broadcast, attempt: int, tally: "Tally"
    ) -> Iterator[Reply | ClientFailure]:
        """Trains the chosen clients and yields their replies as they come.

        Args:
            attempt: how often these clients have failed in this round.
        """
        for outcome in tally.awaited(self.executor.run(self._tasks(chosen, broadcast.received, attempt))):
            if isinstance(outcome, LocalResult):
                yield self._reply(outcome, broadcast.received, tally.tests_trained)
            else:
                yield outcome

    def keep(self, kept: dict[int, Kept]) -> None:
        """After a round that counts: what its clients keep."""
        self.personal.update({client: one.personal for client, one in kept.items() if one.personal})
        self.memories.update({client: one.memory for client, one in kept.items() if one.memory})

    def _start_of(self, client: int, broadcast: Broadcast) -> State:
        return self.client_side.model(broadcast.received["model"], self._kept(client))

    def _kept(self, client: int) -> Kept:
        return Kept(self.personal.get(client, {}), self.memories.get(client, {}))

    def _tasks(self, chosen: Iterable[int], received: Parts, attempt: int = 0) -> Iterator[ClientTask]:
        for client in chosen:
            yield self.client_side.task(client, self.round, received, self._kept(client), attempt)

    def _reply(self, result: LocalResult, received: Parts, test: bool) -> Reply:
        reply = self.client_side.reply(result, self.round, received, self._kept(result.client))
        if not (test and reply.finite):
            return reply
        return replace(reply, accuracy=self.executor.evaluate(result.state, result.client)["acc"])

    def _uploads(self, chosen: list[int], broadcast: Broadcast, tally: "Tally") -> Iterator[Upload]:
        """What arrives from the clients that succeed, as it comes; those that fail are tried again, then left out."""
        start = time.perf_counter()
        for attempt in range(self.retries + 1):
            tally.failures = []
            for outcome in self.replies(chosen, broadcast, attempt, tally):
                arrived = self.receive(outcome, broadcast, tally) if isinstance(outcome, Reply) else outcome
                if isinstance(arrived, Upload):
                    yield arrived
                else:
                    tally.failures.append(arrived)
            failed = {failure.client for failure in tally.failures}
            chosen = [client for client in chosen if client in failed]
        tally.train_seconds = time.perf_counter() - start
        self._judge(tally)

    def receive(self, reply: Reply, broadcast: Broadcast, tally: "Tally") -> Upload | ClientFailure:
        """Read the upload, count its bytes and the loss; what the client keeps waits for the round's end."""
        result, known = reply.result, known_to_both(broadcast.received)
        state = self.link.decode_up(reply.packet, join(reply.upload), known)
        tally.up_bytes += reply.packet.num_bytes
        if not (reply.finite and is_finite(state)):
            reason = (
                f"client {result.client} returned NaN or infinite parameters in round {self.round + 1}: "
                "the training diverged; try a smaller model.optimizer.lr"
            )
            return ClientFailure(result.client, "diverged", FloatingPointError(reason))
        for callback in self.callbacks:
            callback.on_client_end(self, result)
        tally.add(reply)
        return Upload(separate(state, reply.upload), result.num_examples)

    def _finite(self, server: Parts) -> Parts:
        """What the server will keep; a step of its own can overflow where every upload was finite."""
        if not is_finite(join(server)):
            raise FloatingPointError(
                f"the server's step gave NaN or infinite parameters in round {self.round + 1}, from finite uploads; "
                "try a smaller algorithm.server_lr"
            )
        return server

    def _judge(self, tally: "Tally") -> None:
        """Say who failed; stop a round that too few clients finished before it changes anything.

        Raises:
            Exception: the first client's own, where errors alone make them too few.
            CrashesAgain: a client crashes again, see `max_crashes`.
        """
        self._count_crashes(tally)
        if not tally.failures:
            return
        num_chosen = tally.num_clients + len(tally.failures)
        log.warning("round %d: %d of %d clients succeeded%s", self.round + 1, tally.num_clients, num_chosen, tally)
        errors = [failure.error for failure in tally.failures if failure.error]
        if errors and num_chosen - len(errors) < self.min_clients:
            raise errors[0]
        if tally.num_clients < self.min_clients:
            raise _TooFewClients

    def _count_crashes(self, tally: "Tally") -> None:
        for client in tally.kept:
            self.crashes.pop(client, None)
        for failure in tally.failures:
            if not failure.recurs:
                continue
            count = self.crashes[failure.client] = self.crashes.get(failure.client, 0) + 1
            if self.max_crashes is not None and count >= self.max_crashes:
                raise CrashesAgain(
                    f"client {failure.client} failed in {count} of its rounds running, {failure.reason}; "
                    "federation.max_crashes=null goes on without such clients"
                ) from failure.error

    @property
    def num_shared(self) -> int:
        """Values of the model that travel each way; an algorithm may send more."""
        return num_elements(self.server["model"])


class _TooFewClients(Exception):
    """Too few clients finished the round."""


class Tally:
    """Sums over the clients of one round that succeeded, and the failures of the others.

    Args:
        tests_trained: whether each client's model is tested as it comes.
    """

    def __init__(self, tests_trained: bool) -> None:
        self.tests_trained = tests_trained
        self.trained_accuracy: list[float] = []
        self.kept: dict[int, Kept] = {}
        self.failures: list[ClientFailure] = []
        self.num_clients = 0
        self.up_bytes = 0
        self.loss_sum = 0.0
        self.num_examples = 0
        self.busy_seconds = self.wait_seconds = self.train_seconds = 0.0

    def awaited(self, outcomes: Iterator[Awaited]) -> Iterator[Awaited]:
        """The outcomes, counting the time for which the server waits for each."""
        while True:
            start = time.perf_counter()
            outcome = next(outcomes, None)
            self.wait_seconds += time.perf_counter() - start
            if outcome is None:
                return
            yield outcome

    def add(self, reply: Reply) -> None:
        """A client that succeeded."""
        result = reply.result
        self.kept[result.client] = reply.kept
        if reply.accuracy is not None:
            self.trained_accuracy.append(reply.accuracy)
        self.num_clients += 1
        self.loss_sum += result.train_loss * result.num_examples
        self.num_examples += result.num_examples
        self.busy_seconds += result.seconds

    def outcomes(self) -> dict[str, int]:
        """Numbers of clients by what became of them."""
        kinds = Counter(failure.kind for failure in self.failures)
        return {"succeeded": self.num_clients, **{kind: kinds[kind] for kind in FAILURE_KINDS}}

    def __str__(self) -> str:
        """The failures by reason: ` | dropped: 3, 17 | crashed (RuntimeError: ...): 9`."""
        by_reason: dict[str, list[str]] = {}
        for failure in self.failures:
            by_reason.setdefault(failure.reason, []).append(str(failure.client))
        return "".join(f" | {reason}: {', '.join(clients)}" for reason, clients in sorted(by_reason.items()))
