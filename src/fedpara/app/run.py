"""One run: loggers, callbacks, the checkpoint to resume from, rounds, and the closing lines."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from fedpara.app.build import Build, Experiment, build, groups, has_own_module
from fedpara.app.errors import FAILED, line_of, one_line, require_nodes, stop
from fedpara.app.make import Make, present
from fedpara.app.resume import (
    check_same,
    has_nothing_left,
    note_pretrained,
    require_no_fewer_rounds,
    require_nothing_lost,
    restore_begun,
)
from fedpara.app.trust import require_resolved
from fedpara.app.values import check_values
from fedpara.files import reserve, write_atomically
from fedpara.installation import command_of
from fedpara.record import counted, size
from fedpara.runs import CHECKPOINT, CONFIG, METRICS, OVERRIDES, SUMMARY, summarise_failure

if TYPE_CHECKING:  # torch takes seconds to import, and only a run that trains needs it
    from fedpara.callbacks import LoggerForwarding
    from fedpara.federation import Federation

log = logging.getLogger("train")


@dataclass(frozen=True)
class Launch:
    """How a run was started, for its folder and its closing lines.

    Attributes:
        typed: the overrides that `resume=` repeats.
        here: the user's current folder; folders below it are shown relative to it.
        flags: flags that stand in front of the overrides and that `resume=` does not repeat.
    """

    typed: Sequence[str] = ()
    here: Path = field(default_factory=Path.cwd)
    flags: Sequence[str] = ()

    def shown(self, path: Path) -> Path:
        """The path, relative to the user's folder if it is below it."""
        return path.relative_to(self.here) if path.is_relative_to(self.here) else path

    def to_resume(self, folder: Path) -> str:
        """The command that resumes the run in a folder, with what a run folder may not say by itself."""
        trusted = [override for override in self.typed if override.lstrip("+").startswith("trusted=")]
        return f"{command_of('train')} {shlex.join([*self.flags, f'resume={self.shown(folder)}', *trusted])}"


def run(cfg: DictConfig, build: Build = build, launch: Launch | None = None) -> float | None:
    """One run in its folder, which is locked meanwhile; the folder keeps the error of a run that fails.

    Args:
        build: makes the run's objects; `fedpara.deployment` has its own, whose clients are elsewhere.
        launch: how the run was started; None: by a program, from the current folder.
    """
    folder = Path(cfg.paths.output_dir)
    try:
        note_pretrained(cfg)
        if cfg.resume:
            require_resolved(f"resume={cfg.resume}", OmegaConf.to_container(cfg, resolve=True))
            check_same(cfg, Path(cfg.resume))
            require_no_fewer_rounds(cfg)
        with Make(cfg).call("paths.output_dir", reserve, folder):
            return train(cfg, build, launch or Launch())
    except Exception as error:
        line = line_of(error)
        _record_failure(folder, error, line or f"{type(error).__name__}: {one_line(error)}")
        if line is None:
            raise
        stop(line, status=1 if isinstance(error, FAILED) else 2)


def train(cfg: DictConfig, build: Build, launch: Launch) -> float | None:
    """One run; returns the last value of the metric that judges it (accuracy: 0 to 1), for a sweeper.

    Wrong values are refused before torch is imported. Then loggers start first, so that a run that fails before its
    first round is recorded there too.
    """
    require_nothing_lost(cfg, Path(cfg.paths.output_dir))
    make = Make(cfg)
    resolved = make.call("", OmegaConf.to_container, cfg, resolve=True)
    require_nodes(cfg, [*groups(cfg), *present(cfg, "callbacks"), *present(cfg, "logger")])
    check_values(cfg)
    from pytorch_lightning.loggers import Logger

    from fedpara.callbacks import LoggerForwarding

    loggers = [] if has_nothing_left(cfg) else make.each("logger", Logger)
    with LoggerForwarding(loggers, Path(cfg.paths.output_dir)) as forwarding:
        for logger in loggers:
            make.call("logger", logger.log_hyperparams, resolved)
        return _train(cfg, build, forwarding, launch)


