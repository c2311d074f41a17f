"""The queue of src/reproduce.py: stopped by a signal and started again, what it lists, its jobs, wrong input."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
import yaml
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from fedpara.app import reproduce
from fedpara.app.composition import CONFIG_DIR, sweep_params
from fedpara.app.composition import compose as compose_config
from fedpara.app.reproduce import entries, hours_left, queue
from fedpara.app.resume import with_saved_overrides
from fedpara.federation import FederationCallback
from fedpara.interruption import INTERRUPTED
from fedpara.report import settings
from fedpara.report.differences import is_called
from fedpara.runs import CHECKPOINT, Run
from helpers import ROOT
from helpers.federations import same
from helpers.runs import rows_without_times
from helpers.shell import SMALL, Forked

FOUR = [*SMALL, "federation.num_rounds=4"]
TYPED = " ".join([*FOUR, "+callbacks.z._target_=test_reproduce.StopOnce"])
TINY = f"""
- name: tiny
  common: {TYPED}
  jobs: ["factorization=dense seed=0", "factorization=fedpara seed=0"]
  baseline: dense
"""


class Process(Forked):
    """A forked job with the rest of what the queue asks of a process."""

    def __init__(self, command, env, stdout, cwd, start_new_session):
        super().__init__(command, env, stdout, cwd)
        self.pid, self.returncode = self.number, None

    def poll(self, flags=os.WNOHANG):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, number):
        os.kill(self.pid, number)


class StopOnce(FederationCallback):
    """In the third round of the first job, a signal to the queue; the job goes on until the queue stops it."""

    def on_client_end(self, federation, report):
        mark = os.environ["STOP_ONCE"]
        if federation.round == 2 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(600)


def lines(out, name="tiny"):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if f"│ {name}/" in line]


def test_a_queue_that_is_stopped_goes_on_to_the_same_bits_and_lists_what_is_left(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Process}))
    monkeypatch.setattr("fedpara.report.page.charts", lambda *_: {})  # tests/report draws
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT / 'tests'}:{ROOT / 'tests' / 'app'}")
    monkeypatch.setenv("STOP_ONCE", str(tmp_path / "mark"))
    assert shell(*FOUR, "factorization=dense", "hydra.run.dir=whole")[0] == 0  # and the jobs' imports, before they fork
    (tmp_path / "queue.yaml").write_text(TINY)
    command = ["--queue", "queue.yaml"]
    status, _, out = shell("--list", *command, program=reproduce)
    assert status == 0
    assert lines(out) == [
        ["tiny/factorization=dense_seed=0", "not started", "", "unknown"],
        ["tiny/factorization=fedpara_seed=0", "not started", "", "unknown"],
    ]

    status, error, _ = shell(*command, program=reproduce)
    assert (status, error.splitlines()[-1]) == (INTERRUPTED, "error: interrupted; the same command goes on")
    _, _, out = shell("--list", *command, program=reproduce)
    stopped = lines(out)
    assert [line[1:3] for line in stopped] == [["interrupted", "2"], ["not started", ""]]
    assert re.fullmatch(r"\d\.\d\d", stopped[0][3])
    assert "0 of 2 finished" in out
    assert "unknown for 1 job without" in out

    assert shell(*command, "--lanes=2", program=reproduce)[0] == 0
    _, _, out = shell("--list", *command, program=reproduce)
    assert [line[1:] for line in lines(out)] == [["finished", "4", ""]] * 2
    assert "2 of 2 finished" in out
    table = (tmp_path / "logs" / "reproduce" / "tiny" / "report" / "report.md").read_text()
    assert "| factorization=fedpara | factorization=dense | 4 | " in table

    one, other = tmp_path / "whole", tmp_path / "logs" / "reproduce" / "tiny" / "factorization=dense_seed=0"
    assert rows_without_times(one) == rows_without_times(other)
    assert same(load_file(one / CHECKPOINT), load_file(other / CHECKPOINT))


def test_the_queue_has_every_experiment_of_the_paper_and_its_jobs_go_seed_by_seed(tmp_path):
    known = entries(ROOT / "configs" / "reproduce.yaml")
    there = {f"experiment=paper/{path.stem}" for path in (ROOT / "configs/experiment/paper").glob("*.yaml")}
    assert there <= {entry.common.split(" ")[0] for entry in known}
    (figure,) = [entry for entry in known if entry.name == "fig5"]
    jobs = queue([figure], tmp_path)
    assert [job.values["seed"] for job in jobs] == [seed for seed in "01234" for _ in range(12)]
    assert jobs[0].folder == tmp_path / "fig5" / "setting=femnist_method=local_seed=0_lr=0.03"
    assert [job.folder for job in queue([figure], tmp_path, ["seed=0", "trainer=cpu"])] == [
        job.folder for job in jobs[:12]
    ]


def test_every_entry_has_its_baseline_and_the_rates_of_fig_5_are_those_of_its_kept_runs(tmp_path):
    """Table 4's baseline is the network with neither of the two, so both are seen against it."""
    known = {entry.name: entry for entry in entries(ROOT / "configs" / "reproduce.yaml")}
    for name, entry in known.items():
        jobs = [job for job in queue([entry], tmp_path) if job.values.get("seed", "0") == "0"]
        for job in jobs:
            job.folder.mkdir(parents=True)
            (job.folder / "overrides.yaml").write_text(yaml.safe_dump(list(job.overrides)))
        found = settings([job.run for job in jobs])
        named = [one.label for one in found if entry.baseline and is_called(one, entry.baseline)]
        assert len(found) == len(jobs)
        assert bool(named) == (entry.baseline is not None)
        assert len(named) == 1 or not name.startswith("table4")
    for job in queue([known["fig5"]], tmp_path):
        place = (
            ROOT / "results" / "fig5" / "final" / job.values["setting"] / f"{job.values['method']}-{job.values['seed']}"
        )
        assert Run(place).config["model.optimizer.lr"] == float(job.values["model.optimizer.lr"])


