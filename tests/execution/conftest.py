"""Fixtures of the executors' tests."""

import pytest


@pytest.fixture(autouse=True)
def _silence(request):
    """Nobody is told anything from an earlier test."""
    yield
    if "told" in request.fixturenames:
        for path in request.getfixturevalue("told")[1].iterdir():
            path.unlink()
