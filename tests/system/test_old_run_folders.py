"""Run folders of an earlier commit (67a9873; `old_runs`) resume, evaluate and report, whatever moved since.

Each is a run that was stopped after two rounds of four; `expected.csv` has the rounds of one that was not stopped, on
another machine. Their configurations name classes where they were then.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.app.resume import is_finished
from helpers import ROOT

FOLDERS = Path(__file__).with_name("old_runs")
NAMES = ["dense", pytest.param("personal", marks=pytest.mark.slow), pytest.param("auto", marks=pytest.mark.slow)]


@pytest.fixture
def old(request, tmp_path):
    """A copy of an old run folder, as if it had been written on this machine."""
    folder = tmp_path / request.param
    shutil.copytree(FOLDERS / request.param, folder)
    path = folder / "config.yaml"
    text = path.read_text().replace("OUTPUT_DIR", str(folder)).replace("PROJECT_ROOT", str(ROOT))
    path.write_text(text)
    return folder


def start(program, *arguments):
    command = [sys.executable, str(ROOT / "src" / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def rounds(file):
    with file.open() as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("old", NAMES, indirect=True)
def test_an_old_run_goes_on_to_what_it_would_have_been(shell, old):
    before = rounds(old / "metrics.csv")
    status, error, _ = shell(f"resume={old}", "federation.num_rounds=4")
    assert status == 0, error
    after, expected = rounds(old / "metrics.csv"), rounds(old / "expected.csv")
    assert [row["round"] for row in after] == ["1", "2", "3", "4"]
    assert after[:2] == before
    for row, other in zip(after, expected, strict=True):
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), rel=0.02)
        assert row["comm/up_bytes"] == other["comm/up_bytes"]
    assert json.loads((old / "summary.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("old", ["personal", "auto"], indirect=True)
def test_a_sweep_takes_up_its_old_jobs_as_a_resume_does(old):
    typed = yaml.safe_load((old / "overrides.yaml").read_text())
    assert is_finished(compose([*typed, f"paths.output_dir={old}"]), typed)
    other = [*typed, "executor.matmul_precision=high"]
    with pytest.raises(ConfigurationError, match=r"another executor.matmul_precision \('highest' then, 'high' now\); "):
        is_finished(compose([*other, f"paths.output_dir={old}"]), other)


@pytest.mark.slow
@pytest.mark.parametrize("old", ["dense", "personal", "auto"], indirect=True)
def test_an_old_run_is_evaluated_and_reported(old):
    said = dict(line.split(": ", 1) for line in start("eval.py", f"run={old}").splitlines() if ": " in line)
    assert float(said["test/acc"]) == pytest.approx(float(rounds(old / "metrics.csv")[-1]["test/acc"]))
    assert "report.csv" in start("report.py", str(old.parent))
