"""Fixtures of many test modules, and settings of all of them."""

import gc
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import SHARED_DATA


def pytest_addoption(parser):
    parser.addoption("--draws", type=int, default=6, help="how many cases are drawn from products too large to run")


def pytest_configure(config):
    """In the processes that run tests: with pytest-xdist, one more hands them out and would import all this first."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import hypothesis
    import torch

    from helpers.composition import compose_quickly

    hypothesis.settings.register_profile("repository", deadline=None)  # a busy machine is not a failure
    hypothesis.settings.load_profile("repository")
    torch.set_num_threads(1)
    compose_quickly()
    os.fsync = lambda descriptor: None  # for time: only a machine that loses its power needs it


def pytest_collection_finish():
    gc.freeze()  # what is imported stays: the garbage collector need not look through it again and again


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session")
def real_data(tmp_path_factory):
    """A folder with the real CIFAR files: DATA_DIR, or restored from beside the checkout."""
    given = Path(os.environ.get("DATA_DIR", "/nowhere"))
    if (given / "cifar-100-python" / "train").is_file() and (given / "cifar-10-batches-py").is_dir():
        return given
    packed = SHARED_DATA / "cifar_packed"
    if not packed.is_dir():
        pytest.skip("the real data sets are not at hand")
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "data"
    from filelock import FileLock

    with FileLock(f"{folder}.lock"):  # once for all of pytest-xdist's workers
        if not folder.exists():
            restore = [sys.executable, SHARED_DATA / "restore.py", packed, folder]
            subprocess.run(restore, check=True, capture_output=True)
    return folder


@pytest.fixture
def shell(monkeypatch, tmp_path, capfd):
    """Runs train.py with arguments; returns exit status, standard error and output."""
    from hydra.core.global_hydra import GlobalHydra

    from fedpara.app import cli, sweep_table

    def run(*arguments, program=cli):
        GlobalHydra.instance().clear()
        logging.getLogger().handlers.clear()
        sweep_table.unfinished.clear()
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", *arguments])
        status = 0
        try:
            program.main()
        except SystemExit as end:
            status = end.code
        captured = capfd.readouterr()
        return status, captured.err, captured.out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    return run
