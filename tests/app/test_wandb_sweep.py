"""`wandb sweep` and `wandb agent` on configs/wandb_sweep.yaml, against a server on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedpara.app.composition import compose
from fedpara.runs import find_runs
from helpers import ROOT
from helpers.runs import of_wandb
from helpers.sweep_server import SweepServer

FILE = ROOT / "configs" / "wandb_sweep.yaml"
SMALL = {
    "model": "mlp", "data.max_train": 40, "data.max_test": 20, "federation.num_clients": 2,
    "federation.clients_per_round": 1, "federation.num_rounds": 1, "trainer.max_epochs": 1, "trainer": "cpu",
}  # fmt: skip


def test_its_parameters_compose():
    found = yaml.safe_load(FILE.read_text())
    assert found["command"] == ["${env}", "python", found["program"], "${args_no_hyphens}"]
    for end in (0, -1):
        typed = [f"{key}={own.get('values', [own.get('value')])[end]}" for key, own in found["parameters"].items()]
        assert compose(typed).federation.num_rounds > 0


@pytest.mark.slow  # a minute: the agent asks every five seconds, and each run starts a process
def test_an_agent_trains_each_run_of_a_sweep(tmp_path):
    """The sweep's id names the run in W&B; its values reach the run folder's configuration."""
    sweep = yaml.safe_load(FILE.read_text())
    sweep["command"].insert(1, "WANDB_MODE=offline")  # the runs; the agent asks the server
    sweep["parameters"] |= {key: {"value": value} for key, value in SMALL.items()}
    sweep["parameters"] |= {
        "factorization.gamma": {"values": [0.1, 0.5]}, "seed": {"value": 0}, "paths.log_dir": {"value": str(tmp_path)}
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    server = SweepServer()
    bin_dir = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
        "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "WANDB_BASE_URL": server.url, "WANDB_ENTITY": "me",
        "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path), "no_proxy": "127.0.0.1",
    }  # fmt: skip
    for words in (["sweep", str(tmp_path / "sweep.yaml")], ["agent", "me/fedpara/grid1"]):
        done = subprocess.run(
            [bin_dir / "wandb", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    server.shutdown()
    runs = find_runs(tmp_path / "train" / "runs")
    assert [run.state for run in runs] == ["finished"] * 2
    assert sorted(run.config["factorization.gamma"] for run in runs) == [0.1, 0.5]
    for number, values in server.commands.items():
        records, summary = of_wandb(tmp_path, number)
        (own,) = [record["run"] for record in records if record["type"] == "run"]
        assert own["sweep_id"] == "grid1"
        assert summary["config"]["factorization"]["gamma"] == values["factorization.gamma"]
        assert "test/acc" in summary["summary"]
