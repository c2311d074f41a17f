"""One round, written once (FedPara, ICLR 2022, Algorithm 1; McMahan et al. 2017)."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import cos, nan, pi
from typing import Annotated, Any, Literal

from pydantic import Field, validate_call

from fedpara.aggregation import Rule
from fedpara.algorithms.base import FedAvg, Upload
from fedpara.communication import Cast, Link
from fedpara.errors import CrashesAgain, TooFewClients
from fedpara.execution.base import ClientFailure, Executor
from fedpara.federation.callback import FederationCallback, Outcome
from fedpara.federation.client import Broadcast, ClientSide, Kept, Layouts, Reply
from fedpara.federation.clients import Clients, MakeClients, simulated
from fedpara.federation.tally import Tally
from fedpara.federation.tiers import Tier, Tiers
from fedpara.interruption import interruption
from fedpara.metric import Metric
from fedpara.privacy import ClientLevelPrivacy, PrivateMean
from fedpara.record import ClientRecord, RoundRecord
from fedpara.sampling import cohort, derive_seed
from fedpara.sharing import Split, resetting
from fedpara.state import Parts, State, arranged, is_finite, num_elements, only, parts_layout_of

log = logging.getLogger(__name__)
GUESSABLE = 2**32  # seeds below it can be tried one by one
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Trained:
    """A round that is to be tested.

    Attributes:
        server: the server's state after it.
        is_tested: whether its test is due.
        seconds: what it took so far.
    """

    server: Parts
    tally: Tally
    is_tested: bool
    seconds: float


class Federation:
    """Server and clients, round by round.

    Args:
        executor: tests the global model, and trains the clients unless `clients` does.
        algorithm: makes the broadcast, and the next global model from the uploads; None: FedAvg.
        link: encodes, counts and decodes the messages; None: as float32, both ways.
        split: says which tensors travel; None: all of them.
        callbacks: called in this order.
        num_clients: clients in total.
        clients_per_round: clients of a cohort, sampled uniformly without replacement.
        num_rounds: number of rounds, T.
        eval_every: rounds between tests of the global model, which is also tested after the last round.
        evaluate_personal: whether to test clients' models on the clients' own distributions, both after training and at
            the start of the next round; None: if a part of the model is personal.
        min_clients: a round that fewer clients finish changes neither server nor clients. If errors alone, rather than
            absent clients, cause that, the run ends with the first error.
        retries: further attempts in a round for a client that failed. A client that never succeeds is left out of the
            round's means, and keeps its old states.
        max_crashes: a client that crashes, or runs out of memory, in so many of its rounds in a row ends the run,
            because configuration or data must be the cause; injected faults do not count. None: it never ends the run.
        lr_decay: tau; a round's learning rate is the optimizer's times tau^(rounds before it).
        catch_up: whether a client keeps the model that it received, and is sent only the pieces that changed since it
            last took part; where factors are reset, the factors of these rounds. By default every broadcast is whole.
        lr_schedule: `cosine` multiplies it by (1 + cos(pi t / num_rounds)) / 2 after t rounds; None: lr_decay alone.
        seed: seed of cohorts, batch orders, augmentation and dropout.
        clients: makes the server's partner; None: `simulated(executor)`, whose states stay in memory.
        privacy: clips and noises the clients' updates, counts epsilon, and ends a run that would exceed its target.
        tiers: clients of different size, by name; the executor must be `fedpara.execution.tiered` with the same ranks.
        aggregation: a robust rule in place of the mean of the uploads; None: the mean.

    Attributes:
        server: the server's state: the shared part of the global model under "model", and the algorithm's parts.
        client_side: every client's half of a round.
        clients: the server's partner.
        round: number of finished rounds.
        total_bytes: bytes both ways in the finished rounds.
        catch_up: with `catch_up`, what the server knows of what its clients hold; else None.
        crashes: for each client that crashed in its last rounds, the number of these rounds in a row.
        stopped: the reason of a callback that ended the run; None if none did.
        privacy: the private mean of uploads, with its account; None without privacy.
        tiers: who is in which tier, and what it holds; None without tiers.

    Raises:
        ValueError: `clients_per_round` is above `num_clients`, or `min_clients` above `clients_per_round`; or split,
            algorithm and link do not go together, or something breaks the promise of `privacy`; or `aggregation` would
            be wrong here.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from fedpara import IID, MLP, ClassificationModule, FederatedDataModule, FedPara, LocalTraining
        >>> from fedpara import SerialExecutor, factorize
        >>> from fedpara.data import mnist_small
        >>> network = factorize(MLP([784, 32, 10]), FedPara(gamma=0.1))
        >>> module = ClassificationModule(network, partial(torch.optim.SGD, lr=0.1), num_classes=10)
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> data.setup()
        >>> executor = SerialExecutor(LocalTraining(module, data, max_epochs=1, accelerator="cpu"))
        >>> federation = Federation(executor, num_clients=10, clients_per_round=2, num_rounds=1)
        >>> record = federation.run_round()
        >>> record.round, record.up_bytes == 2 * 4 * federation.num_shared, sorted(record.metrics)
        (1, True, ['test/acc', 'test/loss'])
    """

    stopped: str | None = None
    _untested: _Trained | None = None  # the round that was interrupted in its test

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        executor: Any,
        algorithm: FedAvg | None = None,
        link: Link | None = None,
        split: Split | None = None,
        callbacks: Sequence[FederationCallback] = (),
        *,
        num_clients: Positive,
        clients_per_round: Positive,
        num_rounds: Positive,
        eval_every: Positive = 1,
        evaluate_personal: bool | None = None,
        min_clients: Positive = 1,
        retries: Annotated[int, Field(ge=0)] = 0,
        max_crashes: Positive | None = 2,
        lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.992,
        lr_schedule: Literal["cosine"] | None = None,
        catch_up: bool = False,
        seed: Annotated[int, Field(ge=0)] = 0,
        clients: MakeClients | None = None,
        privacy: ClientLevelPrivacy | None = None,
        tiers: Mapping[str, Tier] | None = None,
        aggregation: Rule | None = None,
    ) -> None:
        _require_cohort(num_clients, clients_per_round, min_clients)
        self.executor: Executor = executor
        self.callbacks = list(callbacks)
        self.num_clients, self.clients_per_round, self.num_rounds = num_clients, clients_per_round, num_rounds
        self.eval_every, self.lr_decay, self.lr_schedule, self.seed = eval_every, lr_decay, lr_schedule, seed
        self.min_clients, self.retries, self.max_crashes = min_clients, retries, max_crashes
        initial = executor.initial_state()
        self.split = resetting(split or Split(initial), executor.module.network, seed)
        self.tests_personal = bool(self.split.personal) if evaluate_personal is None else evaluate_personal
        shared = self.split.shared_part(initial)
        trained = [name for name in executor.trainable if name in shared]
        self.algorithm = (algorithm or FedAvg()).bound(trained, num_clients)
        self.server = self.algorithm.start(shared)
        travelling = list(self.split.movable(only(trained, shared)))  # in the wire's names
        self.link = self._bound(link or Link(Cast(), Cast()), shared, travelling)
        self.split.require_round(self.server, self.link.error_feedback, privacy is not None)
        self._require_optimizer()
        layouts = Layouts.of(self.algorithm, self.link, self.split, initial, self.server, catch_up)
        self.aggregation = aggregation.bound_to([*trained, *travelling]) if aggregation else None
        if self.aggregation:
            self.aggregation.require(layouts.upload, clients_per_round, self.link.up_codec)
        sizes = num_clients, clients_per_round, min_clients, num_rounds
        self.privacy = privacy.start(travelling, *sizes) if privacy else None
        if self.privacy:
            self._require_private(self.privacy, layouts)
        self.client_side = ClientSide(
            self.algorithm, self.link, self.split, initial, layouts, seed, self.learning_rate_factor, self.privacy
        )
        self.catch_up = self.client_side.downlink.start() if catch_up else None
        self.tiers = Tiers(tiers, executor.module.network, num_clients, seed) if tiers else None
        if self.tiers:
            self._require_plain(catch_up)
        self.clients: Clients = (clients or simulated(executor))(self.client_side)
        self.round, self.total_bytes = 0, 0
        self.crashes: dict[int, int] = {}

    def _require_optimizer(self) -> None:
        """Refuse a local optimizer, or a correction of its steps, that does not fit the algorithm or the split."""
        self.split.set_rates(self.executor.module)
        training = getattr(self.executor, "training", None)
        if training is None:  # clients that are computed by hand
            return
        self.split.require_steps(training.jacobian_correction)
        pairs = ((self.algorithm, FedAvg), (self.split, Split))
        asking = [part for part, base in pairs if type(part).require is not base.require]
        if asking or training.needs_sgd:
            optimizer = training.optimizer()  # takes a Trainer, so 10 ms
            training.require_sgd(optimizer)
            for part in asking:
                part.require(optimizer)

    def fit(self) -> None:
        """Train until `num_rounds`, or until a callback stops it; callbacks always learn how it ended."""
        self.stopped = None
        outcome: Outcome = "failed"
        with ExitStack() as ending:  # call every callback, even if another one fails
            for callback in reversed(self.callbacks):
                ending.callback(lambda callback: callback.on_fit_end(self, outcome), callback)
            try:
                for callback in self.callbacks:
                    callback.on_fit_start(self)
                while self.round < self.num_rounds and not self._has_stopped():
                    record = self.run_round()
                    with interruption.held_back():  # a round is in all files and logs, or in none
                        for callback in self.callbacks:
                            callback.on_round_end(self, record)
                outcome = "finished"
                if self.stopped:
                    log.info("stopped after round %d: %s", self.round, self.stopped)
            except KeyboardInterrupt:
                outcome = "interrupted"
                raise

    def learning_rate_factor(self, finished: int) -> float:
        """Factor of the optimizer's learning rate in the round after so many finished ones."""
        cosine = (1 + cos(pi * finished / self.num_rounds)) / 2 if self.lr_schedule == "cosine" else 1.0
        return cosine * self.lr_decay**finished

    def stop(self, reason: str) -> None:
        """End `fit` in good order after the current round. Callbacks call it; another `fit` goes on.

        The run then counts as finished. Its last round is tested only if `eval_every` says so.

        Args:
            reason: one line, for the run's summary.
        """
        self.stopped = self.stopped or reason

    def run_round(self) -> RoundRecord:
        """One round; on return `server`, `round`, `total_bytes` and the clients' states are those after it.

        After a round that was interrupted in its test, the next call only tests it.
        """
        if self._untested is None or self._untested.server is not self.server:
            self._untested = self._train_round()
        done, start = self._untested, time.perf_counter()
        tally = done.tally
        metrics = self.evaluate() if done.is_tested else {}
        personal = self.evaluate_personal(self.round + 1) if done.is_tested and self.tests_personal else ()
        self._untested = None
        self.round += 1  # last, so that a round that is interrupted during its test does not count
        return RoundRecord(
            round=self.round,
            train_loss=tally.loss_sum / tally.num_examples if tally.num_examples and self.shows_clients else nan,
            metrics=metrics,
            up_bytes=tally.up_bytes.total(),
            down_bytes=tally.down_bytes.total(),
            total_bytes=self.total_bytes,
            num_clients=self.clients_per_round,
            clients=tally.outcomes(),
            client_seconds=tally.busy_seconds / max(1, tally.num_clients),
            train_seconds=tally.train_seconds,
            busy_seconds=tally.busy_seconds,
            idle_seconds=max(0.0, self.clients.workers * tally.train_seconds - tally.busy_seconds),
            wait_seconds=tally.wait_seconds,
            seconds=done.seconds + time.perf_counter() - start,
            personal_scores=personal,
            trained_scores=tuple(tally.trained_scores),
            headline=self.headline,
            privacy=self.privacy.figures() if self.privacy else {},
            tiers=self.tiers.figures(tally.up_bytes, tally.down_bytes) if self.tiers else {},
        )

    def _train_round(self) -> _Trained:
        """A round without its test; on return `server`, `total_bytes` and the clients' states are those after it."""
        start = time.perf_counter()
        chosen = cohort(self.seed, self.round, self.num_clients, self.clients_per_round)
        broadcast = self.broadcast(self.round, chosen)
        for callback in self.callbacks:
            callback.on_broadcast(self, chosen, broadcast)
        due = (self.round + 1) % self.eval_every == 0 or self.round + 1 == self.num_rounds
        due = due or bool(self.privacy and self.privacy.exhausted(2))  # the last one within the target
        tally = Tally()
        try:
            uploads = self._uploads(chosen, broadcast, tally, test=due and self.tests_personal)
            before, stepped = self.server, self._aggregate(broadcast, uploads)
            moved = self.split.moved(before["model"], stepped["model"], self.round)
            self.server = self._finite(stepped | {"model": moved})
            self.clients.keep(self.round + 1, tally.succeeded)
            if self.catch_up:
                models = before["model"], self.server["model"], stepped["model"]
                self.catch_up.note(*models, self.round + 1, tally.succeeded)
        except TooFewClients as few:  # the round has no effect, but its bytes count
            log.warning("round %d: nothing changes, %s", self.round + 1, few)
        self.total_bytes += tally.up_bytes.total() + tally.down_bytes.total()
        return _Trained(self.server, tally, due, time.perf_counter() - start)

    def model(self, client: int | None = None) -> State:
        """The global model with the initial personal part, or the model from which a client would start now."""
        if client is None:
            return self.client_side.model(self.server["model"], Kept())
        return self.clients.model(client, self.broadcast(self.round))

    @property
    def shows_clients(self) -> bool:
        """Whether what came from single clients may be recorded; privacy does not cover it."""
        return self.privacy is None or self.privacy.terms.client_metrics

    @property
    def headline(self) -> Metric:
        """The metric by which the module is judged, as it logs it."""
        return Metric.of(self.executor.module)

    @property
    def judged(self) -> Metric:
        """The column by which the run is judged."""
        return self.headline.judged(bool(self.split.personal))

    @property
    def personal(self) -> Mapping[int, State]:
        """The personal part of each simulated client; empty where nothing is personal."""
        return self.clients.store.personal if self.clients.store else {}

    @property
    def memories(self) -> Mapping[int, State]:
        """The memory of each simulated client; empty where the algorithm needs none."""
        return self.clients.store.memories if self.clients.store else {}

    def evaluate(self) -> dict[str, float]:
        """The metrics of the global model with the initial personal part, as the module logs them: `test/<name>`.

        Those of each tier's model are `test/<name>_<tier>`.
        """
        model = self.model()
        metrics = self.executor.evaluate(model)
        named = {f"test/{name}": value for name, value in metrics.items()}
        if tiers := self.tiers:
            for number, tier in enumerate(tiers.names):
                own = metrics if tiers.is_whole(number) else self.executor.evaluate(tiers.narrowed(number, model))
                named |= {f"test/{name}_{tier}": value for name, value in own.items()}
        return named

    def evaluate_personal(self, round_index: int) -> tuple[float, ...]:
        """The headline of the model from which every client would start a round, on its own distribution."""
        everyone = range(self.num_clients)
        scores = self.clients.evaluate(everyone, self.broadcast(round_index, everyone))
        return tuple(scores[client] for client in sorted(scores))

    def broadcast(self, round_index: int, clients: Iterable[int] = ()) -> Broadcast:
        """The message that the server would send in a round, from its present state.

        Args:
            clients: those to which it is sent; with `catch_up` each has its own packet.
        """
        message = arranged(self.algorithm.broadcast(self.server), self.client_side.layouts.broadcast)
        seed = derive_seed(self.seed, round_index, 0, "broadcast")
        broadcast = self.client_side.receive(self.link.encode_down(message, seed), round_index)
        if self.tiers:
            return self._by_tier(self.tiers, broadcast, message, seed)
        return replace(broadcast, packets=self.catch_up.packets(message, clients, seed)) if self.catch_up else broadcast

    def _by_tier(self, tiers: Tiers, whole: Broadcast, message: Parts, seed: int) -> Broadcast:
        """The broadcast with the message to each tier, which is encoded by itself."""
        own = []
        for number in range(len(tiers.names)):
            if tiers.is_whole(number):
                own.append(whole)
                continue
            part = {name: tiers.narrowed(number, state) for name, state in message.items()}
            packet = self.link.encode_down(part, seed)
            own.append(self.client_side.receive(packet, whole.round, parts_layout_of(part)))
        return replace(whole, by_tier=own, tiers=tiers.of)

    def close(self) -> None:
        """End the processes that were started for the clients and for tests of the model."""
        self.clients.close()
        self.executor.close()

    def _aggregate(self, broadcast: Broadcast, uploads: Iterable[Upload]) -> Parts:
        """The server's next state, of its model only what moves: the algorithm's step."""
        if self.tiers:
            models = ((upload.parts["model"], upload.num_examples) for upload in uploads)
            return {"model": self.tiers.mean(self.server["model"], broadcast.moving["model"], models)}
        before = self.client_side.moving(self.server, broadcast.round)
        if self.privacy:
            uploads = self.privacy.released(uploads, self.client_side.known_to_both(broadcast), broadcast.round)
        if self.aggregation:
            uploads = self.aggregation.replaced(uploads, self.client_side.known_to_both(broadcast))
        return self.algorithm.aggregate(before, broadcast.moving, uploads)

    def _uploads(self, chosen: list[int], broadcast: Broadcast, tally: Tally, test: bool) -> Iterator[Upload]:
        """Yield the uploads of clients that succeed, as they come; try the others again, then leave them out."""
        start = time.perf_counter()
        for attempt in range(self.retries + 1):
            tally.failures = []
            tally.down_bytes.update({client: broadcast.to(client).num_bytes for client in chosen})
            for outcome in tally.awaited(self.clients.train(chosen, broadcast, attempt, test)):
                arrived = self._receive(outcome, broadcast, tally) if isinstance(outcome, Reply) else outcome
                if isinstance(arrived, Upload):
                    yield arrived
                else:
                    tally.failures.append(arrived)
            failed = {failure.client for failure in tally.failures}
            chosen = [client for client in chosen if client in failed]
        tally.train_seconds = time.perf_counter() - start
        for failure in tally.failures:
            sent, down_bytes = tally.unused_bytes[failure.client], tally.down_bytes[failure.client]
            tier = self._tier(failure.client)
            self._tell(ClientRecord(self.round + 1, failure.client, failure.kind, sent, down_bytes, tier=tier))
        self._judge(tally)

    def _receive(self, reply: Reply, broadcast: Broadcast, tally: Tally) -> Upload | ClientFailure:
        """Decode an upload, and count its bytes and loss. An upload of another layout is a failure of its client."""
        report, broadcast = reply.report, broadcast.of(reply.report.client)
        for callback in self.callbacks:
            callback.on_upload(self, reply)
        try:
            side = self.client_side
            parts = self.link.decode_up(reply.packet, side.upload_layout(broadcast), side.known_to_both(broadcast))
        except ValueError as error:
            return ClientFailure(report.client, "crashed", error, outside=True)  # a simulated client knows the layout
        tally.up_bytes[report.client] += reply.packet.num_bytes
        if not (report.finite and is_finite(*parts.values())):
            reason = (
                f"client {report.client} returned NaN or infinite parameters in round {self.round + 1}: "
                "the training diverged; try a smaller model.optimizer.lr"
            )
            tally.unused_bytes[report.client] += reply.packet.num_bytes
            return ClientFailure(report.client, "diverged", FloatingPointError(reason))
        for callback in self.callbacks:
            callback.on_client_end(self, report)
        sent = reply.packet.num_bytes + tally.unused_bytes.pop(report.client, 0)
        self._tell(
            ClientRecord(
                self.round + 1, report.client, "succeeded", sent, tally.down_bytes[report.client],
                report.num_examples, report.num_steps, report.train_loss, report.seconds, self._tier(report.client),
            )
        )  # fmt: skip
        tally.add(report)
        return Upload(parts, report.num_examples)

    def _has_stopped(self) -> bool:
        """Whether a callback ended the run, or another round would exceed the privacy target."""
        if self.privacy and (reason := self.privacy.exhausted()):
            self.stop(reason)
        return self.stopped is not None

    def _bound(self, link: Link, shared: State, travelling: Sequence[str]) -> Link:
        """The link for the network, whose buffers it sends whole, but for names that are trained."""
        return link.bound_to(self._buffers().intersection(self.split.movable(shared)).difference(travelling))

    def _buffers(self) -> set[str]:
        """The names of the network's buffers, all of those that layers share."""
        return {name for name, _ in self.executor.module.network.named_buffers(remove_duplicate=False)}

    def _require_private(self, privacy: PrivateMean, layouts: Layouts) -> None:
        """Refuse what would break the promise of `privacy`, and warn of what weakens it."""
        if self.aggregation:
            raise ValueError(
                f"privacy and aggregation={type(self.aggregation).__name__}: epsilon is counted for the mean of "
                "clipped updates; take aggregation=mean, for privacy.clip bounds every update already"
            )
        if privacy.terms.secret_cohorts and privacy.terms.noise_multiplier != 0:
            if self.seed < GUESSABLE:
                log.warning(
                    "seed=%d: can be guessed, but epsilon holds only while it is secret; type a random one, up to "
                    "2^63 - 1, or privacy.secret_cohorts=false", self.seed,
                )  # fmt: skip
            if layouts.personal or layouts.memory:
                log.warning(
                    "clients keep states between rounds, for which epsilon of secret cohorts is not proven; "
                    "privacy.secret_cohorts=false is"
                )
        remembers = bool(self.algorithm.remembered(self.server))
        privacy.require(layouts.upload, remembers, self.link.up_codec, self._buffers())
        if self.shows_clients:
            return
        way_out = "or privacy.client_metrics=true if nobody else will see them"
        if self.tests_personal:
            raise ValueError(f"evaluate_personal=True: clients' own scores are not private; must be False, {way_out}")
        if getattr(self.executor.datamodule, "validation", 0):
            raise ValueError(f"privacy does not cover tests on clients' own examples: data.validation=0, {way_out}")
        for shown in (type(callback).__name__ for callback in self.callbacks if callback.shows_clients):
            raise ValueError(f"privacy does not cover the figures of clients in {shown}: leave it out, {way_out}")

    def _require_plain(self, catch_up: bool) -> None:
        """Refuse what does not fit clients of different size.

        Raises:
            ValueError: the message names the key, and the value that fits.
        """
        if catch_up:
            raise ValueError("catch_up=True: must be false with federation.tiers")
        if self.privacy:
            raise ValueError("tiers need privacy=none, whose mean is over clients of one size")
        if self.aggregation:
            raise ValueError("tiers need aggregation=mean, whose uploads are of one size")
        if self.link.error_feedback:
            raise ValueError("tiers need link.error_feedback=false, whose memories are of one size")
        if self.split.personal:
            raise ValueError(f"tiers need a split without personal parts, and {self.split.personal[0]} is one")
        if type(self.split) is not Split:
            raise ValueError(f"tiers need sharing=full, not {type(self.split).__name__}")
        if type(self.algorithm).aggregate is not FedAvg.aggregate:
            name = type(self.algorithm).__name__
            raise ValueError(f"tiers need algorithm=fedavg or fedprox, not {name}, whose step is of one size")

    def _tier(self, client: int) -> str | None:
        return self.tiers.names[self.tiers.of[client]] if self.tiers else None

    def _tell(self, record: ClientRecord) -> None:
        for callback in self.callbacks:
            callback.on_client_record(self, record)

    def _finite(self, server: Parts) -> Parts:
        """The server's new state, checked: its own step can overflow even where every upload was finite."""
        if not is_finite(*server.values()):
            raise FloatingPointError(
                f"the server's step gave NaN or infinite parameters in round {self.round + 1}, from finite uploads; "
                "try a smaller algorithm.server_lr"
            )
        return server

    def _judge(self, tally: Tally) -> None:
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
            raise TooFewClients(f"federation.min_clients={self.min_clients}")

    def _count_crashes(self, tally: Tally) -> None:
        for client in tally.succeeded:
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


def _require_cohort(num_clients: int, clients_per_round: int, min_clients: int) -> None:
    if clients_per_round > num_clients:
        raise ValueError(f"clients_per_round={clients_per_round}: must be 1 to num_clients ({num_clients})")
    if min_clients > clients_per_round:
        raise ValueError(f"min_clients={min_clients}: must be 1 to clients_per_round ({clients_per_round})")
