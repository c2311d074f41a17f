"""The log of a run, the audit of a run folder, and rounds that are done again."""

import json
import re
import shutil
import subprocess
import sys
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from fedpara import chain
from fedpara.app import audit
from fedpara.app.composition import compose
from fedpara.app.run import run
from fedpara.callbacks import Audit, Checkpoint, RunFolder, restore
from fedpara.callbacks import audit as noted
from fedpara.federation import FederationCallback
from fedpara.files import UnusableFile
from fedpara.record import FATES
from fedpara.runs import PARTICIPANTS
from fedpara.storage import read_tensors, write_tensors
from helpers.cases import thinned
from helpers.federations import make_federation, same
from helpers.runs import rows_without_times
from test_storage import run_until

OPTIONS = [
    "model=mlp", "model.network.widths=[784,8,10]", "data.max_train=60", "data.max_test=20", "data.batch_size=16",
    "federation.num_clients=4", "federation.clients_per_round=2", "federation.num_rounds=3", "trainer=cpu",
    "trainer.max_epochs=1", "logger=none", "callbacks=audited", "callbacks.partition_picture=null",
]  # fmt: skip
PERSONAL = "factorization=pfedpara", "sharing=pfedpara"
UNCOVERED = {"summary.json", "train.log", ".lock", "audit.jsonl"}


def trained(folder, *choices):
    run(compose([*OPTIONS, *choices, f"paths.output_dir={folder}"], folder))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("original") / "run", *PERSONAL)


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def audited(shell):
    return lambda folder, *arguments: shell(f"run={folder}", *arguments, program=audit)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def kinds(folder):
    return [(line["kind"], line["round"]) for line in chain.read(folder / "audit.jsonl")]


def rewritten(folder, lines):
    """The log as a forger would write it: every hash fits again."""
    path = folder / "audit.jsonl"
    path.unlink()
    chain.append(path, [{k: v for k, v in line.items() if k not in ("previous", "hash")} for line in lines], "0" * 64)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def mismatch(folder):
    with pytest.raises(audit.Mismatch) as raised:
        audit.verified(folder)
    return str(raised.value)


def test_an_unchanged_run_fits_its_log_and_its_rounds_have_the_same_bits(folder, audited):
    status, error, out = audited(folder, "replay=all")
    assert (status, error) == (0, "")
    last = lines_of(folder)[-1]["hash"]
    head = "log: 4 lines, 3 rounds, up to round 3\nfiles: as in the log, with 4 kept checkpoints\n"
    assert out.startswith(f"{head}hash: {last}\n")
    everything = "cohort, broadcast, uploads, outcomes, server state, client states, rest of the checkpoint, metrics"
    for number in (1, 2, 3):
        assert f"round {number}: the same bits ({everything})\n" in out


@pytest.mark.parametrize(
    "choices",
    [
        "executor=vectorized",
        pytest.param("executor=processes executor.workers=2", marks=pytest.mark.slow),
        "algorithm=scaffold link=fedpaq faults=flaky faults.nan=0.3 federation.retries=1 callbacks.audit.keep=2",
        pytest.param(
            "sharing=rotating federation.catch_up=true algorithm=fedprox callbacks.audit.keep=null",
            marks=pytest.mark.slow,
        ),
        "federation.tiers={a:{share:0.5,gamma:0},b:{share:0.5,gamma:0.1}}",
        pytest.param("factorization=mud federation.catch_up=true", marks=pytest.mark.slow),
        pytest.param("aggregation=median faults=sign_flip faults.attackers=0.3", marks=pytest.mark.slow),
        pytest.param("link=topk faults.dropout=0.5 federation.min_clients=2", marks=pytest.mark.slow),
    ],
)
def test_other_executors_and_parts(tmp_path, audited, choices):
    folder = trained(tmp_path / "run", *choices.split(), "federation.clients_per_round=3")
    status, error, out = audited(folder, "replay=all")
    assert (status, out.count(": the same bits (cohort, broadcast, ")) == (0, 3), error


def test_a_run_folder_is_replayed_where_it_is_now(tmp_path, audited):
    folder = trained(tmp_path / "run", "federation.num_rounds=1").rename(tmp_path / "moved")
    status, error, out = audited(folder, "replay=1")
    assert (status, error, out.count("the same bits")) == (0, "", 1)


