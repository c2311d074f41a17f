"""Compose and build every job of every experiment, count its parameters, and encode the messages of one round.

python tools/experiments.py > results/experiments.md      # tests/system/test_experiments.py checks the list
"""

import itertools
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedpara.app.build import build_experiment, build_federation
from fedpara.app.composition import CONFIG_DIR  # whose import sets PROJECT_ROOT, which the configurations read
from fedpara.nn import Factorization

Row = tuple[dict[str, str], dict[str, int], int, int]
FOLDER = ROOT / "configs" / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
HEAD = """# Every experiment, its parameters and its bytes per round

Made by `python tools/experiments.py > results/experiments.md`, held by tests/system/test_experiments.py. Bytes are
counted on the encoded messages of all clients of a round; MB are 10^6 bytes. Seeds are left out.

| experiment | job | parameters | of dense | travel | MB a round, up | down |
|---|---|---|---|---|---|---|"""


def composed(*overrides: str) -> DictConfig:
    """The configuration of a run, with Hydra's part as in a real run."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


@cache
def jobs(experiment: str) -> list[dict[str, str]]:
    """The overrides of each job of an experiment's sweep, without seeds."""
    params = composed(f"experiment={experiment}").hydra.sweeper.params or {}
    axes = {key: str(values).split(",") for key, values in params.items() if key != "seed"}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def rows(experiment: str, chosen: list[dict[str, str]] | None = None) -> Iterator[Row]:
    """For each job its overrides, numbers of parameters, and bytes of a round, up and down."""
    for job in chosen or jobs(experiment):
        cfg = composed(f"experiment={experiment}", *(f"{key}={value}" for key, value in job.items()))
        formula = patch.object(Factorization, "forward", lambda self: self.refold(self.compose(self.factors)))
        unread = patch("fedpara.execution.serial.read_state", lambda network: network.state_dict())
        with torch.device("meta"), formula, unread:  # meta tensors have no values to copy to the CPU
            if "initialization" in cfg.factorization:
                cfg.factorization.initialization = "he"  # the others look at values
            cfg.trainer.accelerator = "cpu"
            cfg.pretrained.file = None  # the sizes are the same
            made = build_experiment(cfg)
        state = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in made.executor.initial_state().items()}
        with patch.object(made.executor, "initial_state", return_value=state):
            federation = build_federation(cfg, made)
        message = federation.algorithm.broadcast(federation.server)
        down = federation.link.encode_down(message)
        moving = federation.client_side.moving(message, 0)
        parts = federation.algorithm.upload(moving, moving["model"], 1.0, {})
        up = federation.link.encode_up(parts, {"model": federation.algorithm.sent(moving)})
        sizes, cohort = made.parameters, federation.clients_per_round
        yield job, sizes, up.num_bytes * cohort, down.num_bytes * cohort


def table(experiment: str, chosen: list[dict[str, str]] | None = None) -> Iterator[str]:
    """The lines of the list."""
    for job, sizes, up, down in rows(experiment, chosen):
        share = 100 * sizes["factorized"] / sizes["dense"]
        axes = ", ".join(f"{key}={value}" for key, value in job.items()) or "-"
        yield (
            f"| {experiment} | {axes} | {sizes['factorized']:,} | {share:.1f} % | {sizes['shared']:,} "
            f"| {up / 1e6:,.2f} | {down / 1e6:,.2f} |"
        )


if __name__ == "__main__":
    print(HEAD)
    for name in EXPERIMENTS:
        for line in table(name):
            print(line)
