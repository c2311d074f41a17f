"""What is on disk: read back to the bit, refused in one line where it is damaged, true at every instant of a write."""

import os
import weakref
from functools import partial
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpara.algorithms.scaffold import Scaffold
from fedpara.callbacks import Checkpoint, RunFolder, restore
from fedpara.communication import Cast, Link
from fedpara.execution import FaultInjection, LocalResult
from fedpara.federation import Federation, FederationCallback
from fedpara.files import UnusableFile
from fedpara.runs import CHECKPOINT
from fedpara.sharing import Split
from fedpara.state import join, layout_of
from fedpara.storage import ClientStates, read_tensors, write_tensors
from helpers.clients import ByHand
from helpers.federations import Watch, make_federation, same
from helpers.runs import rows_without_times

STATE = {
    "a": torch.randn(3, 4),
    "b": torch.tensor(2**40 + 1),
    "empty": torch.zeros(0, 2),
    "h": torch.randn(5).bfloat16(),
}
LAYOUT = layout_of(STATE)


def test_tensors_and_strings_come_back_to_the_bit(tmp_path):
    state = STATE | {"t": torch.randn(2, 2, 3, 3).to(memory_format=torch.channels_last)}
    write_tensors(tmp_path / "x", state, {"k": "v"})
    read, metadata = read_tensors(tmp_path / "x", LAYOUT)
    assert same(read, state)
    assert {name: tensor.dtype for name, tensor in read.items()} == {n: tensor.dtype for n, tensor in state.items()}
    assert metadata == {"k": "v"}
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("values", [torch.arange(12.0).view(4, 3)[1:2, 0], torch.ones(1).expand(5)])
def test_values_that_do_not_lie_side_by_side_are_kept(tmp_path, values):
    write_tensors(tmp_path / "x", {"w": values}, {})
    read, _ = read_tensors(tmp_path / "x", layout_of({"w": values}))
    assert same(read, {"w": values})


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_soon_after(tmp_path, monkeypatch):
    done = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    write_tensors(tmp_path / "x", STATE, {})
    assert done == [str(tmp_path / ".x.partial"), "renamed", str(tmp_path)]


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_of_any_kind_is_one_line(tmp_path, data):
    """Every bit of the file is under the checksum or the format: flipped, cut or grown, it is refused."""
    path = tmp_path / "x"
    write_tensors(path, STATE, {"progress": '{"round": 3}'})
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "noise"]))
    if kind == "flip":
        position = data.draw(st.integers(0, 8 * len(content) - 1))
        content[position // 8] ^= 1 << position % 8
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    if kind == "grow":
        content += data.draw(st.binary(min_size=1, max_size=50))
    if kind == "noise":
        content = data.draw(st.binary(max_size=200))
    path.write_bytes(content)
    line = None
    try:
        read, metadata = read_tensors(path, LAYOUT)
    except ValueError as error:
        line = str(error)
    if line is None:  # a bit that carries nothing, such as one of the name of the checksum itself
        assert same(read, STATE)
        assert metadata["progress"] == '{"round": 3}'
    else:
        assert line.startswith(f"{path}: cannot be used, it is damaged")
        assert "\n" not in line


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(4, 3)}, r"a is of shape \[3, 4\], not \[4, 3\]"),
        ({"a": torch.zeros(3, 4).double()}, "damaged"),
        ({"c": torch.zeros(1)}, "damaged or of another model"),
    ],
)
def test_other_names_shapes_and_types_are_refused(tmp_path, other, message):
    write_tensors(tmp_path / "x", STATE, {})
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "x", layout_of(other))


def test_a_checkpoint_with_nonsense_for_progress_is_refused(tmp_path):
    make_federation(num_rounds=1, callbacks=[Checkpoint(tmp_path)]).fit()
    state, _ = read_tensors(tmp_path / CHECKPOINT, {})
    for progress in ({}, {"progress": "no json"}, {"progress": '{"round": -1, "total_bytes": 0}'}):
        write_tensors(tmp_path / CHECKPOINT, state, progress)
        with pytest.raises(ValueError, match="not a checkpoint of this configuration's model"):
            restore(make_federation(), tmp_path)


