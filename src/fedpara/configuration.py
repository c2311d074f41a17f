"""What a person reads when the configuration is wrong: one line with the key, the value and what is allowed."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigurationError(Exception):
    """A wrong configuration or missing input; its text is the one line to show."""


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
        if not isinstance(cause, (ValueError, TypeError, OSError, OmegaConfBaseException, *_lightning_errors())):
            raise
        raise ConfigurationError(_describe(cfg, group, cause)) from error


def _lightning_errors() -> tuple[type[Exception], ...]:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    return (MisconfigurationException, ImportError, RuntimeError)


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
            return f"{_key(cfg, group, location)}: no such key"
        message = str(first.get("ctx", {}).get("error") or first["msg"])
        if re.match(r"\w+=", message):  # a ValueError of the constructor itself
            return _with_group(cfg, group, message)
        return f"{_key(cfg, group, location)}={first['input']!r}: {message}"
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unexpected:
        return f"{_key(cfg, group, [unexpected[1]])}: no such key"
    return _with_group(cfg, group, one_line(error))


def _with_group(cfg: DictConfig, group: str, message: str) -> str:
    named = re.match(r"(\w+)=", message)
    if named:
        return _key(cfg, group, [named[1]]) + message[named.end(1) :]
    return message if message.startswith(("/", "paths.")) else f"{group}: {message}"


def _key(cfg: DictConfig, group: str, location: list[str]) -> str:
    """The full key: in the group, else at the top (seed), else in another group that passes it on."""
    name = ".".join(location)
    owners = [group, "", *(other for other in ("federation", "data", "model.network") if other != group)]
    for owner in owners:
        full = f"{owner}.{name}" if owner else name
        if _has(cfg, owner, location[0]):
            return full
    return f"{group}.{name}"


def _has(cfg: DictConfig, owner: str, name: str) -> bool:
    node = OmegaConf.select(cfg, owner) if owner else cfg
    return isinstance(node, DictConfig) and name in node and OmegaConf.is_missing(node, name) is False


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of an error without its line breaks."""
    return re.sub(r"\s+", " ", str(error)).strip()[:limit] or type(error).__name__


def composition_line(error: Exception, allowed: DictConfig | None) -> str:
    """One line for an error of Hydra's composition; unknown keys with their nearest neighbours.

    Args:
        allowed: the configuration without the faulty override, where it could be composed.
    """
    text = str(error)
    wrong = re.search(r"Could not override '([\w.@/]+)'", text)
    if wrong is None:
        return one_line(error)
    key = wrong[1]
    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(allowed, parent) if allowed is not None and parent else allowed
    names = [str(n) for n in node if not str(n).startswith("_")] if isinstance(node, DictConfig) else []
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {'.'.join(filter(None, [parent, near[0]]))}?" if near else ""
    return f"{key}: no such key{hint}" + (
        f" allowed in {parent or 'the configuration'}: {', '.join(names)}" if names else ""
    )
