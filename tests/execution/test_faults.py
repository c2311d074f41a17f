"""Clients that fail: what is left of the round is that of the others, and what failed has left no trace."""

import logging
from functools import cache, partial

import numpy as np
import pytest
import torch

from fedpara.algorithms import FedAvg
from fedpara.algorithms.feddyn import FedDyn
from fedpara.algorithms.scaffold import Scaffold
from fedpara.callbacks import RunFolder
from fedpara.execution import ClientFailure, ClientTask, FaultInjection
from fedpara.federation import FederationCallback, simulated
from fedpara.sampling import cohort, derive_seed
from fedpara.state import is_finite, join
from helpers.clients import Quadratics, quadratic_federation
from helpers.federations import Watch, make_federation, same
from helpers.runs import rows_without_times

KINDS = {"dropout": "dropped", "straggle": "late", "nan": "diverged", "crash": "crashed"} | {
    "out_of_memory": "out_of_memory"
}


class Scripted:
    """An executor whose clients fail as told, {(client, attempt): kind}, in every round."""

    def __init__(self, executor, script):
        self.executor, self.script = executor, script

    def __getattr__(self, name):
        return getattr(self.executor, name)

    def run(self, tasks):
        for task in tasks:
            kind = self.script.get((task.client, task.attempt))
            error = None if kind in ("dropped", "late") else RuntimeError("told to")
            if kind is None:
                yield from self.executor.run([task])
            elif kind == "diverged":
                yield from FaultInjection(self.executor, nan=1.0).run([task])
            else:
                yield ClientFailure(task.client, kind, error, outside=True)


def failing(script, **options):
    """`max_crashes` has tests of its own, in test_sound.py."""
    return make_federation(clients=scripted(script), **{"max_crashes": None} | options)


def scripted(script):
    return lambda executor: simulated(Scripted(executor, script))


def faulty(**shares):
    return lambda executor: simulated(FaultInjection(executor, **shares))


def make(**options):
    return make_federation(**{"clients_per_round": 4, "personal": ["*2"], "max_crashes": None} | options)


@cache
def after(cohort, make, num_rounds=1):
    """A federation of these clients alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpara.federation.round.cohort", lambda *_: list(cohort))
        federation = make(clients_per_round=len(cohort), num_rounds=num_rounds, eval_every=num_rounds)
        federation.fit()
    return federation


def with_an_algorithm(algorithm, **options):
    return make(algorithm=algorithm(), **options)


ALGORITHMS = {kind: partial(with_an_algorithm, kind) for kind in (FedAvg, Scaffold, FedDyn)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_round_with_a_failed_client_is_the_round_of_the_others(algorithm, kind):
    """Weights renormalised, |S| counted without it, its personal part and memory as they were; to the bit."""
    left_out = 2
    whole = failing({(left_out, 0): kind}, algorithm=algorithm(), clients_per_round=5, personal=["*2"], eval_every=2)
    whole.run_round()
    others = after((0, 1, 3, 4), ALGORITHMS[algorithm])
    assert same(join(whole.server), join(others.server))
    for kept, expected in ((whole.personal, others.personal), (whole.memories, others.memories)):
        assert left_out not in kept
        assert kept.keys() == expected.keys()
        assert all(same(kept[client], expected[client]) for client in kept)


def test_a_failure_leaves_what_the_client_kept_from_earlier_rounds():
    script = {}
    federation = make(clients_per_round=5, algorithm=Scaffold(), clients=scripted(script))
    federation.run_round()
    before = federation.personal[3], federation.memories[3]
    script[3, 0] = "diverged"
    federation.run_round()
    assert same(before[0], federation.personal[3])
    assert same(before[1], federation.memories[3])


def test_scaffold_and_feddyn_reach_the_optimum_though_clients_fail():
    """c stays the mean of the clients' c_i, and h the sum of their g_i, only if the failed are not counted."""
    watch = Watch()
    for algorithm, num_rounds in ((Scaffold(), 120), (FedDyn(alpha=1.0), 240)):
        injection = FaultInjection(Quadratics(), dropout=0.3, crash=0.1)
        federation = quadratic_federation(algorithm, num_rounds, executor=lambda _, given=injection: given)
        federation.callbacks.append(watch)
        federation.fit()
        distance = watch.records[-1].metrics["test/distance"]
        assert distance < 1e-6  # FedAvg stops before 0.05
        assert sum(record.clients["dropped"] + record.clients["crashed"] for record in watch.records) > num_rounds
    total = sum(memory["w"] for memory in federation.memories.values())
    torch.testing.assert_close(federation.server["h"]["w"], total / 6)


