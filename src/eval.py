"""Test the model of a run folder, finished or interrupted: `python src/eval.py run=logs/train/runs/<run>`."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedpara.configuration import ConfigurationError, blame, one_line
from train import build_experiment, build_federation


def evaluate(folder: Path, overrides: list[str]) -> dict[str, float]:
    """`round`, `test/acc` and `test/loss` of the checkpoint in a run folder; `personal/acc` a client where measured.

    Args:
        overrides: dotted keys over the run's saved configuration, such as `trainer.accelerator=cpu`.

    Raises:
        ConfigurationError: no such run, a damaged checkpoint, or data that are missing.
    """
    from fedpara.callbacks import restore

    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"run={folder}: not a run folder, it holds no config.yaml")
    try:
        cfg: Any = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), OmegaConf.from_dotlist(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"run={folder}: its config.yaml cannot be read ({one_line(error)})") from error
    _find_data(cfg, "paths.data_dir" in dict(override.split("=", 1) for override in overrides))
    experiment = build_experiment(cfg)
    federation = build_federation(cfg, experiment)
    with blame(cfg, "run"):
        restore(federation, folder)
    with blame(cfg, "data"):
        experiment.datamodule.setup()
        experiment.datamodule.to(experiment.executor.device)
    metrics = {"round": federation.round, **federation.evaluate()}
    if federation.tests_personal:
        metrics |= {f"personal/acc/{client}": acc for client, acc in enumerate(federation.evaluate_personal())}
    return metrics


def _find_data(cfg: Any, given: bool) -> None:
    """The data folder of now, not of when the run was made: `paths.data_dir=`, else `DATA_DIR`."""
    folder = cfg.paths.data_dir if given else os.environ.get("DATA_DIR")
    if folder and "data_dir" in cfg.data.dataset:
        cfg.data.dataset.data_dir = folder


def main() -> None:
    """Print the metrics, one a line."""
    arguments = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    try:
        if "run" not in arguments:
            raise ConfigurationError("run: missing; give a run folder, python src/eval.py run=logs/train/runs/<run>")
        folder = Path(arguments.pop("run"))
        for name, value in evaluate(folder, [f"{k}={v}" for k, v in arguments.items()]).items():
            print(f"{name}: {value}")
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
