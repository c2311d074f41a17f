"""Fixtures of the executors' tests."""

import pytest

from fedpara.execution import SerialExecutor


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
