"""Fixtures of the executors' tests."""

import pytest

from fedpara.execution import SerialExecutor
from helpers.recording import Rehearsed


@pytest.fixture(autouse=True)
def _silence(request):
    """Nobody is told anything from an earlier test."""
    yield
    if "told" in request.fixturenames:
        for path in request.getfixturevalue("told")[1].iterdir():
            path.unlink()


@pytest.fixture
def captured_by(monkeypatch):
    """Has the executors that are made from now on capture their steps in a way of ours, as they would on a GPU."""

    def by(capture):
        monkeypatch.setattr(SerialExecutor, "_graphs", lambda _: capture)
        return capture

    return by


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def accelerator(request, captured_by):
    """A GPU, or a CPU that imitates captures."""
    if request.param == "cpu":
        captured_by(Rehearsed())
    return request.param