def state_of(value, size=10):
    return {"w": torch.full((size,), float(value))}


def put(states, values):
    """A round after which these clients keep these values."""
    for client, value in values.items():
        states.add(client, state_of(value))
    states.keep(values)


@pytest.fixture
def read(monkeypatch):
    """The clients whose files have been read since one last looked."""
    files, tensors = [], read_tensors
    monkeypatch.setattr(
        "fedpara.storage.read_tensors", lambda path, layout: files.append(path) or tensors(path, layout)
    )

    def clients():
        found = [int(path.name.partition("-")[0]) for path in files]
        files.clear()
        return found

    return clients


def test_client_states_are_a_mapping_that_holds_a_budget_in_memory(tmp_path, read):
    states = ClientStates(tmp_path / "clients", layout_of(state_of(0)), memory_bytes=3 * 40)
    put(states, {client: client for client in range(8)})
    assert list(states) == list(range(8))
    assert len(states) == 8
    assert all(same(states[client], state_of(client)) for client in (5, 6, 7))
    assert read() == []  # the last three are in memory
    assert all(same(states[client], state_of(client)) for client in range(8))
    assert read() == list(range(8))  # each of these made room for itself
    states[5]
    put(states, {0: 100})
    assert same(states[0], state_of(100))
    assert all(same(states[client], state_of(client)) for client in (7, 5))
    assert read() == []
    states[6]
    assert read() == [6]  # the one used longest ago had gone
    assert states.get(9) is None


@pytest.mark.parametrize(("memory_bytes", "held"), [(0, 0), (39, 0), (119, 2), (10**9, 7)])
def test_the_budget_changes_nothing_but_memory(tmp_path, read, memory_bytes, held):
    states = ClientStates(tmp_path, layout_of(state_of(0)), memory_bytes)
    for value in range(20):
        put(states, {value % 7: value})
    order = [value % 7 for value in range(19, 12, -1)]  # the one used last first: those that are held stay so
    assert [float(states[client]["w"][0]) for client in order] == [19, 18, 17, 16, 15, 14, 13]
    assert len(read()) == 7 - held


def test_versions_named_by_a_checkpoint_stay_until_they_are_pruned(tmp_path):
    states = ClientStates(tmp_path, layout_of(state_of(0)), 0)
    put(states, {1: 1, 2: 2})
    named = dict(states.versions)
    put(states, {1: 10})
    assert float(ClientStates(tmp_path, layout_of(state_of(0)), 0, named)[1]["w"][0]) == 1
    states.prune()
    assert len(os.listdir(tmp_path)) == 2
    assert float(ClientStates(tmp_path, layout_of(state_of(0)), 0, states.versions)[1]["w"][0]) == 10
    with pytest.raises(ValueError, match=r"1-1\.safetensors: cannot be used"):
        ClientStates(tmp_path, layout_of(state_of(0)), 0, named)[1]


@pytest.mark.parametrize("memory_bytes", [0, 2 * 40, 10**9])
def test_a_next_state_counts_once_its_client_is_kept(tmp_path, memory_bytes):
    states = ClientStates(tmp_path, layout_of(state_of(0)), memory_bytes)
    put(states, {1: 1, 2: 2})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def now():
        return {client: float(states[client]["w"][0]) for client in states}

    for value in (10, 11):  # a second attempt takes the place of the first
        for client in (1, 2, 3):
            states.add(client, state_of(value))
        assert now() == {1: 1, 2: 2}
    states.keep([])  # the round failed
    assert now() == {1: 1, 2: 2}
    states.add(2, state_of(20))
    states.add(3, state_of(30))
    states.keep([1, 3])
    assert now() == {1: 1, 2: 2, 3: 30}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    states.prune()
    assert len(os.listdir(tmp_path)) == 3
    assert now() == {1: 1, 2: 2, 3: 30}


