"""What a person reads when the configuration is wrong: one line with the key, the value and what is allowed."""

import difflib
import errno
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara.errors import CrashesAgain, WorkerKilled
from fedpara.files import UnusableFile

# errors the user can fix
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, HydraException, OmegaConfBaseException)
FAILED = FloatingPointError | CrashesAgain | WorkerKilled  # of a run that could be started
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT,
}  # fmt: skip


class ConfigurationError(Exception):
    """A wrong configuration or missing input; its text is the one line to show."""


def require_nodes(cfg: DictConfig, names: Iterable[str]) -> None:
    """Refuse a single value where a group of keys belongs.

    Raises:
        ConfigurationError: the first such key.
    """
    for name in names:
        node = OmegaConf.select(cfg, name)
        if not isinstance(node, DictConfig):
            raise ConfigurationError(f"{name}={node!r}: must be a group of keys, as in configs/{name.split('.')[0]}/")


@contextmanager
def blame(cfg: DictConfig, group: str) -> Iterator[None]:
    """Turn errors of building the objects of one config group into `ConfigurationError`s that name the key.

    Constructors raise `ValueError("name=value: what is allowed")`, and pydantic checks types and ranges of signatures.
    """
    try:
        yield
    except (ConfigurationError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        cause = _cause(error)
        if not isinstance(cause, (*USER_ERRORS, *_lightning_errors())):
            raise
        nested = re.search(rf"full_key: ({re.escape(group)}\.\S+)", str(error))  # Hydra names the node it was building
        raise ConfigurationError(_describe(cfg, nested[1] if nested else group, cause)) from error


def _lightning_errors() -> tuple[type[Exception], ...]:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    return (MisconfigurationException,)


def _cause(error: BaseException) -> BaseException:
    """The error inside Hydra's `InstantiationException`."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _describe(cfg: DictConfig, group: str, error: BaseException) -> str:
    if hasattr(error, "errors"):  # pydantic
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        if first["type"].startswith("unexpected"):
            return f"{group}.{location[-1]}: no such key"
        if first["type"].startswith("missing"):
            return f"{group}.{location[-1]}: must be given"
        inner = first.get("ctx", {}).get("error")
        if inner is None or not location:  # with neither, it is a ValueError of the constructor itself
            return f"{_key(cfg, group, location)}={first['input']!r}: {first['msg']}"
        return _with_group(cfg, group, str(inner))
    if unexpected := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return f"{group}.{unexpected[1]}: no such key"
    if target := re.search(r"(?:Error loading|callable target, got) '([^']*)'", str(error)):
        owner = re.search(r"full_key: (\S+)", str(error))
        return (
            f"{owner[1] if owner else group}._target_={target[1]!r}: must name a class or function, {one_line(error)}"
        )
    given = "" if isinstance(error, ValueError | OSError) else _given(cfg, group)
    return _with_group(cfg, group, one_line(error)) + given


def _given(cfg: DictConfig, group: str) -> str:
    """A group's values, beside the error of someone else's constructor, which need not say which it is about."""
    node: Any = OmegaConf.select(cfg, group)
    names = [str(name) for name in node if str(name)[0] != "_"] if isinstance(node, DictConfig) else []
    return f"; given {', '.join(f'{name}={node[name]!r}' for name in names)}" if names else ""


def _with_group(cfg: DictConfig, group: str, message: str) -> str:
    """Put the full key in front of a message `name=value: ...`; of any other, the group."""
    named = re.match(r"(\w+)=", message)
    if named and any(_has(cfg, owner, named[1]) for owner in _owners(group)):
        return _key(cfg, group, [named[1]]) + message[named.end(1) :]
    return message if message.startswith("/") or not group else f"{group}: {message}"


def _owners(group: str) -> list[str]:
    """Where a constructor's argument may have come from: its own group, the top (seed), groups that pass it on."""
    return [group, "", "executor", "factorization", "federation", "data", "partition"]


def _key(cfg: DictConfig, group: str, location: list[str]) -> str:
    owner = next((owner for owner in _owners(group) if _has(cfg, owner, location[0])), group)
    return ".".join(filter(None, [owner, *location]))


def _has(cfg: DictConfig, owner: str, name: str) -> bool:
    node = OmegaConf.select(cfg, owner) if owner else cfg
    return isinstance(node, DictConfig) and name in node


def one_line(error: object, limit: int = 600) -> str:
    """The text of an error without its line breaks."""
    return re.sub(r"\s+", " ", str(error)).strip()[:limit] or type(error).__name__


def composition_line(error: Exception, allowed: DictConfig | None) -> str:
    """One line for an error of Hydra's composition; unknown keys with their nearest neighbours.

    Args:
        allowed: the configuration without the faulty override, where it could be composed.
    """
    text = str(error)
    if kind := re.match(r"Error merging override (.*)", text):
        return f"{kind[1]}: must be of the kind it is in configs/ ({str(error.__cause__).splitlines()[0]})"
    wrong = re.search(r"Could not override '([\w.@/]+)'", text)
    if wrong is None:
        line = one_line(re.sub(r"^In '[^']*': |Config search path:.*", "", text, flags=re.DOTALL))
        return line.rstrip(".") + _missing_plugin(line)
    inner = re.search(r"full_key: (\S+)", str(error.__cause__))  # of `group={key: 1}` the key
    key = inner[1] if inner else wrong[1]
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(allowed, parent) if allowed is not None and parent else allowed
    names = [str(n) for n in node if not str(n).startswith("_")] if isinstance(node, DictConfig) else []
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {'.'.join(filter(None, [parent, near[0]]))}?" if near else ""
    choices = f"; allowed in {parent or 'the configuration'}: {', '.join(names)}" if names else ""
    return f"{key}: no such key{hint}{choices}"


def _missing_plugin(line: str) -> str:
    """The package of a launcher or sweeper that Hydra does not find: `hydra-optuna-sweeper` has `optuna`."""
    found = re.search(r"'hydra/(launcher|sweeper)/(ax|joblib|nevergrad|optuna|ray|rq|submitit)(?![a-z])", line)
    return f" (is hydra-{found[2]}-{found[1]} installed?)" if found else ""


def line_of(error: Exception) -> str | None:
    """What to show for an error that the person can mend; None for a fault of ours, which wants its stack trace."""
    if isinstance(error, ConfigurationError | UnusableFile | FAILED):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"paths.output_dir: {one_line(error)}; must be a folder that can be written, on a disk with space"
    return None


def stop(line: str, status: int = 2) -> NoReturn:
    """End the process by one line on standard error."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