def test_off_there_is_no_log_and_the_bits_are_the_same(tmp_path, original):
    off = trained(tmp_path / "off", *PERSONAL, "callbacks=default", "callbacks.partition_picture=null")
    assert not [path for path in off.rglob("*") if "audit" in path.name]
    assert same(load_file(off / "checkpoint.safetensors"), load_file(original / "checkpoint.safetensors"))
    assert rows_without_times(off) == rows_without_times(original)


def test_a_flipped_byte_in_any_field_of_the_log_is_named_by_its_line(folder):
    path = folder / "audit.jsonl"
    content = path.read_bytes()
    every_field = {match.end() + more for match in re.finditer(rb'":|\n', content) for more in (-1, 1)}
    for position in sorted(every_field & {*range(len(content))}):
        flip(path, position)
        number = content[:position].count(b"\n") + 1
        expected = "ends within line 4" if position == len(content) - 1 else f"line {number} was changed"
        with pytest.raises(UnusableFile, match=rf"audit\.jsonl: {expected}"):
            chain.read(path)
        path.write_bytes(content)


def test_a_flipped_byte_of_any_file_is_named(folder, audited):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNCOVERED]
    names = {str(path.relative_to(folder)) for path in files}
    assert names >= {"config.yaml", "overrides.yaml", "metrics.csv", "checkpoint.safetensors", "audit/0.safetensors"}
    assert any(name.startswith("clients/personal/") for name in names)
    assert any(name.startswith("audit/clients/personal/") for name in names)
    for path in files:
        content = path.read_bytes()
        few = range(0, len(content), 17) if path.name == "metrics.csv" else (0, 8, len(content) // 2, len(content) - 1)
        for position in few if len(content) > 8 else (0,):
            flip(path, position)
            assert mismatch(folder).startswith(f"{path}: "), (path, position)
            path.write_bytes(content)
        path.unlink()
        assert mismatch(folder) == f"{path}: is missing, the log has it after round " + mismatch(folder)[-1]
        path.write_bytes(content)
    flip(folder / "config.yaml", 3)
    line = f"error: {folder}/config.yaml: was changed, it is not the file of the log after round 3\n"
    assert audited(folder, "replay=1") == (1, line, "")


def test_a_value_of_the_metrics_is_named(folder):
    path = folder / "metrics.csv"
    header, *rows = path.read_text().splitlines(keepends=True)
    sent = lines_of(folder)[2]["row"]["comm/up_bytes"]
    path.write_text("".join([header, rows[0], rows[1].replace(f"{sent},", "7,", 1), rows[2]]), newline="")
    assert mismatch(folder) == f"{path}: in round 2 comm/up_bytes is 7.0, and {float(sent)} in the log"
    path.write_text("".join([header, rows[0], rows[2]]), newline="")
    assert mismatch(folder) == f"{path}: has no round 2, and the log has it"
    path.write_text("".join([header, *rows, "4" + rows[2][1:]]), newline="")
    assert mismatch(folder) == f"{path}: has round 4, and the log ends with round 3"


@pytest.mark.parametrize(
    ("order", "line"),
    [
        ((0, 2, 3), "line 2 does not follow on line 1"), ((1, 2, 3), "line 1 does not follow on the start"),
        ((0, 2, 1, 3), "line 2 does not follow on line 1"), ((0, 1, 1, 2, 3), "line 3 does not follow on line 2"),
        ((), "begins with no start of a run"),
    ],
)  # fmt: skip
def test_lines_that_were_removed_moved_or_added(folder, order, line):
    path = folder / "audit.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[number] for number in order))
    assert mismatch(folder).startswith(f"{path}: {line}")


def test_a_log_that_was_cut(folder):
    path = folder / "audit.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])
    assert mismatch(folder) == f"{path}: ends within line 4"
    path.write_text("".join(text.splitlines(keepends=True)[:3]))
    assert mismatch(folder) == f"{folder}/metrics.csv: has round 3, and the log ends with round 2"
    path.write_text('{"previous":"' + "0" * 64 + '"}\n')
    assert "line 1 was changed" in mismatch(folder)
    rewritten(folder, [{"kind": "start"}, {"kind": "round"}])
    assert mismatch(folder) == f"{path}: is not a log of this version"


FORGED = {
    "cohort": ([0, 1], "the cohort is [0, 2], and [0, 1] in the log"),
    "broadcast": ([1, "0" * 64], "the broadcast is not that of the log"),
    "uploads": ("last", "the upload of client 2 is not that of the log"),
    "outcomes": (
        {"0": "succeeded", "2": "late"},
        "the outcome of client 2 is not that of the log: succeeded, not late",
    ),
    "server": ("0" * 64, "the server state is not that of the log"),
    "progress": ("0" * 64, "the rest of the checkpoint is not that of the log"),
    "row": ("test/loss", "test/loss is "),
}


@pytest.mark.parametrize("field", thinned(FORGED))
def test_a_log_that_was_written_anew_is_told_by_a_replay_and_by_a_published_hash(folder, audited, field):
    lines, (value, found) = lines_of(folder), FORGED[field]
    published, line = lines[-1]["hash"], lines[2]
    assert line["cohort"] == [0, 2]
    if value == "last":
        line["uploads"][1][2] = "0" * 64
    elif field == "row":
        before = line["row"][value]
        line["row"][value] = 0.25
        table = folder / "metrics.csv"
        table.write_text(table.read_text().replace(str(before), "0.25"), newline="")
        lines[3]["files"]["metrics.csv"] = chain.file_digest(table)
    else:
        line[field] = value
    rewritten(folder, lines)
    assert audited(folder)[:2] == (0, "")
    assert audited(folder, f"expect={published}")[0] == 1
    status, error, _ = audited(folder, "replay=2")
    assert (status, error.startswith(f"error: round 2: {found}")) == (1, True), error


@pytest.mark.parametrize("number", [2, 3])
def test_a_checkpoint_that_was_exchanged_is_told(folder, audited, number):
    """A forger changes the model after a round, its own checksum and the file's hash in the log."""
    path, lines = folder / "audit" / f"{number}.safetensors", lines_of(folder)
    state, metadata = read_tensors(path, {})
    write_tensors(path, {name: tensor + 1 for name, tensor in state.items()}, metadata)
    lines[number]["files"]["checkpoint.safetensors"] = chain.file_digest(path)
    if number == 3:
        shutil.copy(path, folder / "checkpoint.safetensors")
    rewritten(folder, lines)
    assert audited(folder)[:2] == (0, "")
    for chosen in range(number, 4):
        line = f"error: {path}: is not the state that the log has after round {number}\n"
        assert audited(folder, f"replay={chosen}")[:2] == (1, line)


def test_a_changed_tensor_is_named(folder, audited, monkeypatch):
    """As if this program computed otherwise."""
    observed = noted.Witness.observed

    def changed(self, federation, record):
        name = next(iter(federation.server["model"]))
        federation.server["model"][name] = federation.server["model"][name] + 1
        return observed(self, federation, record)

    monkeypatch.setattr(noted.Witness, "observed", changed)
    names = list(load_file(folder / "checkpoint.safetensors"))
    _, error, _ = audited(folder, "replay=1")
    assert f"error: round 1: the server state is not that of the log; 1 of {len(names)} tensors differ, first " in error


def test_data_that_changed_are_told_before_the_round(folder, audited):
    status, error, _ = audited(folder, "replay=1", "data.max_test=19")
    line = "error: round 1: the examples, or who holds which, are not those of the log\n"
    assert (status, error) == (1, line)


def test_another_processor_is_said_before_a_round_differs(folder, audited):
    lines = lines_of(folder)
    lines[0]["surroundings"]["vector_instructions"] = "NO AVX"
    rewritten(folder, lines)
    _, _, out = audited(folder, "replay=2")
    own = torch.backends.cpu.get_cpu_capability()
    assert f"note: the bits may differ because of vector_instructions NO AVX then, {own} now\n" in out


def test_a_published_hash(folder, audited):
    hashes = [line["hash"] for line in lines_of(folder)]
    assert "expected" not in audited(folder, f"expect={hashes[3]}")[2]
    assert (
        "expected: the hash after round 1, behind which lines were added\n" in audited(folder, f"expect={hashes[1]}")[2]
    )
    status, error, _ = audited(folder, "expect=abc")
    line = f"error: expect=abc: no line of {folder}/audit.jsonl has this hash, it is not the log that was published\n"
    assert (status, error) == (1, line)


def test_checking_builds_nothing(folder):
    """The quick part starts without torch."""
    code = "import sys; from pathlib import Path; from fedpara.app.audit import verified; verified(Path(sys.argv[1])); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}assert 'torch' not in sys.modules", folder], capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_resumed_run_goes_on_with_its_chain(tmp_path, audited, shell):
    """Its second round was the last, hence tested; that a replay knows too."""
    folder = tmp_path / "run"
    own = [*OPTIONS, "federation.eval_every=9", f"hydra.run.dir={folder}"]
    assert shell(*own, "federation.num_rounds=2")[0] == 0
    with (folder / "audit.jsonl").open("a") as stream:
        stream.write('{"broadcast":[2')  # of a process that was killed
    assert shell(f"resume={folder}", "federation.num_rounds=3")[0] == 0
    assert kinds(folder) == [("start", 0), ("round", 1), ("round", 2), ("start", 2), ("round", 3)]
    status, error, out = audited(folder, "replay=all")
    assert (status, error, out.count("the same bits")) == (0, "", 3)
    flip(folder / "audit.jsonl", 99)
    status, error, _ = shell(f"resume={folder}", "federation.num_rounds=4")
    assert (status, error) == (
        2,
        f"error: {folder}/audit.jsonl: line 1 was changed, its hash is not that of its content\n",
    )
    flip(folder / "audit.jsonl", 99)
    assert shell(f"resume={folder}", "federation.num_rounds=4", "callbacks=default")[0] == 0
    assert "config.yaml" in mismatch(folder) or "metrics.csv: has round 4" in mismatch(folder)
    status, error, _ = shell(f"resume={folder}", "federation.num_rounds=5", "callbacks=audited")
    assert (status, error.count("\n")) == (2, 1)
    assert "audit.jsonl: ends with round 3, and the checkpoint is of round 4; its rounds between were not" in error


