"""The configuration: composed from configs/ and the command line, or read from a run folder."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedpara.app.errors import ConfigurationError, composition_line, one_line
from fedpara.app.naming import run_group, run_name, run_title
from fedpara.app.overrides import PATHS, absolute_folder, assignment, escaped, is_job, literal, parse
from fedpara.installation import CONFIGS, root
from fedpara.old_runs import modernised
from fedpara.runs import leaves

CONFIG_DIR = str(CONFIGS)
SWEEPING = "experiment", "sweep"  # groups whose choices can sweep, in the order of configs/train.yaml
os.environ["PROJECT_ROOT"] = str(root())  # configs/paths reads it

OmegaConf.register_new_resolver("first", lambda *values: next(value for value in values if value), replace=True)
for name in (run_name, run_title, run_group):
    OmegaConf.register_new_resolver(
        name.__name__, lambda *given, _name=name: _name(*given, is_job(HydraConfig.get())), replace=True
    )


def compose(overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """The resolved configuration as `python src/train.py` composes it, in a process that Hydra did not start.

    Hydra's own state is the same afterwards as before.

    Args:
        overrides: the arguments of `python src/train.py`.
        folder: the run folder, in which the log is opened; None: no run folder and no log.

    Raises:
        HydraException, OmegaConfBaseException: an override does not fit.
        ConfigurationError: a group is given null or a number; one line with its choices.
    """
    own = [assignment("hydra.runtime.output_dir", str(folder or ".")), "hydra.mode=RUN"]
    with choices_named(overrides), _own_hydra():
        cfg = hydra.compose("train", [*overrides, *own], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            configure_log(cfg.hydra.job_logging, cfg.hydra.verbose)
        with open_dict(cfg):
            del cfg["hydra"]
        return _literal(OmegaConf.to_container(cfg, resolve=True))


def sweep_params(overrides: Sequence[str]) -> dict[str, str]:
    """The lists of values over which an experiment or a choice of `sweep` sweeps by itself, by key.

    They are read from the files of these choices, because a composition takes a hundred times as long.

    Args:
        overrides: without lists of values; `require_composable` checks them.
    """
    chosen = {override.key_or_group: override.value() for override in map(parse, overrides)}
    params: dict[str, str] = {}
    for group in SWEEPING:
        path = Path(CONFIG_DIR, group, f"{chosen.get(group)}.yaml")
        if path.is_file():
            own = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
            params |= {str(key): str(values) for key, values in own.items()}
    return params


def require_composable(overrides: Sequence[str]) -> None:
    """Check that a configuration can be composed.

    Raises:
        HydraException, OmegaConfBaseException: an override does not fit.
        ConfigurationError: a group is given null or a number; one line with its choices.
    """
    with choices_named(overrides), _own_hydra():
        hydra.compose("train", list(overrides))


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Replace Hydra's two globals by new ones, and put the old ones back afterwards."""
    running, known = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, known


def _literal(node: Any) -> DictConfig:
    made = OmegaConf.create(literal(node))
    assert isinstance(made, DictConfig)
    return made


def make_absolute(cfg: DictConfig, here: Path) -> None:
    """Make every folder in the configuration absolute, relative to `here`, whether a yaml or `DATA_DIR` names it."""
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=True)):
        if isinstance(value, str) and value and PATHS.fullmatch(key) and not value.startswith("/"):
            OmegaConf.update(cfg, key, absolute_folder(escaped(value), here))


def read_yaml(path: Path, key: str) -> Any:
    """A run folder's configuration, or its list of overrides.

    Args:
        key: the argument that led there, `resume=...`, for the error.

    Raises:
        ConfigurationError: the file is not valid YAML.
    """
    try:
        return OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{key}: its {path.name} cannot be read ({one_line(error)})") from error


def read_resolved(path: Path, key: str) -> DictConfig:
    """A run folder's config.yaml with its texts as they were saved: nothing is interpolated, so no resolver runs.

    Args:
        key: the argument that led there, for the error.

    Raises:
        ConfigurationError: the file is not such a configuration.
    """
    saved = read_yaml(path, key)
    if not isinstance(saved, DictConfig):
        raise ConfigurationError(f"{key}: its {path.name} must be a group of keys")
    return _literal(modernised(OmegaConf.to_container(saved)))


def composition_error(error: Exception, typed: Sequence[str]) -> str:
    """One line; for an unknown key, with the keys of the configuration composed without it."""
    allowed = None
    with_key = [a for a in typed if re.match(r"[^-].*=", a) and f"'{a.partition('=')[0]}'" not in str(error)]
    with suppress(HydraException, OmegaConfBaseException), _own_hydra():
        allowed = hydra.compose("train", with_key)
    return composition_line(error, allowed)


@contextmanager
def choices_named(typed: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's error for a group that is given null or a number, which does not say which group it is, into a line.

    Raises:
        ConfigurationError: the group, and what it can be.
    """
    if nothing := _choice_line([argument for argument in typed if argument.endswith("=[]")]):
        raise ConfigurationError(nothing)
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise ConfigurationError(_choice_line(typed) or one_line(error)) from error


def _choice_line(typed: Sequence[str]) -> str | None:
    """One line for the first group that is given something else than a name."""
    for argument in typed:
        choices = sorted(path.stem for path in (Path(CONFIG_DIR) / argument.partition("=")[0]).glob("*.yaml"))
        if choices and _is_no_name(argument):
            return f"{argument}: must be one of {', '.join(choices)}"
    return None


def _is_no_name(argument: str) -> bool:
    """Whether a group is given null, a number or an empty list; in a sweep, whether one of its values is that."""
    override = parse(argument)
    if override.is_sweep_override():
        values = override.sweep_string_iterator() if override.is_choice_sweep() else ()
        key = argument.partition("=")[0]
        return override.is_range_sweep() or any(_is_no_name(f"{key}={value}") for value in values)
    value = override.value()
    return value == [] or not isinstance(value, str | list | dict)
