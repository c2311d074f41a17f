"""Test the model of a run folder, finished or interrupted: `python src/eval.py run=logs/train/runs/<run>`."""

import logging
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedpara.configuration import ConfigurationError, blame
from train import build_experiment, build_federation


def evaluate(folder: Path, overrides: list[str]) -> dict[str, float]:
    """`round`, `test/acc` and `test/loss` of the checkpoint in a run folder.

    Args:
        overrides: dotted keys over the run's saved configuration, such as `trainer.accelerator=cpu`.

    Raises:
        ConfigurationError: no such run, a damaged checkpoint, or data that are missing.
    """
    from fedpara.callbacks import restore

    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"run={folder}: not a run folder, it holds no config.yaml")
    cfg: Any = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), OmegaConf.from_dotlist(overrides))
    experiment = build_experiment(cfg)
    federation = build_federation(cfg, experiment, [])
    with blame(cfg, "run"):
        restore(federation, folder)
    with blame(cfg, "data"):
        experiment.datamodule.setup()
        experiment.datamodule.to(experiment.executor.device)
    return {"round": federation.round, **federation.evaluate()}


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
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
