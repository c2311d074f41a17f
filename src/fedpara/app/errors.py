"""Error lines for a wrong configuration: one line with the key, the value and what is allowed."""

import difflib
import errno
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from fedpara.errors import CrashesAgain, WorkerKilled
from fedpara.files import UnusableFile

FAILED = FloatingPointError | CrashesAgain | WorkerKilled  # errors that end a run after it has started
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT,
}  # fmt: skip


class ConfigurationError(Exception):
    """A wrong configuration or missing input; the message is the one line to show."""


def require_nodes(cfg: DictConfig, names: Iterable[str]) -> None:
    """Refuse a single value in place of a group of keys.

    Raises:
        ConfigurationError: names the first such key.
    """
    for name in names:
        node = OmegaConf.select(cfg, name)
        if not isinstance(node, DictConfig):
            raise ConfigurationError(f"{name}={node!r}: must be a group of keys, as in configs/{name.split('.')[0]}/")


def one_line(error: object) -> str:
    """The text of an error without its line breaks, at most 600 characters."""
    return re.sub(r"\s+", " ", str(error)).strip()[:600] or type(error).__name__


def composition_line(error: Exception, allowed: DictConfig | None) -> str:
    """One line for an error of Hydra's composition; for an unknown key, with the keys nearest to it.

    Args:
        allowed: the configuration without the faulty override; None if that cannot be composed either.
    """
    text = str(error)
    if kind := re.match(r"Error merging override (.*)", text):
        return f"{kind[1]}: must be of the kind it is in configs/ ({str(error.__cause__).splitlines()[0]})"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]}: must be given"
    wrong = re.search(r"Could not override '([\w.@/]+)'", text)
    if wrong is None:
        line = one_line(re.sub(r"^In '[^']*': |Config search path:.*", "", text, flags=re.DOTALL))
        return line.rstrip(".") + _missing_plugin(line)
    inner = re.search(r"full_key: (\S+)", str(error.__cause__))  # the key in `group={key: 1}`
    return unknown_key(inner[1] if inner else wrong[1], allowed)


def unknown_key(key: str, allowed: DictConfig | None) -> str:
    """One line for a dotted key that a configuration does not have, with those that it has."""
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(allowed, parent) if allowed is not None and parent else allowed
    names = [str(n) for n in node if not str(n).startswith("_")] if isinstance(node, DictConfig) else []
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {'.'.join(filter(None, [parent, near[0]]))}?" if near else ""
    choices = f"; allowed in {parent or 'the configuration'}: {', '.join(names)}" if names else ""
    return f"{key}: no such key{hint}{choices}"


def as_folders(arguments: Iterable[str], usage: str) -> list[Path]:
    """The folders that arguments name.

    Raises:
        ValueError: one is no folder, but a key that does not exist with its value.
    """
    folders = [*map(Path, arguments)]
    for folder in folders:
        key, equals, _ = str(folder).partition("=")
        if equals and key.isidentifier() and not folder.exists():
            raise ValueError(f"{key}: no such key; {usage}")
    return folders


def _missing_plugin(line: str) -> str:
    """A hint at the package of a launcher or sweeper that Hydra cannot find: `hydra-optuna-sweeper` for `optuna`."""
    found = re.search(r"'hydra/(launcher|sweeper)/(ax|joblib|nevergrad|optuna|ray|rq|submitit)(?![a-z])", line)
    return f" (is hydra-{found[2]}-{found[1]} installed?)" if found else ""


def line_of(error: Exception) -> str | None:
    """The line to show for an error that the user can fix; None for a bug of ours, which needs its stack trace."""
    if isinstance(error, ConfigurationError | UnusableFile | FAILED):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"paths.output_dir: {one_line(error)}; must be a writable folder on a disk with space left"
    return None


def show_usage(text: str) -> None:
    """Print a text and end the process if `--help` was typed."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(text.strip())
        sys.exit(0)


def stop(line: str, status: int = 2) -> NoReturn:
    """Print one line on standard error and end the process."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