class Killed(FederationCallback):
    """A process that ends when a round is in the log and its checkpoint does not count yet."""

    def __init__(self, number):
        self.number = number

    def on_checkpoint(self, federation, path):
        if federation.round == self.number:
            raise KeyboardInterrupt


def audited_federation(folder, *others, every=1, **options):
    """In the tests of the library: every part of the log but config.yaml."""
    folder.mkdir(exist_ok=True)
    callbacks = [RunFolder(folder, {}), Audit(folder), *others, Checkpoint(folder, every=every)]
    return make_federation(callbacks=callbacks, personal=["*.parametrizations.*.0.[xyt]2"], num_rounds=4, **options)


@pytest.mark.parametrize(("every", "killed", "left"), thinned([(1, 2, 1), (2, 4, 2)]))
def test_a_run_that_is_killed_between_log_and_checkpoint_drops_the_line(tmp_path, every, killed, left):
    whole = audited_federation(tmp_path / "whole")
    whole.fit()
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        audited_federation(folder, Killed(killed), every=every).fit()
    assert kinds(folder)[-1] == ("round", killed)
    resumed = audited_federation(folder, every=every)
    restore(resumed, folder)
    assert resumed.round == left
    resumed.fit()
    rounds = [("round", number) for number in range(1, 5)]
    assert kinds(folder) == [("start", 0), *rounds[:left], ("start", left), *rounds[left:]]
    audit.verified(folder)
    own = ("cohort", "broadcast", "uploads", "outcomes", "server", "states", "progress")
    by_round = [{line["round"]: {name: line[name] for name in own} for line in chain.read(path / "audit.jsonl")
                 if line["kind"] == "round"} for path in (folder, tmp_path / "whole")]  # fmt: skip
    assert by_round[0] == by_round[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [25, 3])