def _train(cfg: DictConfig, build: Build, forwarding: "LoggerForwarding", launch: Launch) -> float | None:
    from fedpara.callbacks import RunFolder
    from fedpara.federation import FederationCallback

    folder = Path(cfg.paths.output_dir)
    make = Make(cfg)
    experiment, federation = build(cfg, make.each("callbacks", FederationCallback))
    make.call("logger", forwarding.judge_by, federation.judged, federation.headline)
    make.call("resume", restore_begun, cfg, federation)
    log.info("reading %s", cfg.data.dataset._target_.rpartition(".")[2])
    make.call("data", experiment.datamodule.setup)
    if federation.tests_personal and federation.clients.store is not None:  # clients that are simulated here
        make.call("data", experiment.datamodule.require_test_parts)
    make.call("data", experiment.datamodule.to, experiment.executor.device)
    make.call("model.network", experiment.executor.prepare)
    make.call("model" if has_own_module(cfg) else "trainer", experiment.executor.rehearse)
    _describe(experiment, federation)
    if federation.privacy:
        log.info("%s", make.call("privacy", federation.privacy.promise))
    record = RunFolder(folder, experiment.parameters)
    make.call("paths.output_dir", _keep_configuration, cfg, folder, launch)
    # the run folder first, so that a round that is logged or checkpointed has its row on disk
    federation.callbacks = [record, *federation.callbacks, forwarding]
    try:
        federation.fit()
    except KeyboardInterrupt:
        done = counted(federation.round, "round")
        log.info("interrupted after %s; to resume: %s", done, launch.to_resume(folder))
        raise
    finally:
        federation.close()
    _conclude(record, federation, launch.shown(folder))
    return record.rows[-1].get(federation.judged.name) if record.rows else None


def _keep_configuration(cfg: DictConfig, folder: Path, launch: Launch) -> None:
    write_atomically(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(list(launch.typed))).encode())
    write_atomically(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True).encode())


def _describe(experiment: Experiment, federation: "Federation") -> None:
    sizes, data = experiment.parameters, experiment.datamodule
    travel = f"{sizes['shared']:,} travel"
    if "up" in sizes:
        travel += f" down, {sizes['up']:,} up"
    log.info(
        "%s parameters, %s dense (%.1f %%), %s | %s, %s, %d a round, %s of %s, %s",
        f"{sizes['factorized']:,}", f"{sizes['dense']:,}", 100 * sizes["factorized"] / sizes["dense"],
        travel, data.name, counted(federation.num_clients, "client"), federation.clients_per_round,
        counted(federation.num_rounds, "round"), counted(experiment.executor.training.max_epochs, "local epoch"),
        experiment.executor.device,
    )  # fmt: skip


def _conclude(record: Any, federation: "Federation", folder: Path) -> None:
    """Log the accuracy, the bytes, those of the dense model, and the run folder."""
    from fedpara.sharing import Split

    if not record.rows:
        log.info("nothing to do: %s", federation.stopped or "the run already has its rounds")
        return
    sizes, last = record.parameters, record.rows[-1]
    saved = ""
    whole = type(federation.split) is Split and not federation.tiers and not federation.catch_up
    if 0 < sizes["shared"] < sizes["dense"] and whole:  # otherwise not every message is the whole shared part
        ratio = sizes["dense"] / sizes["shared"]
        saved = f", the dense model would have sent {size(federation.total_bytes * ratio)} ({ratio:.1f}x)"
    judged = federation.judged
    group, value = judged.name.partition("/")[0], last.get(judged.name)
    reached = "not tested" if value is None else f"{group} {federation.headline.label} {judged.shown(value)}"
    sent = size(federation.total_bytes)
    log.info("%s after %s | sent %s%s", reached, counted(federation.round, "round"), sent, saved)
    log.info("run folder: %s (%s)", folder, ", ".join((METRICS, SUMMARY, CONFIG, CHECKPOINT)))


def _record_failure(folder: Path, error: Exception, line: str) -> None:
    """Write the error into the run's log, with its stack trace, and into its summary; `main` prints it."""
    record = log.makeRecord(log.name, logging.ERROR, "", 0, line, (), (type(error), error, error.__traceback__))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    if folder.is_dir():
        summarise_failure(folder, line)
