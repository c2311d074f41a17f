"""Checks of plain values before torch is imported, which takes seconds.

The ranges are in the signatures of constructors, and nowhere else. To import a class is to import torch, so this module
reads the signature from the source. It evaluates annotations that need no more than `typing` and pydantic; pydantic
checks the others when the object is made.
"""

import ast
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara.app.make import Make

SOURCE = Path(__file__).resolve().parents[2]
PLAIN = {"collections.abc", "typing", "pydantic"}  # modules that an annotation may need here
TRAINING = "fedpara.execution.training.LocalTraining"
ALSO_READ_BY = {  # what takes values of a group without being its `_target_`
    "federation": ["fedpara.federation.round.Federation"], "trainer": [TRAINING], "executor": [TRAINING],
    "factorization": [TRAINING, "fedpara.nn.factorize"],
}  # fmt: skip


def first_missing(cfg: DictConfig) -> str | None:
    """The first key whose value is missing (`???`), which `get` reads as nothing wanted; None if all are given."""
    for key, group in _groups(OmegaConf.to_container(cfg)):
        for name, value in group.items():
            if value == "???" or (isinstance(value, list) and "???" in value):
                return f"{key}.{name}".lstrip(".")
    return None


def check_values(cfg: DictConfig) -> None:
    """Check the values that can be checked one by one, without torch.

    Raises:
        ConfigurationError: names the first wrong one.
    """
    make = Make(cfg)
    make.call("", _require_seed, cfg)
    make.call("model", _require_patterns, cfg.model)
    make.call("model.optimizer", _require_learning_rate, cfg.model.get("optimizer") or {})
    for key, group in _groups(_resolved(cfg)):
        for target in (str(group.get("_target_")), *ALSO_READ_BY.get(key, ())):
            make.call(key, _check, group, target)


def _require_seed(cfg: DictConfig) -> None:
    """Check the seed: torch takes 64 bits, but W&B and files hold signed numbers."""
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or not 0 <= cfg.seed < 2**63:
        raise ValueError(f"seed={cfg.seed}: must be a whole number, 0 to 2^63 - 1")


def _require_patterns(model: DictConfig) -> None:
    given: Any = OmegaConf.to_container(model)
    for name in ("keep_dense", "head"):
        value = given.get(name)
        if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
            raise ValueError(f"{name}={value!r}: must be a list of name patterns")


def _require_learning_rate(optimizer: Mapping[str, Any]) -> None:
    """Check the value that everybody sets: torch accepts NaN, and its error for a word does not name the key."""
    rate = optimizer.get("lr", 0)
    if isinstance(rate, bool) or not (isinstance(rate, int | float) and 0 <= rate < math.inf):
        raise ValueError(f"lr={optimizer['lr']!r}: must be a number, 0 or more")


def _resolved(cfg: DictConfig) -> Any:
    """All values; as they stand, with their interpolations, if some can only be resolved in a run."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_container(cfg)


def _groups(node: Any, key: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every group of keys in a configuration, with its dotted key."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from _groups(value, f"{key}.{name}".lstrip("."))


def _check(values: Mapping[Any, Any], target: str) -> None:
    """Validate values as the constructor or function `target` will.

    Raises:
        pydantic.ValidationError: a value is wrong.
        ValueError: true or false, where a number must be.
    """
    module, _, name = target.rpartition(".")
    annotations = _annotations(module, name)
    checked = {name: value for name, value in values.items() if name in annotations and not _checked_later(value)}
    for name, value in checked.items():
        if isinstance(value, bool) and _is_of_numbers(annotations[name]):
            raise ValueError(f"{name}={value}: must be a number")
    if checked:
        from pydantic import create_model

        fields: Any = {name: (annotations[name], ...) for name in checked}
        with suppress(NameError):  # a validator that needs more of its module
            create_model("Values", **fields).model_validate(checked)


def _is_of_numbers(annotation: Any) -> bool:
    """Whether a value is a number and never true or false, which pydantic would take for 1 or 0."""
    kinds = {annotation}
    while nested := {kind for one in kinds for kind in get_args(one)} - kinds:
        kinds |= nested
    return bool(kinds & {int, float}) and bool not in kinds


def _checked_later(value: Any) -> bool:
    """Whether the value says nothing yet: an object will be made of it, it is missing, or it has an interpolation."""
    return value == "???" or "${" in str(value) or (isinstance(value, dict) and "_target_" in value)


@cache
def _annotations(module: str, name: str) -> dict[str, Any]:
    """The annotations of arguments that can be evaluated; none if pydantic does not validate them."""
    home, definition = _definition(module, name)
    if definition is None:
        return {}
    function = definition if isinstance(definition, ast.FunctionDef) else _constructor(definition)
    if function:
        arguments = [*function.args.args, *function.args.kwonlyargs]
        own = {argument.arg: argument.annotation for argument in arguments if argument.annotation}
        return _evaluated(home, own) if _has_decorator(function, "validate_call") else {}
    assert isinstance(definition, ast.ClassDef)
    inherited: dict[str, Any] = {}
    for base in definition.bases:
        inherited |= _annotations(home, ast.unparse(base))
    if not _has_decorator(definition, "dataclass"):
        return inherited
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    return inherited | _evaluated(home, {ast.unparse(field.target): field.annotation for field in fields})


def _constructor(definition: ast.ClassDef) -> ast.FunctionDef | None:
    return next((n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef | None]:
    """The module that defines a class or function, found through the packages that export it, and the definition."""
    for node in _tree(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return _definition(str(node.module), name)
    return module, None


def _has_decorator(node: ast.ClassDef | ast.FunctionDef, name: str) -> bool:
    return any(ast.unparse(decorator).startswith(name) for decorator in node.decorator_list)


def _evaluated(module: str, annotations: Mapping[str, ast.expr]) -> dict[str, Any]:
    """The annotations that need only plain modules, and what their own module defines with these."""
    known: dict[str, Any] = {}
    for node in _tree(module):
        if isinstance(node, ast.Assign | ast.FunctionDef) or (
            isinstance(node, ast.ImportFrom) and node.module in PLAIN
        ):
            with suppress(Exception):
                exec(compile(ast.Module([node], []), module, "exec"), known)
    evaluated = {}
    for name, annotation in annotations.items():
        with suppress(Exception):
            evaluated[name] = eval(compile(ast.Expression(annotation), module, "eval"), known)
    return evaluated


@cache
def _tree(module: str) -> list[ast.stmt]:
    """The statements of a module of this package; none for any other module, and for one that does not exist."""
    parts = module.split(".")
    folder = SOURCE.joinpath(*parts)
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    ours = parts[0] == "fedpara" and all(part.isidentifier() for part in parts)
    return ast.parse(file.read_text()).body if ours and file.is_file() else []
