"""Several sweeps on one page: the differences of their equal settings, and the keys in which they differ."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedpara.report.differences import Difference, difference
from fedpara.report.settings import Setting
from fedpara.runs import UNINTERESTING, Run

MOST_VALUES = 6  # of a key in a sweep


def differences_of_sweeps(found: Sequence[Setting]) -> list[Difference]:
    """Each setting of a later sweep against the first of the settings that has the same values in a sweep before it."""
    first: dict[tuple[tuple[str, str], ...], Setting] = {}
    pairs = [(one, first.setdefault(tuple(sorted(one.values.items())), one)) for one in found]
    return [difference(one, other) for one, other in pairs if one is not other]


def differing_keys(runs: Sequence[Run], sweeps: Mapping[Path, str]) -> tuple[list[str], list[list[str]]]:
    """A table: the keys whose values differ between the sweeps, with their values in each of them.

    Keys that do not change a result and seeds are left out, and all keys if a run has no config.yaml.
    """
    members = {name: [run for run in runs if sweeps.get(run.folder) == name] for name in sweeps.values()}
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith((*UNINTERESTING, "seed")))
    if not all(run.config for run in runs):
        keys = {}
    known = {key: [_values(run.config.get(key, "-") for run in of) for of in members.values()] for key in keys}
    known["commit"] = [_values(run.summary.get("git_commit") for run in of) for of in members.values()]
    known["torch"] = [_values(run.summary.get("versions", {}).get("torch") for run in of) for of in members.values()]
    differing = {key: values for key, values in known.items() if any(one != values[0] for one in values)}
    return ["key", *members], [[key, *map(_shown, values)] for key, values in differing.items()]


def _values(found: Iterable[object]) -> list[str]:
    """The different values that are known, in order."""
    return sorted({str(value) for value in found if value is not None})


def _shown(values: Sequence[str]) -> str:
    more = f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
    return ", ".join(values[:MOST_VALUES]) + more or "unknown"
