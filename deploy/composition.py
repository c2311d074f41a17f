"""The configuration of an experiment as `python src/train.py` composes it, in a process that Hydra did not start."""

from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, open_dict

import train
from fedpara.overrides import assignment


def compose(overrides: list[str], folder: Path | None = None) -> DictConfig:
    """The composed configuration.

    Args:
        overrides: as typed behind `python src/train.py`.
        folder: the run folder, whose log is then opened; None: there is none.
    """
    GlobalHydra.instance().clear()
    own = [assignment("hydra.runtime.output_dir", str(folder or ".")), "hydra.job.name=train", "hydra.mode=RUN"]
    with hydra.initialize_config_dir(train.CONFIG_DIR, version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, *own], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.overrides.task = list(overrides)
    HydraConfig.instance().set_config(cfg)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg
