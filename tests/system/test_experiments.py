"""results/experiments.md lists every job of every experiment, as tools/experiments.py counts it."""

import pytest

from experiments import EXPERIMENTS, HEAD, jobs, table
from helpers import ROOT
from helpers.cases import thinned


def listed(experiment):
    lines = (ROOT / "results" / "experiments.md").read_text().splitlines()
    return [line for line in lines if line.startswith(f"| {experiment} |")]


@pytest.mark.parametrize("experiment", thinned(EXPERIMENTS, 5))
def test_the_last_job_of_every_experiment_is_as_listed(experiment):
    assert len(listed(experiment)) == len(jobs(experiment))
    assert listed(experiment)[-1:] == list(table(experiment, jobs(experiment)[-1:]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_of_every_experiment_is_as_listed(experiment):
    assert listed(experiment) == list(table(experiment))


def test_nothing_else_is_listed():
    text = (ROOT / "results" / "experiments.md").read_text()
    lines = text.splitlines()
    assert text.startswith(HEAD)
    assert {line.split(" ")[1] for line in lines if line.startswith("| ")} - {"experiment"} == set(EXPERIMENTS)