def test_a_job_that_ended_with_fewer_rounds_is_not_finished_and_takes_the_pace_of_other_seeds(tmp_path):
    path = tmp_path / "queue.yaml"
    path.write_text("- {name: a, common: experiment=quickstart, jobs: ['seed=0,1 federation.num_rounds=7200']}")
    one, other = queue(entries(path), tmp_path)
    one.folder.mkdir(parents=True)
    (one.folder / "metrics.csv").write_text("round,time/round_s\n1,2\n2,4\n")
    (one.folder / "summary.json").write_text('{"state": "finished"}')
    (one.folder / "overrides.yaml").write_text("[experiment=quickstart, seed=0, federation.num_rounds=2]")
    assert one.is_finished  # kept without a checkpoint
    assert hours_left(other, [one, other]) == pytest.approx(7200 * 3 / 3600)
    (one.folder / CHECKPOINT).touch()
    assert (one.state, other.state) == ("unfinished", "not started")
    assert hours_left(one, [one, other]) == pytest.approx(7198 * 3 / 3600)


@pytest.fixture
def job(tmp_path):
    """Makes a job whose run is finished, and then was resumed with other words typed."""

    def make(typed, resumed, **config):
        folder = tmp_path / "logs" / "a" / "job"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text('{"state": "finished"}')
        (folder / "overrides.yaml").write_text(yaml.safe_dump([*typed, *resumed]))
        (folder / "config.yaml").write_text(yaml.safe_dump({"factors": {}, **config}))
        (folder / CHECKPOINT).touch()
        return reproduce.Job(reproduce.Entry(name="a", common=" ".join(typed)), folder, tuple(typed))

    return make


@pytest.mark.parametrize(
    ("typed", "resumed", "finished"),
    [
        ("seed=0 model.optimizer.lr=0.1", "data.eval_batch_size=50 executor.workers=2 trainer=cpu", True),
        ("seed=0 trainer=cpu", "trainer.accelerator=auto federation.max_crashes=3 callbacks=clients", True),
        ("seed=0 federation.catch_up=True", "federation.catch_up=true", True),
        ("seed=0 federation.num_rounds=4", "federation.num_rounds=9", True),
        ("seed=0 federation.num_rounds=4", "federation.num_rounds=3", False),
        ("experiment=quickstart seed=0", "federation.num_rounds=2", False),  # a quickstart has more
        ("experiment=quickstart seed=0", "federation.num_rounds=99999", True),
        ("seed=0 model.optimizer.lr=0.1", "model.optimizer.lr=0.2", False),
        ("seed=0", "factors.gamma=0.3", False),
        ("seed=0", "trainer=gpu", False),
    ],
)
def test_what_was_typed_to_resume_a_job_leaves_it_finished_unless_it_decides_its_result(job, typed, resumed, finished):
    made = job(typed.split(" "), resumed.split(" "))
    assert made.is_finished == finished
    assert made.state == ("finished" if finished else "unfinished")


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_more_rounds_are_another_run_if_a_schedule_depends_on_their_number(job, schedule):
    federation = {"num_rounds": 9, "lr_schedule": schedule}
    made = job(["federation.num_rounds=4"], ["federation.num_rounds=9"], federation=federation)
    assert made.is_finished == (schedule is None)


