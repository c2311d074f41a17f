"""`make gpu-proof`: its parts, what a second call repeats, and the page; nothing here needs a GPU."""

import json
import subprocess
import sys

import pytest
import torch

import gpu_measure
import gpu_proof
from gpu_programs import failures
from helpers import ROOT

STEP = {"precision": "32-true", "variant": "dense", "way": "captured"}
MEASURED = {"captured": "no", "clients_at_once": 1, "steps_per_s": 2.5, "peak_mb": None, "note": ""}
RESULTS = {
    "tests": {"passed": 2, "skipped": 0, "failed": []},
    "steps": {"rows": [STEP | MEASURED, STEP | {"note": "no time"}]},
    "pfl": {"rows": [{"variant": "vectorized", "rounds": [0.5], "round_s": 0.5, "accuracy": 0.25}]},
    "paper": {"rounds": [{}, {}], "accuracy": 0.125, "round_s": 4.0},
}


@pytest.fixture
def proof(monkeypatch, tmp_path):
    """Runs the command with parts that do nothing; returns its exit status and the parts that it ran."""
    results = dict(RESULTS)

    def command(*arguments):
        ran = []

        def run(name, scale):
            ran.append(name)
            return {"seconds": 1.5} | results[name]

        monkeypatch.setattr(gpu_proof, "run_part", run)
        try:
            gpu_proof.main(["scale=tiny", f"out={tmp_path}", *arguments])
        except SystemExit as end:
            return end.code, ran
        return 0, ran

    command.results = results
    return command


def test_a_second_call_repeats_only_what_failed_or_was_made_elsewhere(proof, tmp_path, capsys):
    proof.results["pfl"] = {"error": "CIFAR-10 is missing"}
    assert proof("commit=a") == ("pfl: CIFAR-10 is missing", [*RESULTS])
    page = (tmp_path / "README.md").read_text()
    assert "| pfl | 1.5 | CIFAR-10 is missing |" in page
    assert "| 32-true | dense | captured | no | 1 | 2.5 |  |  |" in page
    assert "| 2 | 12.50 | 4.00 |" in page
    proof.results |= RESULTS
    assert proof("commit=a") == (0, ["pfl"])
    assert proof("commit=a") == (0, [])
    assert "| vectorized | 2.00 | 2 | 25.0 |  |" in (tmp_path / "README.md").read_text()
    (tmp_path / "steps.json").unlink()  # as if the command had been killed
    assert proof("commit=a") == (0, ["steps"])
    assert proof("commit=b") == proof("commit=a-dirty") == proof("commit=a-dirty") == (0, [*RESULTS])
    assert json.loads((tmp_path / "proof.json").read_text())["parts"]["paper"]["accuracy"] == 0.125


@pytest.mark.parametrize(
    ("program", "error"),
    [
        pytest.param(
            "import time; print('started', flush=True); time.sleep(60)",
            "did not end within 2 s",
            marks=pytest.mark.slow,
            id="hangs",
        ),
        ("raise ValueError('no such file')", "ValueError: no such file"),
        ("import os; os._exit(3)", "nothing printed"),
    ],
)
def test_a_part_that_hangs_or_dies_has_one_line(monkeypatch, tmp_path, program, error):
    file = tmp_path / "program.py"
    file.write_text(program)
    monkeypatch.setitem(gpu_proof.PARTS, "tests", (file, 2))
    assert gpu_proof.run_part("tests", "tiny")["error"] == error


@pytest.mark.parametrize(
    ("argument", "key"), [("scales=tiny", "scales"), ("scale=huge", "scale=huge"), ("scale=full", "scale=full")]
)
def test_a_wrong_option_is_named(monkeypatch, argument, key):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"error: {key}"):
        gpu_proof.main([argument])


@pytest.mark.slow
def test_steps_are_counted_in_every_way_and_none_is_called_captured_without_a_gpu(monkeypatch):
    chosen = {name: gpu_measure.VARIANTS[name] for name in ("dense", "einsum 0.1", "fedpara 0.1")}
    monkeypatch.setattr(gpu_measure, "VARIANTS", chosen)
    results = gpu_measure.steps(tiny=True, end=float("inf"))
    assert "error" not in results
    rows = [(row["variant"], row["way"], row["captured"], row["steps"]) for row in results["rows"][:10]]
    ways = [(way, "no", 4 if "folded" in way else 2) for way in gpu_measure.WAYS]
    each = {name: ways if "einsum" not in name else ways[:2] for name in chosen}
    assert rows == [(name, *way) for name in chosen for way in each[name]]
    assert {row["note"] for row in gpu_measure.steps(tiny=True, end=0)["rows"]} == {"no time"}


def test_a_step_that_fails_is_named_and_the_others_are_measured(monkeypatch):
    def broken(data, variant, way, *others):
        if way == "captured":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return MEASURED

    monkeypatch.setattr(gpu_measure, "measure", broken)
    monkeypatch.setattr(gpu_measure, "VARIANTS", {"dense": gpu_measure.VARIANTS["dense"]})
    results = gpu_measure.steps(tiny=True, end=float("inf"))
    first, _ = results["error"].split("; ")
    assert first == "bf16-mixed, dense, captured, RuntimeError: operation not permitted when stream is capturing"
    assert sum("steps_per_s" in row for row in results["rows"]) == 6
    assert failures([MEASURED]) == {}


def test_replays_of_cuda_graphs_are_counted_and_still_done(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", done.append)
    with gpu_measure.counted_replays() as replays:
        torch.cuda.CUDAGraph.replay("first")
        torch.cuda.CUDAGraph.replay("second")
    torch.cuda.CUDAGraph.replay("uncounted")
    assert (len(replays), done) == (2, ["first", "second", "uncounted"])


@pytest.mark.slow
def test_the_whole_command_at_its_tiny_scale(tmp_path):
    """Real parts: pytest, the executors, rounds beside pfl if it is at hand, and src/train.py."""
    command = [sys.executable, "benchmarks/gpu_proof.py", "scale=tiny", f"out={tmp_path}", "commit=a"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "proof.json").read_text())
    assert [*report["parts"]] == [*gpu_proof.PARTS]
    assert len(report["parts"]["paper"]["rounds"]) == 2
    ours = report["parts"]["pfl"]["rows"][:2]
    assert all(0 <= row["accuracy"] <= 1 and row["round_s"] > 0 for row in ours)
    page = (tmp_path / "README.md").read_text()
    assert page == gpu_proof.page(report)
    if report["about"]["gpu"] is None:
        assert "nothing here ran on a GPU" in page
        assert report["parts"]["tests"]["skipped"] > 0
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
