"""The rule for resuming a run: from which checkpoint, under which configuration, and with which overrides."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from omegaconf import DictConfig, OmegaConf

from fedpara.app.composition import read_resolved, read_yaml
from fedpara.app.errors import ConfigurationError, require_nodes
from fedpara.app.make import Make
from fedpara.app.overrides import absolute, assignment, folder_text
from fedpara.app.trust import require_trusted_overrides, trusted_names
from fedpara.old_runs import KEYS_ADDED, retyped
from fedpara.record import counted
from fedpara.runs import CONFIG, OVERRIDES, Run, leaves

if TYPE_CHECKING:  # torch takes seconds to import: only a run that trains pays for it
    from fedpara.federation import Federation

RESUMABLE = (
    "federation.num_rounds", "federation.max_crashes", "logger", "callbacks", "resume", "trusted", "paths",
    "trainer.accelerator", "data.dataset.data_dir", "data.eval_batch_size", "data.num_workers", "executor.workers",
    "executor.address", "executor.actors", "executor.gpus", "executor.memory_gb", "executor.capture",
    "executor.inner.capture", "factors", "paper", "pretrained.file",
)  # fmt: skip
ITS_FOLDER = "hydra.run.dir", "paths.output_dir"


def require_nothing_lost(cfg: DictConfig, folder: Path) -> None:
    """Refuse to start a new run in a folder that holds one to resume."""
    run = Run(folder)
    if not cfg.resume and run.has_checkpoint and run.rows:
        way_out = f"resume it with resume={folder}, or choose another folder"
        rounds = counted(len(run.rows), "round")
        raise ConfigurationError(f"paths.output_dir={folder}: holds a run of {rounds}; {way_out}")


def require_simulated(cfg: DictConfig) -> None:
    """Refuse to resume a run with real clients in a simulation."""
    if Run(Path(cfg.paths.output_dir)).is_deployed:
        raise ConfigurationError(f"resume={cfg.resume}: its clients are real devices; resume it with `flwr run deploy`")


def is_finished(cfg: DictConfig, typed: Sequence[str] = ()) -> bool:
    """Whether a sweep's job has already run to its last round, or until a callback stopped it.

    Args:
        typed: the job's overrides.

    Raises:
        ConfigurationError: its folder holds a run of another configuration.
    """
    run = Run(Path(cfg.paths.output_dir))
    if run.has_config:
        note_pretrained(cfg)
        own = [override for override in _retyped(typed, run.folder, cfg.paths.output_dir) if override not in typed]
        check_same(cfg, run.folder, "; give the sweep another folder, hydra.sweep.dir=...", own)
    ended = run.summary.get("stopped") or run.summary.get("rounds", 0) >= cfg.federation.num_rounds
    return bool(run.state == "finished" and ended)


def has_nothing_left(cfg: DictConfig) -> bool:
    """Whether a run that is resumed has finished all its rounds, so that no logger need start for it."""
    summary = Run(Path(cfg.paths.output_dir)).summary
    done = summary.get("state") == "finished" and summary.get("rounds", 0) >= cfg.federation.num_rounds
    return bool(cfg.resume and done)


def resuming(folder: Path) -> list[str]:
    """The override `resume=<folder>` if the folder holds a checkpoint; otherwise none, and the run starts anew."""
    return [assignment("resume", str(folder))] if Run(folder).has_checkpoint else []


def note_pretrained(cfg: DictConfig) -> None:
    """Note the checksum of the weights that a run starts from: it cannot be resumed with others."""
    require_nodes(cfg, ["pretrained"])
    if file := cfg.pretrained.file:
        if not isinstance(file, str):
            raise ConfigurationError(f"pretrained.file={file}: must be the path of a file, or null")
        OmegaConf.update(cfg, "pretrained.crc32", crc32(Make(cfg).call("pretrained.file", Path(file).read_bytes)))


def require_no_fewer_rounds(cfg: DictConfig) -> None:
    """Refuse to resume a run with fewer rounds than it has."""
    done, wanted = len(Run(Path(cfg.resume)).rows), cfg.federation.num_rounds
    if wanted < done:
        raise ConfigurationError(f"federation.num_rounds={wanted}: must be at least {done}, its rounds so far")


def check_same(cfg: DictConfig, folder: Path, hint: str = "", own: Sequence[str] = ()) -> None:
    """Refuse to resume in `folder` under a configuration that would change the result.

    Args:
        hint: the way out, for the end of the error line.
        own: overrides that are still to come: those with which a run of an older version keeps its values.
    """
    saved = read_resolved(folder / CONFIG, f"resume={folder}")
    before, now, kept = (
        dict(leaves(OmegaConf.to_container(one, resolve=True))) for one in (saved, cfg, OmegaConf.from_dotlist([*own]))
    )
    before, now = KEYS_ADDED | before, KEYS_ADDED | now | kept
    # a schedule's rates depend on the number of rounds from the first one on
    fixed = {"federation.num_rounds"} if now.get("federation.lr_schedule") else set()
    differing = [
        k
        for k in sorted(before.keys() | now.keys())
        if before.get(k) != now.get(k) and (k in fixed or not k.startswith(RESUMABLE))
    ]
    if differing:
        shown = ", ".join(f"{key} ({before.get(key)!r} then, {now.get(key)!r} now)" for key in differing[:3])
        shown = ", ".join([shown, *differing[3:]])
        raise ConfigurationError(f"resume={folder}: the run cannot be resumed with another {shown}{hint}")


def restore_begun(cfg: DictConfig, federation: "Federation") -> None:
    """With `resume=`, set the federation to its last checkpoint; a run killed in its first round starts anew."""
    from fedpara.callbacks import restore

    folder = Path(cfg.paths.output_dir)
    if cfg.resume and Run(folder).rows:
        restore(federation, folder)


def with_saved_overrides(arguments: list[str]) -> list[str]:
    """The command line of a resumed run: with `resume=<run folder>`, that run's overrides, then those typed now.

    They do not come from Hydra's own `.hydra/overrides.yaml`: every attempt to resume, even a refused one, rewrites it.
    """
    folder = _resumed(arguments)
    if folder is None:
        return arguments
    path = _path(folder)
    for name in (CONFIG, OVERRIDES):
        if not (path / name).is_file():
            raise ConfigurationError(f"resume={folder}: not a run folder, it holds no {name}")
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigurationError(f"resume={folder}: resumes one run; leave out -m")
    for key, _, place in (argument.partition("=") for argument in arguments):
        if key.lstrip("+") in ITS_FOLDER and Path(folder_text(place)).expanduser().resolve() != path:
            raise ConfigurationError(f"{key}={place}: must be left out, a resumed run keeps its folder, {folder}")
    now = [assignment("resume", str(path)) if a.startswith("resume=") else a for a in arguments]
    typed = {a.partition("=")[0] for a in now}
    left = {*typed, *ITS_FOLDER, "trusted", "+trusted"}  # its folder may have been moved
    kept = [o for o in _saved_overrides(path, folder) if o.partition("=")[0] not in left]
    require_trusted_overrides(f"resume={folder}", kept, trusted_names(arguments))
    kept = [absolute(override, Run(path).started_in) for override in kept]
    kept += [] if "hydra.mode" in typed else ["hydra.mode=RUN"]  # resume the job alone, not its sweep
    first = next(
        n for n, a in enumerate(now) if re.match(r"[^-].*=", a)
    )  # Hydra does not allow a flag between overrides
    return [*now[:first], *kept, *now[first:]]


def missing_flags(arguments: Sequence[str]) -> str:
    """What to add to a `resume=` that cannot be composed, for the end of its error line; empty if nothing is missing.

    A run's folders of configurations are not taken by themselves: their files name classes, and the run folder that
    names them may come from a stranger.
    """
    folder = _resumed(arguments)
    if folder is None or any(re.match(r"--config-dir\b|-cd\b", argument) for argument in arguments):
        return ""
    flags = " ".join(shlex.quote(f"--config-dir={path}") for path in Run(_path(folder)).config_dirs)
    return f"; the run was started with {flags}: if you trust it, type it in front of resume=" if flags else ""


def _resumed(arguments: Sequence[str]) -> str | None:
    """The value of `resume=`, if there is one.

    Raises:
        ConfigurationError: it is empty.
    """
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), None)
    if folder is not None and not folder.strip("'\" "):
        raise ConfigurationError(f"resume={folder}: must be a run folder, or null for a new run")
    return folder if folder != "null" else None


def _path(folder: str) -> Path:
    """The folder typed as the value of `resume=`, in full."""
    return Path(str(OmegaConf.create([folder_text(folder)])[0])).expanduser().resolve()


def _saved_overrides(path: Path, folder: str) -> list[str]:
    saved: Any = OmegaConf.to_container(read_yaml(path / OVERRIDES, f"resume={folder}"))
    if not isinstance(saved, list) or not all(isinstance(override, str) for override in saved):
        raise ConfigurationError(f"resume={folder}: its {OVERRIDES} must be a list of overrides")
    return _retyped(saved, path, folder)


def _retyped(typed: Sequence[str], path: Path, folder: str) -> list[str]:
    """Overrides with which today's configs compose the configuration of the run in a folder."""
    config: Any = OmegaConf.to_container(read_yaml(path / CONFIG, f"resume={folder}"))
    return retyped(typed, config) if isinstance(config, dict) else [*typed]
