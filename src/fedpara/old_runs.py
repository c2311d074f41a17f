"""Translates run folders of earlier versions; only this module knows how keys and names have changed.

A run that starts today needs nothing from here. A configuration with the group `factors` is a current one.
"""

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

MODULES = "cifar|cinic10|leaf|mnist|mnist_small|shakespeare|fedavgm|feddyn|fedopt|fedprox|scaffold"
BY_MODULE = re.compile(
    rf"fedpara\.(data|algorithms)\.(?:{MODULES})\.(\w+)"
)  # now named by package: fedpara.data.cifar10
LOGGER = "fedpara.callbacks.wandb.FederationWandbLogger"
WITHOUT_EFFECT: dict[str, set[str] | None] = {  # keys that each factorisation had but did not use; None: all
    "Dense": None,
    "EqualSizeLowRank": {"nonlinearity", "jacobian_correction"},
    "PFedPara": {"nonlinearity"},
}
# keys that are null by default since this version: a run resumes with its own value
NOW_NULL = [f"executor.{inner}{key}" for inner in ("", "inner.") for key in ("whole_epochs", "matmul_precision")]
# keys whose default depended on other groups then: a run resumes with its own value
OWN_DEFAULT = {"algorithm": ("FedAdam", "model.optimizer.lr"), "factorization": ("PFedPara", "factorization.gamma")}
KEYS_ADDED = {  # the behaviour of runs from before these keys existed
    "data.lone_example": "keep", "data.validation": 0.0, "sharing.personal_rate": 1.0,
    "data.class_range": None, "factorization.delta": False, "factorization.trainable": [],
    "federation.catch_up": False, "link.error_feedback": False, "federation.tiers": None,
    "faults.attackers": 0.0, "faults.attack": None, "faults.strength": None,
}  # fmt: skip


def class_name(node: object) -> str:
    """The name of the class that a config group builds, without its module; empty if it names none."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return str(target or "").rpartition(".")[2]


def modernised(config: Any) -> Any:
    """A saved configuration with current names and without keys that had no effect; any other object is unchanged."""
    if not isinstance(config, Mapping):
        return config
    renamed = _renamed(config)
    factorization = renamed.get("factorization")
    kind = "" if "factors" in config else class_name(factorization)
    if isinstance(factorization, Mapping) and kind in WITHOUT_EFFECT:
        useless = WITHOUT_EFFECT[kind] or factorization.keys() - {"_target_"}
        renamed["factorization"] = {key: value for key, value in factorization.items() if key not in useless}
    renamed.pop("local_learning_rate", None)  # the table that held learning rates
    for group in ("privacy", "aggregation"):  # groups of later runs
        renamed.setdefault(group, {})
    return renamed


def _renamed(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _name(value) if name == "_target_" else _renamed(value) for name, value in node.items()}
    return [_renamed(value) for value in node] if isinstance(node, list) else node


def _name(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    return "fedpara.callbacks.FederationWandbLogger" if target == LOGGER else BY_MODULE.sub(r"fedpara.\1.\2", target)


def retyped(typed: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The overrides of a run, changed so that today's configs compose the configuration that the run had.

    Args:
        typed: the run's overrides.yaml.
        config: its config.yaml as it was saved.
    """
    defaults: list[tuple[str, object]] = [(key, reduce(_child, key.split("."), config)) for key in NOW_NULL]
    kept = list(typed)
    if "factors" not in config:
        gone = {f"factorization.{key}" for key in _keys(config) - _keys(modernised(config))}
        kept = [word for word in typed if word.lstrip("+").partition("=")[0] not in gone]
        defaults += _own_defaults(config)
    keys = {word.lstrip("+").partition("=")[0] for word in kept}
    return kept + [f"{key}={value}" for key, value in defaults if value is not None and key not in keys]


def _keys(config: Mapping[str, Any]) -> set[str]:
    factorization = config.get("factorization")
    return set(factorization) if isinstance(factorization, Mapping) else set()


def _own_defaults(config: Mapping[str, Any]) -> list[tuple[str, object]]:
    keys = [key for group, (kind, key) in OWN_DEFAULT.items() if class_name(config.get(group)) == kind]
    values = [reduce(_child, key.split("."), config) for key in keys]
    return [(key, value) for key, value in zip(keys, values, strict=True) if isinstance(value, int | float)]


def _child(node: Any, name: str) -> Any:
    return node.get(name) if isinstance(node, Mapping) else None
