"""The files of docs/guides/cluster.md: shell that parses, commands that compose."""

import os
import shlex
import subprocess

import pytest
import yaml
from hydra import compose, initialize_config_dir

from helpers import ROOT

SCRIPTS = ["go_on.sh", "slurm/ray.sbatch"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", ROOT / "docs" / name], check=True)


def commands():
    """What is given to go_on.sh, by file."""
    lines = (ROOT / "docs/slurm/ray.sbatch").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("bash docs/go_on.sh")]
    yield shlex.split(line.removesuffix("&").replace("$address:$port", "10.0.0.1:6379"))
    _, job = yaml.safe_load_all((ROOT / "docs/kuberay/rayjob.yaml").read_text())
    yield shlex.split(job["spec"]["entrypoint"])


@pytest.mark.parametrize("command", commands(), ids=["slurm", "kuberay"])
def test_commands_compose(command):
    bash, script, folder, *overrides = command
    assert (bash, script) == ("bash", "docs/go_on.sh")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        executor = compose("train", [*overrides, f"paths.output_dir={folder.replace('$', '')}"]).executor
    assert executor._target_ == "fedpara.execution.RayExecutor"
    assert executor.address


@pytest.mark.parametrize("there", [False, True])
def test_a_run_is_gone_on_with_where_there_is_one(there, tmp_path):
    """A python of ours shows what it is given."""
    shown = tmp_path / "python"
    shown.write_text('#!/bin/bash\necho "$@"\n')
    shown.chmod(0o755)
    if there:
        (tmp_path / "checkpoint.safetensors").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", ROOT / "docs/go_on.sh", tmp_path, "seed=1"]
    given = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert given == ["src/train.py", "seed=1", f"resume={tmp_path}" if there else f"hydra.run.dir={tmp_path}"]
