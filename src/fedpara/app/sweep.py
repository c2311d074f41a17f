"""The jobs of a sweep: the same command finds its folder again, and every job has a process of its own.

Hydra runs all jobs of a sweep in one process. There, a job that is killed would end the others, and state that one job
leaves (a W&B run, a CUDA context, the seed of a library) would pass to the next.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from fedpara.app.overrides import assignment, texts
from fedpara.app.resume import is_finished, resuming
from fedpara.errors import signal_name
from fedpara.installation import TRAIN
from fedpara.metric import Metric
from fedpara.record import counted
from fedpara.runs import Run, short_names

log = logging.getLogger(__name__)
LONGEST_NAME = 100
WORSE_THAN_ANY = 1e9  # value of a metric that has no bounds
OF_THE_SWEEP = (
    "hydra.mode", "hydra.run.", "hydra.sweep", "hydra/sweep", "hydra.launcher", "hydra/launcher", "hydra.callbacks",
    "hydra/callbacks",
)  # fmt: skip


def sweep_name(typed: Sequence[str]) -> str:
    """`<experiment>-<hash of the command>`: the same for the same command, in whatever order it was typed."""
    overrides = _parse(typed)
    constant = {
        override.key_or_group: override.value()
        for override in overrides
        if not (override.is_sweep_override() or override.is_delete())
    }
    words = sorted(str(override.input_line) for override in overrides)
    experiment = str(constant.get("experiment", "sweep")).replace("/", "-")
    return f"{experiment}-{digest(json.dumps(words))}"


def job_name(typed: Sequence[str], overrides: Sequence[str]) -> str:
    """A job's name, made of the values that vary: `gamma=0.1_seed=0`; `job` if nothing varies.

    Args:
        typed: the command line of the sweep.
        overrides: the job's own; those that are the same in all jobs are left out of its name.
    """
    constant = {override.get_key_element() for override in _parse(typed) if not override.is_sweep_override()}
    values = {key: value for key, _, value in (o.partition("=") for o in texts(overrides)) if key not in constant}
    names = short_names(values)
    name = "_".join(f"{names[key]}={value}" for key, value in values.items()) or "job"
    safe = re.sub(r"[^\w.=+-]+", "-", name)
    return safe if safe == name and len(name) <= LONGEST_NAME else f"{safe[:LONGEST_NAME]}-{digest(name)}"


def _parse(typed: Sequence[str]) -> list[Override]:
    """The overrides of a command line, without flags and Hydra's own, which do not change a result."""
    words = [word for word in typed if "=" in word or word.startswith("~")]
    own = [word for word in words if not word.startswith(("-", "hydra", "~hydra"))]
    return OverridesParser.create().parse_overrides(own)


def worst(sweeper: DictConfig, headline: Metric) -> float:
    """The value that a job without a result returns: the one that the sweeper likes least.

    It is neither NaN nor an exception, which would end a sweep of Optuna, nor infinite, which would end one of Ax.
    """
    least, most = (0.0, 1.0) if headline.is_share else (-WORSE_THAN_ANY, WORSE_THAN_ANY)
    return most if minimises(sweeper) else least


def minimises(sweeper: DictConfig) -> bool | None:
    """Whether a sweeper minimises, as those of Optuna, Ax and Nevergrad do by default; None: it does not optimise."""
    direction, maximum = OmegaConf.select(sweeper, "direction"), OmegaConf.select(sweeper, "optim.maximize")
    if direction is not None:
        return "minimize" in str(direction).lower()
    return OmegaConf.select(sweeper, "ax_config.experiment.minimize") if maximum is None else not maximum


def headline_of(model: DictConfig) -> Metric:
    """The metric that judges a configuration's module: the user's own class says so, else it is accuracy."""
    try:
        return Metric.of(get_class(model["_target_"])) if "_target_" in model else Metric()
    except Exception:  # the job will name the error
        return Metric()


def digest(text: str) -> str:
    """Six letters and digits that stand for a text which is too long for a name."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def inherited(hydra_cfg: HydraConf) -> list[str]:
    """The arguments for Hydra that every job inherits: folders of configurations, and keys except the sweep's."""
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    sources = [(flags.get(source.provider), source.path) for source in hydra_cfg.runtime.config_sources]
    typed = [f"{flag}={path}" for flag, path in sources if flag] + [f"--config-name={hydra_cfg.job.config_name}"]
    return typed + [o for o in texts(hydra_cfg.overrides.hydra) if not o.lstrip("+~").startswith(OF_THE_SWEEP)]


def job(cfg: DictConfig, hydra_cfg: HydraConf) -> float:
    """Run a job of a sweep in its own process, unless it is finished; returns its last value, for a sweeper.

    For a job that did not finish, or ended with NaN, it returns the worst value, so that a sweeper looks elsewhere.

    Args:
        hydra_cfg: Hydra's own part of the configuration.
    """
    folder = Path(cfg.paths.output_dir)
    if is_finished(cfg, texts(hydra_cfg.overrides.task)):
        rounds = counted(len(Run(folder).rows), "round")
        log.info("%s: skipped, it is already finished, with %s", folder.name, rounds)
    else:
        parallel = hydra_cfg.runtime.choices["hydra/launcher"] != "basic"
        overrides = inherited(hydra_cfg) + texts(hydra_cfg.overrides.task)
        here = Path(hydra_cfg.runtime.cwd)
        run_job(overrides, folder, hydra_cfg.job.num, quiet=parallel, here=here)
    run = Run(folder)
    reached = run.last(run.judged.name) if run.state == "finished" else None
    if reached is None or math.isnan(reached):
        return worst(hydra_cfg.sweeper, headline_of(cfg.model))
    return reached


def run_job(overrides: Sequence[str], folder: Path, number: int, quiet: bool, here: Path) -> None:
    """Run one job to its end, from its checkpoint if it has one. Logs how it ended, and does not raise if it fails.

    Args:
        overrides: the job's own and the inherited ones.
        folder: its run folder.
        number: the job's number in the sweep; jobs take the devices in turn.
        quiet: whether its progress goes only to its own train.log, because several jobs share a terminal.
        here: the folder in which the sweep was started.
    """
    if Run(folder).has_checkpoint:
        log.info("%s: resumes after %s", folder.name, counted(len(Run(folder).rows), "round"))
    command, device = process_of(overrides, folder, number)
    output = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(command, env=os.environ | device, stdout=output, cwd=here) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # a Ctrl-C has reached the job too, but a scheduler's signal has not
            _stop(process)
            raise
    if status < 0:
        log.error("%s: killed by %s", folder.name, signal_name(-status))
    elif status:
        log.error("%s: %s (exit status %d)", folder.name, Run(folder).state, status)
    elif quiet:
        log.info("%s: finished", folder.name)


def process_of(overrides: Sequence[str], folder: Path, number: int) -> tuple[list[str], dict[str, str]]:
    """The command of a job, from its checkpoint if it has one, and the variables that give it a device.

    Args:
        overrides: the job's own and the inherited ones.
        folder: its run folder.
        number: the job's number; jobs take the devices in turn.
    """
    arguments = [o for o in overrides if not o.startswith("resume=")]
    arguments += [assignment("hydra.run.dir", str(folder)), "hydra.mode=RUN", f"hydra.job.num={number}"]
    device = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if (devices := visible_devices()) else {}
    return [sys.executable, *TRAIN, *arguments, *resuming(folder)], device


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def visible_devices() -> list[str]:
    """The NVIDIA devices that this process can use, found without importing torch, which takes seconds."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device for device in chosen.split(",") if device]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
