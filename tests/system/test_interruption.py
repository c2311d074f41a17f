"""Runs that are stopped: by signals, in good order; by SIGKILL, without a trace in the result."""

import json
import os
import random
import signal
import threading

import pytest

import kills
from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.callbacks import Checkpoint, RunFolder, restore
from fedpara.federation import FederationCallback
from fedpara.files import is_reserved, reserve
from fedpara.interruption import INTERRUPTED, interruption
from fedpara.runs import read_rows
from fedpara.state import join
from helpers.cases import thinned
from helpers.federations import make_federation, same
from helpers.runs import rows_without_times
from helpers.shell import TINY

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(number):
    signal.raise_signal(number)  # in this thread, hence now


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_at_once_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        send(number)
    assert signal.getsignal(number) == before
    make_federation(num_rounds=1).fit()  # nothing of it is left


@pytest.mark.parametrize("number", SIGNALS)
def test_a_write_in_hand_is_finished(number):
    done = []

    def write():
        with interruption.held_back():
            send(number)
            done.append("written")

    with interruption.handled(), pytest.raises(KeyboardInterrupt):
        write()
    assert done == ["written"]


def exit_status(*signals):
    child = os.fork()
    if child == 0:
        try:
            with interruption.handled():
                try:
                    send(signals[0])
                except KeyboardInterrupt:
                    send(signals[1])
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_sigint_ends_the_process_at_once_a_second_sigterm_does_not(first):
    assert exit_status(first, signal.SIGINT) == INTERRUPTED
    assert exit_status(first, signal.SIGTERM) == 0


class Send(FederationCallback):
    """A signal while the second round is written: by the time of this callback its row is, its checkpoint is not."""

    def __init__(self, number):
        self.number = number

    def on_round_end(self, federation, record):
        if record.round == 2:
            send(self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_round_is_in_every_file_or_in_none(tmp_path, number):
    federation = make_federation(
        callbacks=[RunFolder(tmp_path, {}), Send(number), Checkpoint(tmp_path)], num_rounds=1000
    )
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        federation.fit()
    resumed = make_federation()
    restore(resumed, tmp_path)
    assert resumed.round == 2
    assert [row["round"] for row in read_rows(tmp_path / "metrics.csv")] == [1, 2]


@pytest.mark.parametrize("number", SIGNALS)
def test_lightning_does_not_leave_sigint_off(number):
    federation = make_federation(num_rounds=1000)
    step, handler = federation.executor.module.training_step, []

    def pressed(batch, batch_idx):
        handler.append(signal.getsignal(signal.SIGINT))
        send(number)
        return step(batch, batch_idx)

    federation.executor.module.training_step = pressed
    with interruption.handled():
        with pytest.raises(KeyboardInterrupt):
            federation.fit()
        assert signal.getsignal(signal.SIGINT) == handler[0] != signal.SIG_IGN


def test_half_a_row_is_no_row(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"round,test/acc\r\n1,0.5\r\n12,0.25\r\n1")
    assert [row["round"] for row in read_rows(path)] == [1, 12]
    path.write_bytes(b"\xff\x00\r\nnonsense\r\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: not a table of rounds"):
        read_rows(path)


@pytest.mark.slow
def test_a_run_folder_has_one_process(tmp_path):
    with reserve(tmp_path), pytest.raises(ValueError, match="another process is training in this run folder"):
        reserve(tmp_path)
    reserve(tmp_path).close()


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(["SCAFFOLD", "pFedPara + FedPAQ"]))
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, name):
    """tools/stress/kills.py does it as often as one likes."""
    whole, seconds = kills.undisturbed(tmp_path, name)
    _, _, differing = kills.trial(tmp_path, name, random.Random(1), whole, seconds)
    assert not differing


def test_a_round_that_is_interrupted_while_it_is_tested_has_not_been(tmp_path):
    federation = make_federation(callbacks=[RunFolder(tmp_path, {})], num_rounds=3)
    evaluate, tested = federation.executor.evaluate, []

    def pressed(*arguments):
        tested.append(arguments)
        if len(tested) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    federation.executor.evaluate = pressed
    with pytest.raises(KeyboardInterrupt):
        federation.fit()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert federation.round == summary["rounds"] == len(read_rows(tmp_path / "metrics.csv")) == 1
    federation.fit()  # as in a notebook
    whole = make_federation(num_rounds=3)
    whole.fit()
    assert same(federation.server["model"], whole.server["model"])
    assert (federation.round, federation.total_bytes) == (3, whole.total_bytes)
    assert [row["comm/total_bytes"] for row in read_rows(tmp_path / "metrics.csv")][-1] == whole.total_bytes


def test_who_looks_at_a_run_folder_does_not_stop_a_run_that_starts(tmp_path):
    looking = reserve(tmp_path)
    threading.Timer(0.2, looking.close).start()
    with reserve(tmp_path):
        assert is_reserved(tmp_path)
        with pytest.raises(ValueError, match="another process is training in this run folder"):
            reserve(tmp_path, patience_s=0.1)
    assert not is_reserved(tmp_path)


CHOICES = [  # with test_federation.py's, every algorithm, link and split
    "algorithm=scaffold link=fedpaq sharing=pfedpara factorization=pfedpara faults.dropout=0.4 faults.nan=0.3 "
    "executor=vectorized",
    "algorithm=fedyogi link=bf16 sharing=fedbn faults=flaky federation.retries=1",
    "algorithm=fedprox link=fedpaq",
    "algorithm=fedadagrad link=fp16 sharing=pfedpara factorization=pfedpara",
    "algorithm=fedavgm link=fp16_up sharing=fedper",
    "algorithm=feddyn link=fedpaq link.up_codec.bits=2 sharing=local",
]


def composed(choices, folder):
    folder.mkdir(exist_ok=True)
    options = ["federation.num_clients=4", "federation.clients_per_round=3", "federation.eval_every=9"]
    options += ["federation.evaluate_personal=false", "trainer.max_epochs=1", "data.max_test=5"]
    cfg = compose([*TINY, "data.max_train=16", *options, *choices.split()])
    experiment, federation = build(cfg, [RunFolder(folder, {}), Checkpoint(folder, memory_gb=0)])
    experiment.datamodule.setup()
    return federation


@pytest.mark.parametrize("choices", thinned(CHOICES, 6))
def test_every_algorithm_link_and_split_goes_on_as_if_nothing_had_been(tmp_path, choices):
    whole, first, second = (composed(choices, tmp_path / name) for name in ("whole", "parts", "parts"))
    whole.num_rounds, first.num_rounds, second.num_rounds = 3, 2, 3
    whole.fit()
    first.fit()
    restore(second, tmp_path / "parts")
    second.fit()
    assert same(join(whole.server), join(second.server))
    for kept, resumed in ((whole.personal, second.personal), (whole.memories, second.memories)):
        assert kept.keys() == resumed.keys()
        assert all(same(kept[client], resumed[client]) for client in kept)
    rows = rows_without_times(tmp_path / "parts")
    assert rows[0] == rows_without_times(tmp_path / "whole")[0]
    assert rows[2] == rows_without_times(tmp_path / "whole")[2]  # the second was the last, hence tested, in one alone