@pytest.mark.parametrize("kind", ["personal", "memories"])
def test_a_clients_state_of_another_shape_is_refused_though_its_checksum_is_right(tmp_path, kind):
    made = partial(make_federation, algorithm=Scaffold(), personal=["*2"], clients_per_round=5, num_rounds=1)
    made(callbacks=[Checkpoint(tmp_path)]).fit()
    path = next((tmp_path / "clients" / kind).iterdir())
    state, _ = read_tensors(path, {})
    first, *_ = state
    for wrong in ({first: torch.zeros(7)}, {first: state[first].double()}, {"more": torch.zeros(1)}):
        write_tensors(path, state | wrong, {})
        resumed = made(num_rounds=2, callbacks=[Checkpoint(tmp_path)])
        restore(resumed, tmp_path)
        with pytest.raises(UnusableFile, match=rf"{path}: cannot be used"):
            resumed.fit()


def test_a_checkpoint_writes_the_rounds_clients_only_and_keeps_no_old_ones(tmp_path):
    federation = make_federation(
        algorithm=Scaffold(), personal=["*2"], num_rounds=9, callbacks=[Checkpoint(tmp_path, memory_gb=0)]
    )
    seen = {}

    def changed():
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "clients").rglob("*.safetensors")}
        new = {path for path, time in now.items() if seen.get(path) != time}
        seen.clear()
        seen.update(now)
        return len(new)

    for callback in federation.callbacks:
        callback.on_fit_start(federation)
    for _ in range(9):
        record = federation.run_round()
        federation.callbacks[0].on_round_end(federation, record)
        assert changed() == 2 * 2  # two clients, a personal part and a memory each
        assert len(seen) == len(federation.personal) + len(federation.memories)


class Adder(ByHand):
    """An executor in no time: each client adds a number of its own to what is shared and to what it keeps."""

    trainable = ["shared", "own"]

    def initial_state(self):
        return {"shared": torch.zeros(4), "own": torch.zeros(2)}

    def run(self, tasks):
        for task in tasks:
            step = 0.1 * (task.client + 1) + (task.correction.offset["shared"] if task.correction.offset else 0)
            yield LocalResult(
                task.client, {"shared": task.state["shared"] + step, "own": task.state["own"] + 1}, 1, 1, 0.3, 0.5, 0.0
            )

    def evaluate(self, state, client=None):
        return {"acc": float(state["shared"].sum())}


def keeping(folder, executor=None, memory_gb=0.0, callbacks=(), **options):
    """A federation whose clients keep a personal part and a memory in files."""
    split, link = Split(["shared", "own"], ["own"]), Link(Cast(), Cast())
    executor, checkpoint = executor or Adder(), Checkpoint(folder, memory_gb=memory_gb)
    return Federation(
        executor, Scaffold(), link, split, [*callbacks, checkpoint], clients=checkpoint.clients(executor), **options
    )


class Living(Adder):
    """Counts how many personal parts that it returned are still in memory."""

    def __init__(self):
        self.returned = []

    def run(self, tasks):
        for result in super().run(tasks):
            self.returned.append(weakref.ref(result.state["own"]))
            yield result

    def count(self):
        return sum(reference() is not None for reference in self.returned)


@pytest.mark.parametrize("held", [0, 5])
def test_new_states_do_not_wait_in_memory_until_the_round_ends(tmp_path, held):
    living, counts = Living(), []
    watch = FederationCallback()
    watch.on_client_end = lambda federation, report: counts.append(living.count())
    options = {"num_clients": 40, "clients_per_round": 40, "num_rounds": 2}
    federation = keeping(tmp_path, living, 8 * held / 1e9, [watch], **options)
    federation.fit()
    assert len(counts) == 80
    assert max(counts) <= held + 1
    assert len(federation.personal) == 40


