"""Overrides in the grammars of Hydra and OmegaConf: how to write any text as a value and any folder as a full path."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import ListConfig, OmegaConf

PATHS = re.compile(r"(.*[._])?(dir|folder)|resume|pretrained\.file")  # keys of paths, such as hydra.run.dir


def assignment(key: str, text: str) -> str:
    """The override `key=...` that sets a key to a text, whatever characters are in it."""
    return _quoted(key, escaped(text))


def escaped(text: str) -> str:
    """Escape a text so that OmegaConf reads it back unchanged: `${` does not start an interpolation.

    OmegaConf keeps backslashes as they are, except those before `${`.
    """
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def literal(node: Any) -> Any:
    """A saved, resolved configuration with every text escaped, so that nothing in it is interpolated again."""
    if isinstance(node, Mapping):
        return {name: literal(value) for name, value in node.items()}
    if isinstance(node, list):
        return [literal(value) for value in node]
    return escaped(node) if isinstance(node, str) else node


def parse(argument: str) -> Override:
    """One override.

    Raises:
        HydraException: it is not an override in Hydra's grammar; a flag, for instance.
    """
    return OverridesParser.create().parse_override(argument)


def folder_text(text: str) -> str:
    """The folder typed as the value of `resume=` and similar keys, in Hydra's grammar or as a plain path.

    Returns:
        A text in OmegaConf's grammar, whose interpolations still work.
    """
    if Path(text).exists():
        return escaped(text)
    try:
        value = parse(f"folder={text}").value()
    except HydraException:
        return escaped(text)
    return value if isinstance(value, str) else escaped(text)


def texts(overrides: Sequence[str]) -> list[str]:
    """Overrides from Hydra's configuration as they were typed, with any `${...}` in them left alone."""
    if not isinstance(overrides, ListConfig):
        return list(overrides)
    return [str(override) for override in OmegaConf.to_container(overrides) or []]


def config_dirs(hydra_cfg: HydraConf) -> list[str]:
    """The flags `--config-dir=<folder>` with which a program was started, with full paths."""
    return [f"--config-dir={s.path}" for s in hydra_cfg.runtime.config_sources if s.provider == "command-line"]


def is_job(hydra_cfg: HydraConf) -> bool:
    """Whether a run is the job of a sweep, in this process or in its own."""
    return not OmegaConf.is_missing(hydra_cfg.job, "num")


def absolute(argument: str, here: Path) -> str:
    """An argument of the command line; if it sets a key that names a folder, with the folder's absolute path.

    A sweep's list of values, null, a value that starts with an interpolation and an absolute path are left alone.
    """
    key, _, text = argument.partition("=")
    if not PATHS.fullmatch(key.lstrip("+~")) or not text or _is_settled(argument, text):
        return argument
    return _quoted(key, absolute_folder(folder_text(text), here))


def absolute_folder(folder: str, here: Path) -> str:
    """A folder in OmegaConf's grammar as an absolute path: `~` is expanded, a relative path starts at `here`."""
    if folder.startswith("~"):
        return str(Path(folder).expanduser())
    return folder if folder.startswith(("/", "${")) else f"{escaped(str(here))}/{folder}"


def _is_settled(argument: str, text: str) -> bool:
    try:
        override = parse(argument)
    except HydraException:
        return False
    if override.is_sweep_override():
        return not Path(text).exists()
    value = override.value()
    return not isinstance(value, str) or value.startswith(("/", "${"))


def _quoted(key: str, value: str) -> str:
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
