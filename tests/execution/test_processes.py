"""Clients in worker processes: what comes back is serial's, to the bit, whatever happens to a worker."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fedpara.algorithms.scaffold import Scaffold
from fedpara.callbacks import Checkpoint, RunFolder, restore
from fedpara.data import Dirichlet
from fedpara.errors import signal_name
from fedpara.execution import (
    ClientFailure,
    FaultInjection,
    LocalResult,
    ProcessesExecutor,
    SerialExecutor,
    workers,
)
from fedpara.execution.dispatch import WINDOW, _chunks
from fedpara.execution.transfer import Room, dump, load
from fedpara.interruption import interruption
from fedpara.nn import FedPara, PFedPara, factorize
from fedpara.state import join
from helpers import ROOT
from helpers.clients import Obedient, by_hand, tasks
from helpers.federations import Watch, make_federation, same
from helpers.runs import rows, rows_without_times
from helpers.shell import SMALL


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """An executor whose clients do as they are told, and the folder to tell them in."""
    folder = tmp_path_factory.mktemp("told")
    made = make_federation(executor=partial(ProcessesExecutor, inner=partial(Obedient, folder=folder), workers=2))
    yield made.executor, folder
    made.executor.close()


@pytest.mark.slow
def test_float64_and_faults():
    """A network in float32 that is trained in float64 is as large as two slots; it travels in float32."""

    def fit(kind):
        federation = make_federation(
            executor=lambda training: FaultInjection(kind(training), nan=0.2, crash=0.2), max_epochs=1,
            training={"precision": "64-true"},
            clients_per_round=5, num_rounds=1, algorithm=Scaffold(), seed=1,
        )  # fmt: skip
        federation.fit()
        federation.executor.close()
        return federation

    serial, parallel = fit(SerialExecutor), fit(partial(ProcessesExecutor, workers=2))
    assert serial.server["model"]["layers.1.bias"].dtype == torch.float32
    assert same(join(serial.server), join(parallel.server))


def test_results_come_in_the_order_of_the_tasks_from_a_bounded_window(told):
    executor, _ = told
    drawn = []

    def lazily():
        for task in tasks(executor, [c % 5 for c in range(20)]):
            drawn.append(task)
            yield task

    for number, result in enumerate(executor.run(lazily())):
        assert result.client == number % 5
        assert len(drawn) <= number + 1 + WINDOW * executor.workers
    assert number == 19


def test_the_longest_tasks_go_first(monkeypatch, told):
    executor, _ = told
    sizes, handed = [3, 1, 5, 2, 4], []
    list(executor.run(tasks(executor)))
    monkeypatch.setattr(executor.datamodule, "num_examples", sizes.__getitem__)
    submit = workers.Workers.submit
    monkeypatch.setattr(
        workers.Workers, "submit", lambda pool, chunk: handed.append(chunk[0].client) or submit(pool, chunk)
    )
    assert [result.client for result in executor.run(tasks(executor))] == [0, 1, 2, 3, 4]
    assert handed == [2, 4, 0, 3, 1]


def test_a_client_that_raises_fails_alone_with_its_error_and_its_trace(told):
    executor, folder = told
    (folder / "1").write_text("a bug")
    (folder / "3").write_text("unspeakable")
    outcomes = list(executor.run(tasks(executor)))
    assert [outcome.client for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert [type(outcome) for outcome in outcomes] == [LocalResult, ClientFailure] * 2 + [LocalResult]
    assert outcomes[1].reason == "crashed (ValueError: a bug)"
    assert outcomes[3].reason == "crashed (RuntimeError: Unspeakable: unspeakable)"
    assert "in loader" in outcomes[1].error.__notes__[0]


@pytest.mark.slow
def test_what_a_worker_takes_with_it_is_trained_again_and_a_client_that_kills_three_fails_alone(told):
    executor, folder = told
    expected = by_hand(executor)
    (folder / "2").write_text("die")
    (folder / "4").write_text("die once")
    outcomes = list(executor.run(tasks(executor)))
    assert not (folder / "4").exists()
    reason = outcomes.pop(2).reason
    assert reason.startswith("crashed (WorkerKilled: a client's worker process died, three times: SIGKILL")
    del expected[2]
    assert all(same(outcome.state, state) for outcome, state in zip(outcomes, expected, strict=True))


@pytest.mark.slow
def test_the_signal_is_named_however_slowly_an_exit_status_is_read(told, monkeypatch):
    """Two threads that read one status together: the second is told 255, and that the first one knew is forgotten."""
    executor, folder = told
    read = multiprocessing.forkserver.read_signed
    monkeypatch.setattr(multiprocessing.forkserver, "read_signed", lambda fd: (time.sleep(0.05), read(fd))[1])
    (folder / "1").write_text("die")
    outcomes = list(executor.run(tasks(executor, range(3))))
    assert "three times: SIGKILL (was memory short?)" in outcomes[1].reason


@pytest.mark.parametrize(
    ("number", "name"), [(9, "SIGKILL"), (int(signal.SIGRTMIN) + 3, f"signal {int(signal.SIGRTMIN) + 3}")]
)
def test_every_signal_has_a_word(number, name):
    assert signal_name(number) == name


@pytest.mark.slow
def test_a_worker_that_dies_idle_is_not_missed(told):
    executor, _ = told
    list(executor.run(tasks(executor)))
    for process in multiprocessing.active_children():
        process.kill()
    time.sleep(0.1)
    assert all(isinstance(outcome, LocalResult) for outcome in executor.run(tasks(executor)))


@pytest.fixture
def semaphores(monkeypatch):
    """What this process has in shared memory under a name: the pool's semaphores; the memory itself has none."""
    prefix = f"mp{os.getpid()}"
    monkeypatch.setitem(multiprocessing.current_process()._config, "semprefix", f"/{prefix}")
    return lambda: list(Path("/dev/shm").glob(f"*{prefix}-*"))


