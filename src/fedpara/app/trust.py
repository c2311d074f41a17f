"""The names that `eval.py` and `resume=` agree to build from a run folder.

A name in a configuration is code that will run, and the folder may come from a stranger.
"""

import fnmatch
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fedpara.app.errors import ConfigurationError
from fedpara.app.overrides import parse
from fedpara.private.hydra import locate

PARTS = (
    "aggregation",
    "algorithms",
    "callbacks",
    "communication",
    "data",
    "execution",
    "models",
    "nn",
    "privacy",
    "sharing",
)  # the packages whose classes the configs build
TRUSTED = (
    *(f"fedpara.{part}.*" for part in PARTS), "torch.nn.*", "torch.optim.*", "pytorch_lightning.Trainer",
    "pytorch_lightning.callbacks.*", "pytorch_lightning.loggers.*",
)  # fmt: skip
PLAIN_KEY = re.compile(r"(\+\+?|~)?(?!hydra\b)\w[\w-]*([./@]\w[\w-]*)*")
RESOLVER = re.compile(r"\$\{[^}]*[:$]")  # ${oc.env:HOME}, also escaped; a plain ${seed} is allowed
ELSEWHERE = re.compile(r"^/|(^|/)\.\.(/|$)|://|\$")  # a choice that is not a file of configs/
NUMBER_IN_SWEEP = re.compile(r"\+?hydra\.job\.num=\d+")  # written by this program


def trusted_names(arguments: Iterable[str]) -> list[str]:
    """The patterns typed as `trusted=[mypackage.*]`.

    Raises:
        ConfigurationError: the value is not a list of names.
    """
    names: list[str] = []
    for argument in arguments:
        if argument.partition("=")[0].lstrip("+") == "trusted":
            try:
                value = parse(argument).value()
            except HydraException:
                value = None
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ConfigurationError(f"{argument}: must be a list of names, such as trusted=[mypackage.*]")
            names += value
    return names


def require_trusted(source: str, node: Any, own: Iterable[str]) -> None:
    """Refuse a configuration that has an untrusted `_target_` at any depth.

    Args:
        source: the argument that led there, `run=...`, for the error.
        node: plain dictionaries and lists.
        own: patterns of names that the user trusts, such as `mypackage.*`.

    Raises:
        ConfigurationError: the first such name; one line that says how to allow it.
    """
    patterns = [*TRUSTED, *own]
    for key, name in _targets(node):
        if not _is_trusted(name, patterns):
            package = name.partition(".")[0] if isinstance(name, str) else "mypackage"
            raise ConfigurationError(
                f"{source}: {key}={name!r}: must be a class or function of fedpara, torch.nn, torch.optim or "
                f"Lightning; if you trust this name, allow it by trusted=[{package}.*]"
            )


def require_resolved(source: str, node: Any) -> None:
    """Refuse a resolved configuration that still has `${` in a text: Hydra would resolve it when it builds.

    Raises:
        ConfigurationError: the first such text; one line.
    """
    for text in _texts(node):
        if "${" in text:
            raise ConfigurationError(f"{source}: {text!r}: must not hold ${{, which would be resolved again")


def require_trusted_overrides(source: str, saved: Sequence[str], own: Iterable[str]) -> None:
    """Refuse saved overrides that could build something, or make Hydra do something, that the user did not type.

    The program's own configs are trusted, so an override may choose one of their files. It may not hold a flag, a key
    of Hydra's own, a file elsewhere, a resolver (it could read the environment or build a key from text) or a class.

    Raises:
        ConfigurationError: the first such override; one line that says how to allow it.
    """
    for text in saved:
        if NUMBER_IN_SWEEP.fullmatch(text):
            continue
        try:
            override = parse(text)
        except HydraException as error:
            raise ConfigurationError(f"{source}: its overrides.yaml has {text!r}, which is not an override") from error
        if not _is_plain(text, override):
            raise ConfigurationError(
                f"{source}: its overrides.yaml has {text!r}: must set a plain key, without resolvers and files "
                "elsewhere; if you trust it, type it behind resume="
            )
        require_trusted(source, {override.key_or_group: _value(override)}, own)


def _is_plain(text: str, override: Override) -> bool:
    if not PLAIN_KEY.fullmatch(text.partition("=")[0]) or (override.package or "").split(".")[0] == "hydra":
        return False
    texts = list(_texts(_value(override)))
    is_choice = "." not in override.key_or_group
    return not any(RESOLVER.search(one) or (is_choice and ELSEWHERE.search(one)) for one in texts)


def _value(override: Override) -> Any:
    if override.is_sweep_override():
        return list(override.sweep_iterator())
    return None if override.is_delete() else override.value()


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return node.items()
    return enumerate(node) if isinstance(node, list) else ()


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for name, value in _items(node):
        yield from (str(name), *_texts(value))


def targets(node: Any) -> list[str]:
    """The names of everything that a configuration would build."""
    return [name for _, name in _targets(node) if isinstance(name, str)]


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every `_target_` beneath a node."""
    for name, value in _items(node):
        inner = f"{key}.{name}".lstrip(".")
        if inner.endswith("_target_"):
            yield inner, value
        yield from _targets(value, inner)


def _is_trusted(name: Any, patterns: Sequence[str]) -> bool:
    """Whether a name matches a pattern, and its class or function is also defined where a pattern allows.

    `torch.nn.functional.torch.load` matches `torch.nn.*`, but leads out of it through an import of that module.
    """
    if name in patterns:
        return True
    if not isinstance(name, str) or not _matches(name, patterns):
        return False
    try:
        found = inspect.unwrap(locate(name))
    except Exception:
        return False
    if not isinstance(found, type | FunctionType) or "." in found.__qualname__:
        return False
    return _matches(f"{found.__module__}.{found.__qualname__}", patterns)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    private = any(part.startswith("_") for part in name.split("."))
    return not private and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