def test_a_second_try_gives_what_the_first_would_have_given():
    watch = Watch()
    tried = failing({(client, 0): "crashed" for client in range(5)}, retries=1, callbacks=[watch])
    plain = make_federation()
    tried.fit()
    plain.fit()
    assert same(tried.server["model"], plain.server["model"])
    assert [record.clients["succeeded"] for record in watch.records] == [2, 2, 2]


def test_bytes_of_failures():
    """Everyone is sent the model; only what comes back is counted, a NaN too, for it travelled."""
    watch = Watch()
    script = {(0, 0): "dropped", (1, 0): "diverged", (2, 0): "crashed"}
    federation = failing(script, clients_per_round=5, callbacks=[watch])
    federation.fit()
    one = federation.num_shared * 4
    assert {(record.down_bytes, record.up_bytes) for record in watch.records} == {(5 * one, 3 * one)}


@pytest.mark.parametrize(("kind", "error"), [("diverged", FloatingPointError), ("crashed", RuntimeError)])
@pytest.mark.parametrize("min_clients", [1, 2])
def test_a_fault_of_too_many_ends_the_run_with_the_first_error(kind, error, min_clients):
    script = {(client, attempt): kind for client in range(6 - min_clients) for attempt in (0, 1)}
    federation = failing(script, clients_per_round=5, min_clients=min_clients, retries=1)
    before = {name: value.clone() for name, value in federation.server["model"].items()}
    with pytest.raises(error, match=r"told to|client 0 returned NaN"):
        federation.fit()
    assert same(federation.server["model"], before)
    assert federation.round == 0


def test_a_round_that_too_few_finish_for_their_absence_changes_nothing_and_the_run_goes_on(tmp_path, caplog):
    watch = Watch()
    script = {(0, 0): "dropped", (1, 0): "late", (2, 0): "dropped", (3, 0): "crashed"}
    folder = RunFolder(tmp_path, {})
    federation = failing(
        script, clients_per_round=5, min_clients=2, callbacks=[folder, watch], algorithm=Scaffold(), personal=["*2"]
    )
    before = {name: value.clone() for name, value in join(federation.server).items()}
    with caplog.at_level(logging.WARNING):
        federation.fit()
    assert same(join(federation.server), before)
    assert not federation.personal
    assert not federation.memories
    assert federation.round == 3
    assert caplog.messages[:2] == [
        "round 1: 1 of 5 clients succeeded | crashed (RuntimeError: told to): 3 | dropped: 0, 2 | late: 1",
        "round 1: nothing changes, federation.min_clients=2",
    ]
    row = rows_without_times(tmp_path)[0]
    names = ("succeeded", "dropped", "late", "diverged", "crashed", "out_of_memory")
    assert [row[f"clients/{name}"] for name in names] == ["1", "2", "1", "0", "1", "0"]
    assert int(row["comm/down_bytes"]) == 5 * int(row["comm/up_bytes"])


def test_a_round_that_nobody_finishes_has_no_training_loss(tmp_path):
    federation = failing(
        dict.fromkeys([(client, 0) for client in range(5)], "late"), callbacks=[RunFolder(tmp_path, {})]
    )
    federation.fit()
    assert [row["train/loss"] for row in rows_without_times(tmp_path)] == [""] * 3