def test_an_interruption_ends_the_workers_at_once_and_leaves_nothing_behind(told, semaphores):
    executor, folder = told
    executor.close()
    num_threads = torch.get_num_threads()
    for client in range(5):
        (folder / str(client)).write_text("sleep")
    started = []

    def press():
        while not (asleep := list(folder.glob("asleep-*"))):
            time.sleep(0.01)
        started.append((int(asleep[0].name.partition("-")[2]), semaphores(), time.monotonic()))
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        list(executor.run(tasks(executor)))
    presser.join()
    ((pid, held, pressed),) = started
    assert time.monotonic() - pressed < 5
    assert not Path(f"/proc/{pid}").exists()
    assert held
    assert not semaphores()
    assert torch.get_num_threads() == num_threads


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, request):
    options = {"recipe": PFedPara(gamma=1.0), "dropout": 0.5, "max_epochs": 1}
    executor = make_federation(executor=partial(ProcessesExecutor, workers=2), **options).executor
    request.addfinalizer(executor.close)

    class Press(Watch):
        def on_client_end(self, federation, result):
            if federation.round == 1:
                raise KeyboardInterrupt

    def made(folder, *callbacks):
        return make_federation(
            executor=lambda _: executor, personal=["*.0.[xy]2"], algorithm=Scaffold(),
            callbacks=[RunFolder(folder, {}), Checkpoint(folder), *callbacks], **options,
        )  # fmt: skip

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = made(tmp_path / "whole")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped", Press()).fit()
    resumed = made(tmp_path / "stopped")
    restore(resumed, tmp_path / "stopped")
    assert resumed.round == 1
    resumed.fit()
    assert same(join(resumed.server), join(whole.server))
    assert rows_without_times(tmp_path / "stopped") == rows_without_times(tmp_path / "whole")