@pytest.mark.parametrize("name", ["personal", "auto", "dense"])
def test_a_job_of_an_older_version_that_was_resumed_is_finished(tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(ROOT / "tests" / "system" / "old_runs" / name, folder)
    typed = yaml.safe_load((folder / "overrides.yaml").read_text())
    made = reproduce.Job(reproduce.Entry(name="a", common="seed=0"), folder, tuple(typed))
    assert made.is_finished
    resumed = [word for word in with_saved_overrides([f"resume={folder}"]) if not word.startswith(("resume", "hydra"))]
    assert resumed != typed
    (folder / "overrides.yaml").write_text(yaml.safe_dump(resumed))
    assert made.is_finished
    other = reproduce.Job(made.entry, folder, (*typed, "executor.matmul_precision=medium"))
    assert not other.is_finished


def test_a_file_in_a_queue_is_the_one_that_a_run_names_in_full(tmp_path, monkeypatch, job):
    """Only its content decides a result; what is typed for the run afterwards may name it elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pre.safetensors").write_bytes(b"weights")
    (tmp_path / "copy.safetensors").write_bytes(b"weights")
    common = "seed=0 pretrained.file=pre.safetensors"
    (queued,) = queue([reproduce.Entry(name="a", common=common)], tmp_path / "logs")
    assert queued.overrides == ("seed=0", f"pretrained.file='{tmp_path / 'pre.safetensors'}'")
    crc = {"crc32": crc32(b"weights")}
    for elsewhere in ([], [f"pretrained.file={tmp_path / 'copy.safetensors'}"]):
        assert job(list(queued.overrides), elsewhere, pretrained=crc).folder == queued.folder
        assert queued.is_finished
    (tmp_path / "pre.safetensors").write_bytes(b"others")
    assert not queued.is_finished
    (tmp_path / "pre.safetensors").unlink()
    assert not queued.is_finished


def test_a_job_goes_on_from_a_run_with_fewer_rounds_to_its_own(monkeypatch, job):
    started = []
    popen = SimpleNamespace(Popen=lambda command, **_: started.append(command) or SimpleNamespace(pid=0), DEVNULL=None)
    monkeypatch.setattr(reproduce, "subprocess", popen)
    monkeypatch.setattr(reproduce.os, "setpriority", lambda *_: None)
    reproduce._start(job(["experiment=quickstart"], ["federation.num_rounds=1"]), 0, None, 0)
    rounds = compose_config(["experiment=quickstart"]).federation.num_rounds
    assert f"federation.num_rounds={rounds}" in started[0]
    reproduce._start(job(["federation.num_rounds=4"], ["federation.num_rounds=1"]), 0, None, 0)
    assert [word for word in started[1] if "num_rounds" in word] == ["federation.num_rounds=4"]


def test_a_run_without_times_has_unknown_hours_and_its_other_seeds_take_the_pace_of_those_that_have(shell, tmp_path):
    """A table of an earlier version, or cut by hand, may lack the column."""
    path = tmp_path / "queue.yaml"
    path.write_text("- {name: a, common: experiment=quickstart, jobs: ['seed=0,1,2 federation.num_rounds=7202']}")
    jobs = first, second, third = queue(entries(path), tmp_path / "logs")
    for job, table in ((first, "round,test/acc\n1,0.5\n2,0.6\n"), (second, "round,time/round_s\n1,2\n2,4\n")):
        job.folder.mkdir(parents=True)
        (job.folder / "metrics.csv").write_text(table)
        if job is first:
            status, _, out = shell("--list", "--queue=queue.yaml", "--folder=logs", program=reproduce)
            assert (status, [line[3] for line in lines(out, "a")]) == (0, ["unknown"] * 3)
    assert first.run.seconds is None
    assert hours_left(first, jobs) == pytest.approx(7200 * 3 / 3600)
    assert hours_left(third, jobs) == pytest.approx(7202 * 3 / 3600)


def test_the_sweeps_of_experiments_are_those_that_hydra_composes():
    typed = ["experiment=paper/fig8", "sweep=rank"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", typed, return_hydra_config=True)
    assert sweep_params(typed) == {key: str(values) for key, values in cfg.hydra.sweeper.params.items()}
    assert len(sweep_params(typed)) == 2
    assert sweep_params(["seed=1"]) == {}
    files = [path for path in Path(CONFIG_DIR).rglob("*.yaml") if "sweeper" in path.read_text()]
    assert {path.relative_to(CONFIG_DIR).parts[0] for path in files} == {"experiment", "sweep"}
    for path in files:  # none takes a sweep from another one's file
        assert not any("experiment" in str(other) or "sweep" in str(other) for other in defaults_of(path))


def defaults_of(path):
    return yaml.safe_load(path.read_text()).get("defaults", [])


def test_a_list_composes_at_most_once_and_a_start_checks_every_entry_first(shell, tmp_path, monkeypatch):
    composed = []
    with monkeypatch.context() as counting:
        counting.setattr(reproduce, "require_composable", lambda fixed: composed.append(fixed))
        assert shell("--list", program=reproduce)[0] == 0
        assert composed == []
        assert shell("--list", "trainer=cpu", program=reproduce)[0] == 0
        assert len(composed) == 1
    text = "- {name: a, common: experiment=quickstart}\n- {name: b, common: experiment=nothing}"
    (tmp_path / "queue.yaml").write_text(text)
    status, error, _ = shell("--queue=queue.yaml", program=reproduce)
    assert (status, error.count("\n")) == (2, 1)
    assert "experiment/nothing" in error
    assert not (tmp_path / "logs").exists()


def test_a_report_is_written_before_the_baseline_has_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("fedpara.report.page.charts", lambda *_: {})
    entry = reproduce.Entry(name="a", common="seed=0", jobs=["method=local,fedavg,fedpara"], baseline="fedavg")
    for number, method in enumerate(["local", "fedpara", "fedavg"]):
        folder = tmp_path / "a" / f"method={method}"
        folder.mkdir(parents=True)
        (folder / "overrides.yaml").write_text(f"[method={method}]")
        (folder / "summary.json").write_text('{"state": "finished"}')
        (folder / "metrics.csv").write_text("round,test/acc,comm/total_bytes,time/round_s\n1,0.5,10,1\n")
        reproduce._conclude(reproduce.Job(entry, folder, ()), 0)
        page = (tmp_path / "a" / "report" / "report.md").read_text()
        assert ("| method=local | method=fedavg |" in page) == (number == 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only=nothing"], "--only=nothing: no job has this in its name"),
        (["--lanes=0"], "--lanes=0: must be at least 1"),
        (["quickly"], "quickly: must be key=value"),
        (["--scaled"], "--scaled: no entry of queue.yaml is scaled"),
        (["sed=1"], "sed: no such key; did you mean seed?"),
        (["--lanes=two"], "--lanes: 'two' must be a whole number"),
        (["--folders=x"], "unrecognized arguments: --folders=x"),
    ],
)
def test_wrong_input_is_one_line(shell, tmp_path, arguments, line):
    (tmp_path / "queue.yaml").write_text(TINY)
    status, error, _ = shell("--queue=queue.yaml", "--list", *arguments, program=reproduce)
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- {name: a, comon: b}", "queue.yaml: 0: common: Field required"),
        ("[]", "queue.yaml: List should have at least 1 item after validation, not 0"),
        ("\udcff", "queue.yaml: not valid YAML"),
        ("- {name: ../a, common: seed=1}", r"queue.yaml: 0: name: String should match pattern '^\w[\w.=+-]*$'"),
        ("- {name: a, common: seed='1}", "queue.yaml: 0: common: Value error, seed='1: No closing quotation"),
        (
            "- {name: a, common: seed=1, jobs: [seed]}",
            "queue.yaml: 0: jobs: 0: Value error, seed: missing EQUAL at '<EOF>'",
        ),
        ("- {name: a, common: seed=1}\n- {name: a, common: seed=1}", "a/job: must be in the queue once"),
    ],
)
def test_a_wrong_queue_is_one_line(shell, tmp_path, text, line):
    (tmp_path / "queue.yaml").write_bytes(os.fsencode(text))
    assert shell("--queue=queue.yaml", program=reproduce)[:2] == (2, f"error: {line}\n")