class Break(FederationCallback):
    """Makes the training of some clients raise at their second batch, and an optional error of its own."""

    def __init__(self, clients, error):
        self.clients, self.error, self.raised, self.seen = clients, error, 0, 0

    def on_fit_start(self, federation):
        executor = federation.executor
        run, step = executor.run, executor.module.training_step

        def tracked(tasks):
            for task in tasks:
                self.client, self.seen = task.client, 0
                yield task

        def training_step(batch, batch_idx):
            self.seen += 1
            if self.seen == 2 and self.client in self.clients:
                self.raised += 1
                raise self.error
            return step(batch, batch_idx)

        executor.run, executor.module.training_step = lambda tasks: run(tracked(tasks)), training_step


corrected = partial(make, training={"jacobian_correction": 1.0})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a bug"), "crashed"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
    ],
)
def test_an_error_within_local_training_fails_its_client_alone_and_leaves_nothing_behind(error, kind):
    breaking, watch = Break({1, 3}, error), Watch()
    broken = corrected(clients_per_round=5, callbacks=[breaking, watch], num_rounds=2, eval_every=2)
    broken.fit()
    assert breaking.raised == 4
    assert [record.clients[kind] for record in watch.records] == [2, 2]
    others = after((0, 2, 4), corrected, num_rounds=2)
    assert same(broken.server["model"], others.server["model"])
    factorization = broken.executor.module.network.layers[1].parametrizations.weight[0]
    assert not factorization._forward_hooks


def test_a_bug_in_every_client_ends_the_run_with_its_own_trace():
    with pytest.raises(ValueError, match="a bug") as caught:
        make(callbacks=[Break(range(5), ValueError("a bug"))]).fit()
    assert any(entry.name == "training_step" for entry in caught.traceback)


def tasks(seed, num_rounds=200, attempt=0):
    for round_index in range(num_rounds):
        for client in cohort(seed, round_index, 50, 10):
            yield ClientTask(client, {}, 1.0, derive_seed(seed, round_index, client, "local training"), attempt=attempt)


def test_faults_come_in_their_shares_by_seed_alone():
    injection = FaultInjection(Quadratics(), dropout=0.3, straggle=0.1, nan=0.05, crash=0.05, out_of_memory=0.02)
    fates = [injection.fate(task) for task in tasks(0)]
    assert fates == [injection.fate(task) for task in reversed(list(tasks(0)))][::-1]
    assert fates != [injection.fate(task) for task in tasks(1)]
    assert fates != [injection.fate(task) for task in tasks(0, attempt=1)]
    for kind, share in injection.shares.items():
        assert np.mean([fate == kind for fate in fates]) == pytest.approx(share, abs=0.02)


def test_without_faults_nothing_is_changed():
    plain, wrapped = make_federation(), make_federation(clients=faulty())
    plain.fit()
    wrapped.fit()
    assert same(plain.server["model"], wrapped.server["model"])


@pytest.mark.parametrize("personal", [None, ["layers.1.*"]])
def test_on_a_bad_day_it_still_learns_and_stays_finite(personal):
    watch = Watch()
    clients = faulty(dropout=0.3, nan=0.2, crash=0.1)
    federation = make(
        num_rounds=12, eval_every=12, clients_per_round=5, lr=0.3, callbacks=[watch], personal=personal, clients=clients
    )
    federation.fit()
    assert is_finite(join(federation.server))
    assert all(map(is_finite, federation.personal.values()))
    assert sum(record.clients["diverged"] for record in watch.records) > 5
    assert watch.records[-1].train_loss < watch.records[0].train_loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": 0.8, "nan": 0.3}, r"dropout=0.8: the shares of all faults must sum to at most 1, they sum to 1.1"),
        ({"crash": float("nan")}, "crash"),
    ],
)
def test_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FaultInjection(Quadratics(), **options)
