"""Which cases of a test run by default."""

import random

import pytest


def thinned(cases, every=2):
    """Each so many-th case by default; the others are slow, and CI has them all."""
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        yield pytest.param(*values, marks=pytest.mark.slow if number % every else ())


def drawn(cases, number, always, seed=0):
    """Of a product too large to run, those that are always run and so many others: the same ones in every run."""
    others = [case for case in cases if not always(*case)]
    chosen = {*random.Random(seed).sample(others, min(number, len(others)))}
    return [case for case in cases if case in chosen or always(*case)]