def test_a_run_killed_before_any_of_its_writes_has_a_whole_chain_in_the_end(tmp_path, monkeypatch, step):
    for module in ("audit", "run_folder"):
        monkeypatch.setattr(f"fedpara.callbacks.{module}.git_commit", lambda: None)
    for last_call in count(1, step):
        folder = tmp_path / str(last_call)
        if (status := run_until(folder, last_call, audited_federation)) == 0:
            break
        assert status == 9
        resumed = audited_federation(folder)
        if (folder / "checkpoint.safetensors").is_file():
            restore(resumed, folder)
        resumed.fit()
        audit.verified(folder)
        rounds = [line["round"] for line in chain.read(folder / "audit.jsonl") if line["kind"] == "round"]
        assert rounds == [1, 2, 3, 4]
    assert last_call > 100


class Interrupted(FederationCallback):
    def on_broadcast(self, federation, cohort, broadcast):
        if federation.round == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_may_have_rows_behind_its_last_checkpoint(tmp_path, audited):
    with pytest.raises(KeyboardInterrupt):
        audited_federation(tmp_path, Interrupted(), every=2).fit()
    status, error, out = audited(tmp_path)
    assert (status, error) == (0, "")
    assert "note: metrics.csv goes on to round 3, and the log does not: the run is interrupted" in out
    path = tmp_path / "metrics.csv"
    content = path.read_bytes()
    for old, new in ((b"\n2,", b"\n1,"), (b"\n2,", b"\n2, "), (b"\n3,", b"\n2,")):
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        assert mismatch(tmp_path).startswith(str(path))
    path.write_bytes(content)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"state": "finished"}))
    assert mismatch(tmp_path) == f"{tmp_path}/metrics.csv: has round 3, and the log ends with round 2"


