"""Which cases of a test run by default."""

import pytest


def thinned(cases, every=2):
    """Each so many-th case by default; the others are slow, and CI has them all."""
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        yield pytest.param(*values, marks=pytest.mark.slow if number % every else ())
