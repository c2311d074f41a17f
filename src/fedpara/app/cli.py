"""The program `train`: one run, or every job of a sweep; errors that the user can fix take one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara.app import sweep, sweep_table
from fedpara.app.composition import CONFIG_DIR, choices_named, composition_error, make_absolute
from fedpara.app.errors import ConfigurationError, line_of, stop
from fedpara.app.make import find_modules_here
from fedpara.app.overrides import PATHS, absolute, config_dirs, is_job, texts
from fedpara.app.resume import missing_flags, require_simulated, with_saved_overrides
from fedpara.app.run import Launch, run
from fedpara.app.values import first_missing
from fedpara.interruption import INTERRUPTED, interruption
from fedpara.private.hydra import Hydra

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach main(), which shows them in one line


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def hydra_main(cfg: DictConfig) -> float | None:
    """Hydra's entry point, called once for a run and once for each job of a sweep."""
    hydra_cfg = HydraConfig.get()
    if missing := first_missing(cfg):  # what follows resolves, and Hydra puts a line before an error from here
        stop(f"{missing}: must be given")
    make_absolute(cfg, Path(hydra_cfg.runtime.cwd))
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return sweep.job(cfg, hydra_cfg)
    require_simulated(cfg)
    number = [f"hydra.job.num={hydra_cfg.job.num}"] if is_job(hydra_cfg) else []
    # the process may have gone into the run folder
    typed = texts(hydra_cfg.overrides.task) + number
    return run(cfg, launch=Launch(typed, Path(hydra_cfg.runtime.cwd), config_dirs(hydra_cfg)))


def main() -> None:
    """Run; exit with status 2 and one line for wrong input, 1 for a run that failed, 130 for an interruption."""
    find_modules_here()
    try:
        sys.argv[1:] = [absolute(argument, Path.cwd()) for argument in with_saved_overrides(sys.argv[1:])]
        _require_no_reference([*sys.argv[1:], str(Path.cwd()), os.environ["PROJECT_ROOT"]])
        for resolver in (
            sweep.sweep_name,
            sweep.job_name,
        ):  # bound here, so that the processes of parallel launchers have them
            typed = partial(resolver, tuple(sys.argv[1:]))
            OmegaConf.register_new_resolver(resolver.__name__, typed, replace=True)
        with (
            interruption.handled(),
            _resolved_before_shown(),
            choices_named(sys.argv[1:]),
        ):
            hydra_main()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        stop(composition_error(error, sys.argv[1:]) + missing_flags(sys.argv[1:]))
    except (ConfigurationError, OSError) as error:
        if (line := line_of(error)) is None:
            raise
        stop(line)
    except KeyboardInterrupt:
        stop("interrupted", status=INTERRUPTED)
    if sweep_table.unfinished:
        stop(f"not finished: {', '.join(sweep_table.unfinished)}", status=1)


@contextmanager
def _resolved_before_shown() -> Iterator[None]:
    """Make `--cfg ... --resolve` resolve first: Hydra cuts out the part to show, and its references would break.

    No job has started yet, so its folder is the one that a run would get.
    """
    cut = Hydra.get_sanitized_cfg

    def resolve_and_cut(self: Hydra, cfg: DictConfig, cfg_type: str) -> DictConfig:
        cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_readonly(cfg.hydra, None)  # set by the line above
        OmegaConf.resolve(cfg)
        return cut(self, cfg, cfg_type)

    if "--resolve" in sys.argv:
        Hydra.get_sanitized_cfg = resolve_and_cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_sanitized_cfg = cut  # type: ignore[method-assign]


def _require_no_reference(texts: list[str]) -> None:
    """Refuse a folder with `${` in its name: Hydra writes it into its configuration, where it would be a reference."""
    for text in texts:
        names_folder = PATHS.fullmatch(text.partition("=")[0].lstrip("+")) is not None
        if (names_folder and r"\${" in text) or (text.startswith("/") and "${" in text):
            line = "must be a folder without ${ in its path, which Hydra takes for a reference"
            raise ConfigurationError(f"{text}: {line}")