def test_a_run_that_starts_anew_begins_a_new_log(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        audited_federation(tmp_path, Killed(1)).fit()
    audited_federation(tmp_path).fit()
    assert kinds(tmp_path) == [("start", 0), *(("round", number) for number in range(1, 5))]
    audit.verified(tmp_path)


@pytest.mark.slow
def test_a_log_may_begin_later(tmp_path, audited, shell):
    folder = tmp_path / "run"
    own = [*OPTIONS, *PERSONAL, f"hydra.run.dir={folder}", "callbacks.audit.keep=2"]
    assert shell(*own[:-1], "callbacks=default", "federation.num_rounds=1")[0] == 0
    assert shell(f"resume={folder}", "callbacks=audited", "callbacks.audit.keep=2", "federation.num_rounds=3")[0] == 0
    assert kinds(folder) == [("start", 1), ("round", 2), ("round", 3)]
    status, error, _ = audited(folder, "replay=2")
    line = "error: replay=2: no checkpoint before it was kept, and the log begins behind round 1\n"
    assert (status, error) == (2, line)
    status, error, out = audited(folder, "replay=3")
    assert (status, error, out.count("the same bits")) == (0, "", 1)
    assert len(lines_of(folder)[0]["states"]) == 2


def test_kept_checkpoints_cost_no_copy_and_are_as_far_apart_as_asked(tmp_path):
    trained(tmp_path / "run", *PERSONAL, "callbacks.audit.keep=2", "federation.num_rounds=4")
    folder = tmp_path / "run" / "audit"
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [f"{n}.safetensors" for n in (0, 2, 4)]
    assert (folder / "4.safetensors").samefile(tmp_path / "run" / "checkpoint.safetensors")
    for path in (tmp_path / "run" / "clients").rglob("*.safetensors"):
        assert (folder / path.relative_to(tmp_path / "run")).samefile(path)


class Sent(FederationCallback):
    def __init__(self):
        self.uploads, self.broadcasts = [], []

    def on_broadcast(self, federation, cohort, broadcast):
        self.broadcasts.append((cohort, broadcast))

    def on_upload(self, federation, reply):
        self.uploads.append(reply)


def test_the_hashes_are_those_of_the_bytes_on_the_wire(tmp_path):
    sent = Sent()
    audited_federation(tmp_path, sent, codec="float16").fit()
    rounds = [line for line in chain.read(tmp_path / "audit.jsonl") if line["kind"] == "round"]
    noted = [upload for line in rounds for upload in line["uploads"]]
    assert len(noted) == len(sent.uploads) == 8
    for (client, size, digest), reply in zip(noted, sent.uploads, strict=True):
        content = reply.packet.payload.numpy().tobytes()
        assert (client, size, digest) == (reply.report.client, len(content), chain.digest(content))
    for line, (cohort, broadcast) in zip(rounds, sent.broadcasts, strict=True):
        assert line["cohort"] == cohort
        assert line["broadcast"][1] == chain.digest(broadcast.packet.payload.numpy().tobytes())


def test_the_seed_is_committed_to_and_not_told(folder):
    (start, *_) = lines_of(folder)
    assert start["seed"] == chain.digest(f"{start['salt']} 0".encode())
    assert len(start["salt"]) == 64


PRIVATE = "privacy=gaussian", "privacy.noise_multiplier=1"


def test_a_private_run_logs_nothing_of_single_clients_and_says_what_cannot_be_done_again(tmp_path, audited):
    pytest.importorskip("dp_accounting")
    folder = trained(tmp_path / "run", *PRIVATE)
    rounds = [line for line in lines_of(folder) if line["kind"] == "round"]
    assert not {"cohort", "uploads", "outcomes", "states", "progress", "packets"} & {*rounds[0]}
    assert "train/loss" not in rounds[0]["row"]
    status, error, out = audited(folder, "replay=2")
    hidden = "server state, rest of the checkpoint, metrics"
    note = f"note: noise from the operating system's entropy cannot be drawn again, so not compared: {hidden}\n"
    assert (status, note in out, "round 2: the same bits (broadcast)\n" in out) == (0, True, True), error


def test_rounds_behind_noise_that_cannot_be_drawn_again_are_refused_and_not_accused(tmp_path, audited):
    pytest.importorskip("dp_accounting")
    folder = trained(tmp_path / "run", *PRIVATE, "callbacks.audit.keep=2")
    status, error, out = audited(folder, "replay=1,3")
    assert (status, out.count("the same bits (broadcast)")) == (0, 2), error
    status, error, out = audited(folder, "replay=all")
    assert (status, "round 1: the same bits" in out) == (2, True)
    line = "error: replay=2: must be a round behind a kept checkpoint, the noise of round 1 cannot be "
    assert error.splitlines()[-1].startswith(line), error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "compared"),
    [
        ("privacy.seed=1", "(broadcast, server state, metrics)"),
        ("privacy.client_metrics=true", "(cohort, broadcast, uploads, outcomes, client states)"),
        ("privacy.client_metrics=true privacy.noise=clients", "(cohort, broadcast, outcomes, client states)"),
    ],
)
def test_what_is_compared_of_a_private_run(tmp_path, audited, choices, compared):
    pytest.importorskip("dp_accounting")
    folder = trained(tmp_path / "run", *PRIVATE, *choices.split())
    status, error, out = audited(folder, "replay=all")
    assert (status, out.count(f"the same bits {compared}\n")) == (0, 3), error


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["replay=4"], "replay=4: must be all, or rounds of the log, 1 to 3"),
        (["replay=one"], "replay=one: must be all, or rounds of the log, 1 to 3"),
        (["replay=²"], "replay=²: must be all, or rounds of the log, 1 to 3"),
        (["seed=1"], "seed=1: needs replay=, nothing is built without it"),
        (["replay=1", "executor._target_=os.system"], None),
    ],
)
def test_wrong_arguments_are_one_line(folder, audited, arguments, line):
    status, error, _ = audited(folder, *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert line is None or error == f"error: {line}\n"


def test_a_folder_without_a_log_and_real_clients_are_one_line(folder, audited, shell, tmp_path):
    line = f"error: run={tmp_path}: holds no audit.jsonl; a run has one with callbacks=audited\n"
    assert audited(tmp_path) == (2, line, "")
    assert shell(program=audit)[1].startswith("error: run: missing; give a run folder, ")
    (folder / PARTICIPANTS).write_text("")
    assert mismatch(folder) == f"{folder}/{PARTICIPANTS}: is not in the log"
    lines = lines_of(folder)
    lines[-1]["files"][PARTICIPANTS] = chain.digest(b"")
    rewritten(folder, lines)
    status, error, _ = audited(folder, "replay=1")
    assert (status, error) == (2, "error: replay=1: must be absent, the clients of this run have their own data\n")


def test_a_log_needs_checkpoints_behind_it(tmp_path, shell):
    line = (
        "error: callbacks.audit: the audit log needs a Checkpoint behind it among the callbacks, in the same folder\n"
    )
    assert shell(*OPTIONS, "callbacks.checkpoint=null")[:2] == (2, line)
    with pytest.raises(ValueError, match="needs a Checkpoint behind it"):
        make_federation(callbacks=[Checkpoint(tmp_path), Audit(tmp_path)]).fit()


@pytest.mark.slow
def test_fates_are_those_of_the_records(tmp_path):
    folder = trained(tmp_path / "run", "faults.dropout=0.4", "faults.nan=0.3", "federation.clients_per_round=4")
    rounds = [line for line in lines_of(folder) if line["kind"] == "round"]
    for line in rounds:
        fates = [*line["outcomes"].values()]
        assert [line["row"][f"clients/{fate}"] for fate in FATES] == [fates.count(fate) for fate in FATES]
        assert sorted(map(int, line["outcomes"])) == line["cohort"]
        assert len(line["uploads"]) == fates.count("succeeded") + fates.count("diverged")
    assert {fate for line in rounds for fate in line["outcomes"].values()} >= {"succeeded", "dropped"}