def test_a_failed_round_leaves_the_states_and_their_folder_as_they_were(tmp_path):
    """A round of which a NaN and an absent client leave too few, after others have written their states."""
    federation = keeping(tmp_path, num_clients=6, clients_per_round=6, num_rounds=3, min_clients=5)

    def found():
        kept = [(client, states[client]) for states in (federation.personal, federation.memories) for client in states]
        return {path: path.read_bytes() for path in (tmp_path / "clients").rglob("*.*")}, kept

    checkpoint = federation.callbacks[-1]
    checkpoint.on_fit_start(federation)
    checkpoint.on_round_end(federation, federation.run_round())
    files, kept = found()
    whole = federation.clients.executor
    federation.clients.executor = FaultInjection(whole, dropout=0.5)
    record = federation.run_round()
    assert 0 < record.clients["succeeded"] < 5
    checkpoint.on_round_end(federation, record)
    files_after, kept_after = found()
    assert files_after == files
    assert all(one == other and same(a, b) for (one, a), (other, b) in zip(kept, kept_after, strict=True))
    federation.clients.executor = whole
    federation.run_round()
    assert all(set(federation.personal[client]["own"].tolist()) == {2.0} for client in range(6))


def killable(folder):
    """One client fails in the first round, too many in the second, and in the third one needs a second attempt."""
    executor = FaultInjection(Adder(), dropout=0.3, nan=0.3)
    rounds = {"num_clients": 4, "clients_per_round": 3, "num_rounds": 3, "min_clients": 2, "retries": 1, "seed": 23}
    return keeping(folder, executor, callbacks=[RunFolder(folder, {})], **rounds)


CALLS = ("replace", "fsync", "unlink", "mkdir", "link")


def run_until(folder, last_call, make=killable):
    """A run in a process of its own, which dies as by SIGKILL before its n-th call that changes the disk."""
    child = os.fork()
    if child == 0:
        calls = count(1)

        def dying(call):
            def wrapped(*arguments, **options):
                if next(calls) == last_call:
                    os._exit(9)
                return call(*arguments, **options)

            return wrapped

        status = 1
        try:
            for name in CALLS:
                setattr(os, name, dying(getattr(os, name)))
            make(folder).fit()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go_on(folder):
    federation = killable(folder)
    if (folder / CHECKPOINT).is_file():
        restore(federation, folder)
    federation.fit()
    kept = [
        {client: states[client] for client in sorted(states)} for states in (federation.personal, federation.memories)
    ]
    return federation, kept


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 1])
def test_a_run_killed_before_any_of_its_writes_goes_on_to_the_same_end(tmp_path, monkeypatch, step):
    """Before each; by default before every fifth."""
    monkeypatch.setattr("fedpara.callbacks.run_folder.git_commit", lambda: None)
    (tmp_path / "whole").mkdir()
    whole, whole_kept = go_on(tmp_path / "whole")
    for last_call in count(1, step):
        folder = tmp_path / str(last_call)
        folder.mkdir()
        if (status := run_until(folder, last_call)) == 0:
            break
        assert status == 9
        resumed, kept = go_on(folder)
        assert same(join(resumed.server), join(whole.server))
        assert (resumed.round, resumed.total_bytes) == (whole.round, whole.total_bytes)
        for states, expected in zip(kept, whole_kept, strict=True):
            assert states.keys() == expected.keys()
            assert all(same(states[client], expected[client]) for client in states)
        assert rows_without_times(folder) == rows_without_times(tmp_path / "whole")
        assert sum(path.is_file() for path in folder.rglob("*")) == sum(
            path.is_file() for path in (tmp_path / "whole").rglob("*")
        )
    assert last_call > 60


def test_what_is_trained_in_float64_is_kept_in_the_models_types(tmp_path):
    """Read from disk, too: a file of other types than the layout's is refused."""
    watch = Watch()
    federation = make_federation(
        personal=["*2"], training={"precision": "64-true"}, callbacks=[Checkpoint(tmp_path, memory_gb=0), watch]
    )
    federation.fit()
    assert {tensor.dtype for state in federation.personal.values() for tensor in state.values()} == {torch.float32}
    assert len(watch.records) == 3
