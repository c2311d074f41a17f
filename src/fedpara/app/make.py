"""Make the parts of a configuration by their keys: `make("model.network")`; an error becomes one line with the key."""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara.app.errors import ConfigurationError, one_line

Result = TypeVar("Result")
# errors the user can fix
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, HydraException, OmegaConfBaseException)


def find_modules_here() -> None:
    """Let a `_target_` name a module in the current folder; the folder comes last, so that no file hides a package."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


class Make:
    """Makes the parts of one configuration.

    Constructors raise `ValueError("name=value: what is allowed")`, and pydantic checks types and ranges of signatures.
    Each method turns such an error into a `ConfigurationError` of one line that names the full key.

    Args:
        cfg: the whole configuration.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg

    def __call__(self, key: str, **arguments: Any) -> Any:
        """The object that the configuration describes under a dotted key.

        Args:
            arguments: the constructor's other arguments, which are not in the configuration.
        """
        self.require_targets(key)
        return self.call(key, lambda: instantiate(OmegaConf.select(self._cfg, key), **arguments))

    def each(self, group: str, kind: type) -> list[Any]:
        """The objects of a group with any number of them, such as `callbacks`, all of one kind."""
        made = {key: self(key) for key in present(self._cfg, group)}
        for key, one in made.items():
            if not isinstance(one, kind):
                raise ConfigurationError(f"{key}: must be a {kind.__name__}, not a {type(one).__name__}")
        return list(made.values())

    def require_targets(self, *keys: str) -> None:
        """Refuse groups that name no class; Hydra would give back their keys instead of an object."""
        for key in keys:
            node = self.call(key, OmegaConf.select, self._cfg, key)
            if isinstance(node, DictConfig) and "_target_" not in node:
                raise ConfigurationError(f"{key}._target_: must be given; it names a class or function")

    def call(self, key: str, function: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """A function's result; its errors are put down to the values under `key`."""
        try:
            return function(*arguments, **named)
        except ConfigurationError:
            raise
        except Exception as error:
            cause = _cause(error)
            if not (isinstance(cause, USER_ERRORS) or _is_lightnings(cause)):
                raise
            # Hydra names the node that it was building
            nested = re.search(rf"full_key: ({re.escape(key)}\.\S+)", str(error))
            raise ConfigurationError(_describe(self._cfg, nested[1] if nested else key, cause)) from error


def present(cfg: DictConfig, group: str) -> list[str]:
    """The keys of a group that has any number of them; null takes one out."""
    return [f"{group}.{name}" for name, value in (cfg[group] or {}).items() if value is not None]


def _is_lightnings(error: BaseException) -> bool:
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    return isinstance(error, MisconfigurationException)


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
            return f"{_key(cfg, group, location[-1:])}: no such key"
        if first["type"] == "missing" and location[-1].isdigit():  # an item of a list
            return f"{_key(cfg, group, location[:-1])}={first['input']!r}: must have more items"
        if first["type"].startswith("missing"):
            return f"{group}.{location[-1]}: must be given"
        inner = first.get("ctx", {}).get("error")
        if inner is None or not location:  # with neither, it is a ValueError of the constructor itself
            return f"{_key(cfg, group, location)}={first['input']!r}: {first['msg']}"
        return _with_group(cfg, group, str(inner))
    if unexpected := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return f"{_key(cfg, group, [unexpected[1]])}: no such key"
    if target := re.search(r"(?:Error loading|callable target, got) '([^']*)'", str(error)):
        owner = re.search(r"full_key: (\S+)", str(error))
        return (
            f"{owner[1] if owner else group}._target_={target[1]!r}: must name a class or function, {one_line(error)}"
        )
    given = "" if isinstance(error, ValueError | OSError) else _given(cfg, group)
    return _with_group(cfg, group, one_line(error)) + given


def _given(cfg: DictConfig, group: str) -> str:
    """A group's values, to add to an error of another library's constructor, which may not say which value it means."""
    node: Any = OmegaConf.select(cfg, group)
    names = [str(name) for name in node if str(name)[0] != "_"] if isinstance(node, DictConfig) else []
    return f"; given {', '.join(f'{name}={node[name]!r}' for name in names)}" if names else ""


def _with_group(cfg: DictConfig, group: str, message: str) -> str:
    """Put the full key in front of a message `name=value: ...`, and the group in front of any other."""
    named = re.match(r"(\w+)=", message)
    if named and any(_has(cfg, owner, named[1]) for owner in _owners(group)):
        return _key(cfg, group, [named[1]]) + message[named.end(1) :]
    return message if message.startswith("/") or not group else f"{group}: {message}"


def _owners(group: str) -> list[str]:
    """The groups that a constructor's argument may come from: its own, the top level (seed), those that pass it on."""
    return [group, "", "executor", "executor.inner", "factorization", "federation", "data", "partition"]


def _key(cfg: DictConfig, group: str, location: list[str]) -> str:
    owner = next((owner for owner in _owners(group) if _has(cfg, owner, location[0])), group)
    return ".".join(filter(None, [owner, *location]))


def _has(cfg: DictConfig, owner: str, name: str) -> bool:
    node = OmegaConf.select(cfg, owner) if owner else cfg
    return isinstance(node, DictConfig) and name in node
