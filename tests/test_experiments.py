"""Every job of every experiment: composed and built, its parameters counted, one round's messages encoded.

The list is results/experiments.md; `python tests/test_experiments.py > results/experiments.md` writes it anew.
"""

import itertools
from functools import cache
from unittest.mock import patch

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from conftest import ROOT, thinned
from fedpara.app.build import build_experiment, build_federation
from fedpara.nn import Factorization

FOLDER = ROOT / "configs" / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
HEAD = """# Every experiment, its parameters and its bytes per round

Made by `python tests/test_experiments.py > results/experiments.md`, held by that test. Bytes are counted on the encoded
messages of all clients of a round; MB are 10^6 bytes. Seeds are left out.

| experiment | job | parameters | of dense | travel | MB a round, up | down |
|---|---|---|---|---|---|---|"""


def composed(*overrides):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@cache
def jobs(experiment):
    """Overrides of each job of an experiment's sweep, seeds aside."""
    params = composed(f"experiment={experiment}").hydra.sweeper.params or {}
    axes = {key: str(values).split(",") for key, values in params.items() if key != "seed"}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def rows(experiment, chosen=None):
    for job in chosen or jobs(experiment):
        cfg = composed(f"experiment={experiment}", *(f"{key}={value}" for key, value in job.items()))
        formula = patch.object(Factorization, "forward", lambda self: self.refold(self.compose(self.factors)))
        unread = patch("fedpara.execution.serial.read_state", lambda network: network.state_dict())
        with torch.device("meta"), formula, unread:  # what is meta has nothing to bring to the CPU
            cfg.factorization.initialization = "he"  # the others look at values
            cfg.trainer.accelerator = "cpu"
            made = build_experiment(cfg)
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in made.executor.initial_state().items()}
        made.executor.initial_state = lambda state=state: state
        federation = build_federation(cfg, made)
        message = federation.algorithm.broadcast(federation.server)
        down = federation.link.encode_down(message)
        parts = federation.algorithm.upload(message, message["model"], 1.0, {})
        up = federation.link.encode_up(parts, {"model": message["model"]})
        sizes, cohort = made.parameters, federation.clients_per_round
        yield job, sizes, up.num_bytes * cohort, down.num_bytes * cohort


def table(experiment, chosen=None):
    for job, sizes, up, down in rows(experiment, chosen):
        share = 100 * sizes["factorized"] / sizes["dense"]
        axes = ", ".join(f"{key}={value}" for key, value in job.items()) or "-"
        yield (
            f"| {experiment} | {axes} | {sizes['factorized']:,} | {share:.1f} % | {sizes['shared']:,} "
            f"| {up / 1e6:,.2f} | {down / 1e6:,.2f} |"
        )


def listed(experiment):
    lines = (ROOT / "results" / "experiments.md").read_text().splitlines()
    return [line for line in lines if line.startswith(f"| {experiment} |")]


@pytest.mark.parametrize("experiment", thinned(EXPERIMENTS))
def test_the_last_job_of_every_experiment_is_as_listed(experiment):
    assert len(listed(experiment)) == len(jobs(experiment))
    assert listed(experiment)[-1:] == list(table(experiment, jobs(experiment)[-1:]))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_of_every_experiment_is_as_listed(experiment):
    assert listed(experiment) == list(table(experiment))


def test_nothing_else_is_listed():
    lines = (ROOT / "results" / "experiments.md").read_text().splitlines()
    assert {line.split(" ")[1] for line in lines if line.startswith("| ")} - {"experiment"} == set(EXPERIMENTS)


if __name__ == "__main__":
    print(HEAD)
    for name in EXPERIMENTS:
        for line in table(name):
            print(line)