def session(leader):
    """Processes of a session that live."""
    states = {path: path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")}
    return [path for path, fields in states.items() if int(fields[3]) == leader and fields[0] != "Z"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_run(tmp_path, number):
    """A terminal's SIGINT goes to all of its processes; the others here to the run's own alone."""
    command = [
        sys.executable,
        str(ROOT / "src" / "train.py"),
        *SMALL,
        "executor=processes",
        f"hydra.run.dir={tmp_path}",
    ]
    environment = os.environ | {"PROJECT_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    options = {"env": environment, "text": True, "stdout": -1, "stderr": -1, "start_new_session": True}
    run = subprocess.Popen([*command, "federation.num_rounds=100000"], **options)
    while not (tmp_path / "metrics.csv").is_file() or len(rows(tmp_path)) < 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    assert len(session(run.pid)) >= 4  # itself, the fork server, the workers
    (os.killpg if number == signal.SIGINT else os.kill)(run.pid, number)
    _, error = run.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert (run.returncode, error) == (130, "error: interrupted\n")
    time.sleep(3)
    assert not session(run.pid)


def test_examples_are_held_once_and_nothing_is_left_of_a_closed_executor(semaphores):
    executor = make_federation(executor=partial(ProcessesExecutor, workers=1)).executor
    images = executor.datamodule.examples[0].inputs.clone()
    list(executor.run(tasks(executor, [0])))
    held = executor.datamodule.examples[0].inputs
    assert held.is_shared()
    assert torch.equal(held, images)
    assert executor.datamodule.client_dataloader(0, 0).dataset.examples.inputs is held
    assert semaphores()
    executor.close()
    assert not semaphores()


def test_a_worker_is_handed_several_tasks_where_that_is_asked_for():
    executor = make_federation(
        executor=partial(ProcessesExecutor, workers=1, chunk=3), partition=Dirichlet(alpha=0.5, min_examples=2)
    ).executor
    results = list(executor.run(tasks(executor)))
    executor.close()
    assert [result.client for result in results] == [0, 1, 2, 3, 4]
    assert all(same(result.state, state) for result, state in zip(results, by_hand(executor), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers\n.*greater than or equal to 1"),
        ({"threads": 0}, "threads\n.*greater than or equal to 1"),
        ({"inner": partial(ProcessesExecutor)}, "inner=processes: must train in its own process, as serial does"),
    ],
)
def test_executors_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_federation(executor=partial(ProcessesExecutor, **options))


def test_data_workers_and_what_cannot_be_sent_are_refused_in_a_line():
    federation = make_federation()
    federation.executor.datamodule.num_workers = 1
    with pytest.raises(ValueError, match="num_workers=1: must be 0 under executor=processes"):
        ProcessesExecutor(federation.executor.training)
    executor = make_federation(executor=partial(ProcessesExecutor, inner=lambda training: SerialExecutor(training)))
    with pytest.raises(ValueError, match=r"executor=processes: .*lambda.*define it at the top of a module"):
        list(executor.executor.run(tasks(executor.executor)))


def test_what_is_laid_down_comes_back_as_it_was():
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    things = {
        "channels_last": weight, "again": weight, "a part": weight[:, 1], "bf16": torch.randn(3).bfloat16(),
        "one": torch.tensor(7), "none": torch.empty(0, 3), "last": torch.randn(50),
    }  # fmt: skip
    room = Room(10, 3000)
    data, memory = dump(things, room), torch.zeros(3000, dtype=torch.uint8)
    room.write(memory)
    for copy in (True, False):
        found = load(data, memory, copy=copy)
        assert same(found, things)
        assert found["channels_last"].stride() == weight.stride()
        assert (found["bf16"].untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()) is not copy
    assert len(room.laid) == len(things) - 1
    full = Room(0, 1300, known=room.laid)
    assert full.place(weight) == room.place(weight)
    assert same(load(dump({"large": torch.ones(400)}, full), memory, copy=True), {"large": torch.ones(400)})
    assert not full.laid


@pytest.mark.parametrize("network", [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), nn.LSTM(3, 4)])
def test_a_factorised_network_goes_to_another_process(network):
    factorize(network, FedPara(gamma=1.0))
    room = Room(0, 10**6)
    data, memory = dump(network, room), torch.zeros(10**6, dtype=torch.uint8)
    room.write(memory)
    copy = load(data, memory, copy=True)
    assert list(copy.state_dict()) == list(network.state_dict())
    assert same(copy.state_dict(), network.state_dict())
    inputs = torch.randn(2, 3, 5, 5) if isinstance(network, nn.Sequential) else torch.randn(5, 2, 3)
    outputs, expected = (made(inputs) for made in (copy, network))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


class Recorded:
    """An inner executor that keeps how it is to train."""

    device = torch.device("cpu")

    def __init__(self, training):
        self.training = training


@pytest.mark.parametrize(("worker", "num_devices", "devices"), [(0, 2, [0]), (1, 2, [1]), (4, 3, [1]), (1, 0, 1)])
@pytest.mark.parametrize("named", [None, [2], "2,"])
def test_workers_take_the_devices_in_turn_unless_the_trainer_names_one(
    monkeypatch, worker, num_devices, devices, named
):
    room, training = Room(0, 10**6), make_federation(training={"devices": 1}).executor.training
    if named:
        devices, training = named, replace(training, options={"devices": named})
    model, examples = dump((Recorded, training.without_data()), room), dump(training.datamodule, room)
    memory = torch.zeros(10**6, dtype=torch.uint8)
    room.write(memory)
    given = workers._Given(model, examples, memory, 1, num_devices, "highest")
    monkeypatch.setattr(workers, "_given", given, raising=False)
    monkeypatch.setattr(workers, "_device", worker, raising=False)
    assert workers._executor.__wrapped__().training.options["devices"] == devices


@pytest.mark.parametrize(
    ("clients", "sizes"), [(16, [4, 4, 4, 4]), (5, [3, 2]), (11, [4, 4, 2, 1]), (1, [1]), (9, [4, 4, 1])]
)
def test_the_last_turn_gives_every_worker_as_much(clients, sizes):
    """Two workers with four clients at once: five clients are not four and one."""
    chunks = list(_chunks(iter(range(clients)), 4, 2))
    assert [client for chunk in chunks for client in chunk] == list(range(clients))
    assert [len(chunk) for chunk in chunks] == sizes
