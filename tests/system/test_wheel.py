"""The wheel, built from the sdist and installed where there is no checkout: what a person types there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from fedpara import __version__
from helpers import ROOT
from helpers.shell import SMALL

pytestmark = pytest.mark.slow

SOURCES = "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
OWN_CLASS = """
from fedpara.models import MLP


class Tiny(MLP):
    def __init__(self, num_hidden):
        super().__init__([784, num_hidden, 10])
"""
OWN_CONFIG = """
network: {_target_: mine.Tiny, num_hidden: 8}
optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}
keep_dense: []
head: ["layers.3.*"]
"""
OPTIONS = [option for option in SMALL if not option.startswith("model.network.stages")]


def built(kind, source, folder):
    """A file made by the build backend, as pip and `python -m build` call it."""
    done = subprocess.run([sys.executable, "-c", BUILD, kind, folder], cwd=source, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in ("src/fedpara", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    with tarfile.open(built("build_sdist", source, folder)) as archive:
        archive.extractall(folder, filter="data")
    return built("build_wheel", folder / f"fedpara-{__version__}", folder)


@pytest.fixture(scope="module")
def type_in(wheel, tmp_path_factory):
    """Runs a line in a shell whose only fedpara is the wheel's; returns what it printed.

    What the package needs is not installed again: the new environment sees this one's packages, though not its .pth
    files, which lead to the checkout.
    """
    environment, home = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("somewhere")
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "zz_parent.pth").write_text(sysconfig.get_path("purelib"))
    without = {"PYTHONPATH", "PROJECT_ROOT", "DATA_DIR", "VIRTUAL_ENV"}
    variables = {name: value for name, value in os.environ.items() if name not in without}
    variables |= {"PATH": f"{python.parent}:{variables['PATH']}", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, env=variables, check=True)

    def type_in(line, status=0):
        done = subprocess.run(["bash", "-c", line], cwd=home, env=variables, text=True, capture_output=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    type_in.home = home
    (home / "mine.py").write_text(OWN_CLASS)
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "mine.yaml").write_text(OWN_CONFIG)
    return type_in


def test_it_holds_every_file_of_the_package_the_configurations_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    expected = {f"fedpara/configs/{path.relative_to(ROOT / 'configs')}": path for path in (ROOT / "configs").rglob("*")}
    expected |= {str(path.relative_to(ROOT / "src")): path for path in (ROOT / "src" / "fedpara").rglob("*")}
    expected = {name: path for name, path in expected.items() if path.is_file() and "__pycache__" not in path.parts}
    about = f"fedpara-{__version__}.dist-info/"
    assert {name for name in held if not name.startswith(about)} == expected.keys()
    assert not [name for name, path in expected.items() if held[name] != path.read_bytes()]
    assert held[f"{about}licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = message_from_string(held[f"{about}METADATA"].decode())
    assert (metadata["Name"], metadata["Version"]) == ("fedpara", __version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert metadata.get_payload() == (ROOT / "README.md").read_text()


def test_a_run_with_a_class_and_a_config_of_ones_own_is_trained_resumed_and_tested(type_in):
    own = "--config-dir=conf model=mine executor=processes executor.workers=1"
    out = type_in(f"fedpara train {own} {' '.join(OPTIONS)} hydra.run.dir=logs/own")
    assert "run folder: logs/own (" in out
    summary = json.loads((type_in.home / "logs" / "own" / "summary.json").read_text())
    assert (summary["state"], summary["rounds"], summary["git_commit"]) == ("finished", 2, None)
    assert summary["versions"]["fedpara"] == __version__
    type_in("fedpara train --config-dir=conf resume=logs/own federation.num_rounds=3 trusted=[mine.*]")
    tested = type_in("fedpara eval run=logs/own export=dense trusted=[mine.*]")
    assert tested.startswith("round: 3\n")
    assert (type_in.home / "logs" / "own" / "model.safetensors").is_file()
    assert "3/3" in type_in("fedpara status")
    assert type_in("fedpara eval", status=2) == (
        "error: run: missing; give a run folder, fedpara eval run=logs/train/runs/<run>\n"
    )


def test_a_sweep_is_trained_skipped_the_second_time_and_reported(type_in):
    line = f"fedpara train -m model=mlp {' '.join(OPTIONS)} seed=0,1 hydra.sweep.dir=logs/sweep"
    assert "test accuracy" in type_in(line)
    assert type_in(line).count("skipped, it is already finished") == 2
    printed = type_in("fedpara report logs/sweep").split()
    assert "logs/sweep/report/report.html" in printed
    assert all((type_in.home / path).is_file() for path in printed)
    listed = type_in("fedpara reproduce --list --only fig8_original --folder logs/queue")
    assert "not started" in listed


def test_folders_are_below_the_current_one_and_configs_in_the_package(type_in):
    paths = type_in("fedpara train --cfg job --package paths --resolve")
    assert f"data_dir: {type_in.home}/data" in paths
    assert f"log_dir: {type_in.home}/logs" in paths
    assert f"data_dir: {type_in.home}/elsewhere" in type_in(
        "DATA_DIR=$PWD/elsewhere fedpara train --cfg job --package paths --resolve"
    )
    where = Path(type_in("python -c 'import fedpara.installation as i; print(i.CONFIGS)'").strip())
    assert where.parent.name == "fedpara"
    assert not where.is_relative_to(ROOT)


def test_help_version_wrong_input_and_completion(type_in):
    assert type_in("fedpara --version") == f"fedpara {__version__}\n"
    assert "fedpara <program> --help" in type_in("fedpara")
    assert "factorization: dense, fedpara" in type_in("fedpara train --help")
    assert "did you mean seed?" in type_in("fedpara train sed=1", status=2)
    completed = 'COMP_LINE="%s"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=%d; hydra_bash_completion; echo ${COMPREPLY[@]}'
    lines = [("fedpara re", 1), ("fedpara train model=vg", 2), ("fedpara train seed=1 factorization.ga", 3)]
    typed = "; ".join(completed % line for line in lines)
    answers = type_in(f'eval "$(fedpara train -sc install=bash)"; {typed}').splitlines()
    assert answers == ["report reproduce", "model=vgg16 model=vgg16_quarter model=vgg_small", "factorization.gamma="]
