"""Groups runs that differ only in their seed into settings, with means over seeds and 95 % intervals."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedpara.cost import TEST_ACCURACY, CostToTarget, cost_to_target
from fedpara.metric import ROUNDING, Metric
from fedpara.record import GIGABYTE
from fedpara.runs import Run, axes, deciding

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half_width` of its 95 % confidence interval (Student's t), NaN for one seed."""

    mean: float
    half_width: float
    num_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from at least one value."""
        return cls(float(np.mean(values)), float(half_widths(np.array(values))), len(values))


def half_widths(values: np.ndarray) -> np.ndarray:
    """Half widths of 95 % confidence intervals (Student's t): (seeds, ...) values to (...), NaN for one seed."""
    if len(values) < 2:
        return np.full(values.shape[1:], math.nan)
    from scipy import stats  # takes a second to import

    return stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)


@dataclass(frozen=True)
class Setting:
    """A set-up that was run with one or more seeds.

    Attributes:
        values: the values that distinguish it from the others, by axis.
        runs: its runs, in any state.
        metric: the reported column; shares are reported in percent.
        sweep: name of the sweep that its runs are of; empty if there is only one.
    """

    values: dict[str, str]
    runs: list[Run]
    metric: Metric = TEST_ACCURACY
    sweep: str = ""

    @property
    def label(self) -> str:
        """`gamma=0.1, algorithm=scaffold`; of several sweeps `monday: gamma=0.1, algorithm=scaffold`."""
        own = ", ".join(f"{name}={value}" if name else value for name, value in self.values.items()) or "all runs"
        return f"{self.sweep}: {own}" if self.sweep else own

    @cached_property
    def counted(self) -> list[Run]:
        """The runs in the means: the finished ones, or all with a tested round if none is finished.

        Of several runs with one seed, the first of those with most rounds counts.
        """
        tested = [run for run in self.runs if run.last(self.metric.name) is not None]
        return of_each_seed([run for run in tested if run.state == "finished"] or tested)

    @property
    def num_seeds(self) -> int:
        """How many seeds it was run with, counted or not."""
        return len(of_each_seed(self.runs))

    @property
    def is_finished(self) -> bool:
        """Whether the means are of finished runs."""
        return all(run.state == "finished" for run in self.counted)

    def curve(self, run: Run) -> np.ndarray:
        """The tested rounds of a run: (n, 3) array of round, GB sent so far, metric (accuracy in percent)."""
        tested = [(row, row[self.metric.name]) for row in run.rows if self.metric.name in row]
        return np.array([[r["round"], r["comm/total_bytes"] / GIGABYTE, self.metric.scaled(m)] for r, m in tested])

    @cached_property
    def mean_curve(self) -> np.ndarray:
        """The mean of the counted runs over their common rounds: (n, 3), empty if nothing was tested."""
        return self._curves.mean(axis=0) if self._curves.size else np.empty((0, 3))

    @cached_property
    def interval(self) -> np.ndarray:
        """The ends of the 95 % interval of the metric in `mean_curve`: (n, 2), NaN for one seed."""
        mean, half = self.mean_curve[:, 2], half_widths(self._curves[..., 2])
        return np.stack([mean - half, mean + half], axis=1)

    @cached_property
    def _curves(self) -> np.ndarray:
        """The counted runs in the rounds that all of them tested: (runs, n, 3)."""
        curves = [self.curve(run) for run in self.counted]
        common = set.intersection(*(set(curve[:, 0]) for curve in curves)) if curves else set()
        kept = [[row for row in curve if row[0] in common] for curve in curves]
        return np.array(kept).reshape(len(curves), len(common), 3)

    def estimate(self, value: Callable[[Run], float | None]) -> Estimate | None:
        """The estimate of a figure over the counted runs; None if no run has it."""
        values = [found for run in self.counted if (found := value(run)) is not None]
        return Estimate.of(values) if values else None

    @property
    def last(self) -> Estimate | None:
        """The metric in the last round that all counted runs tested."""
        return Estimate.of(self._curves[:, -1, 2].tolist()) if self._curves.size else None

    @property
    def best(self) -> Estimate | None:
        """The best value of the metric, up to that round."""
        found = [self.metric.best(curve[:, 2].tolist()) for curve in self._curves]
        values = [value for value in found if value is not None]
        return Estimate.of(values) if values else None

    @property
    def gigabytes(self) -> Estimate | None:
        """GB sent by all clients, both ways: in all rounds, or up to `last` where runs go on or differ in length."""
        if self.is_finished and len({len(run.rows) for run in self.counted}) == 1:
            return self.estimate(lambda run: run.rows[-1]["comm/total_bytes"] / GIGABYTE)
        return Estimate.of(self._curves[:, -1, 1].tolist()) if self._curves.size else None

    @property
    def parameters(self) -> Mapping[str, int]:
        """Numbers of parameters, as in a run's summary; empty where no run has them."""
        return next((run.summary["parameters"] for run in self.runs if run.summary.get("parameters")), {})

    @property
    def num_shared(self) -> int | None:
        """Number of parameters that travel each way."""
        return self.parameters.get("shared")

    @property
    def shared_sizes(self) -> list[int]:
        """`num_shared`; with clients of different size, those of the smallest tier and of the largest."""
        found = [size for name, size in self.parameters.items() if name == "shared" or name.startswith("shared_")]
        return sorted({min(found), max(found)}) if found else []

    @property
    def ratio(self) -> float | None:
        """The share of the dense model's parameters that travels."""
        return self.parameters["shared"] / self.parameters["dense"] if self.parameters else None

    def cost(self, target: float, speed_mbps: float) -> list[CostToTarget]:
        """The cost of each counted run until `target` (accuracy: 0 to 1), without runs that never reached it."""
        found = [cost_to_target(run.rows, target, speed_mbps, self.metric) for run in self.counted]
        return [cost for cost in found if cost is not None]

    def reaches(self, target: float) -> bool:
        """Whether every counted run reached `target`; the mean of the others' costs would be of the lucky seeds."""
        return bool(self.counted) and len(self.cost(target, 1)) == len(self.counted)


def of_each_seed(runs: Iterable[Run]) -> list[Run]:
    """One run for each seed, the first of those with most rounds; a run without a number is a seed of its own."""
    chosen: dict[str, Run] = {}
    for run in runs:
        seed = run.name if run.seed is None else run.seed
        if seed not in chosen or len(run.rows) > len(chosen[seed].rows):
            chosen[seed] = run
    return list(chosen.values())


def settings(
    runs: Sequence[Run], metric: Metric = TEST_ACCURACY, sweeps: Mapping[Path, str] | None = None
) -> list[Setting]:
    """Runs grouped by everything that varies within a sweep except the seed.

    Runs without an overrides.yaml are named by their folder; a number at its end is the seed: `dense-0`. Where the
    configurations of a group differ in what decides a result, such as a rate in an edited file, the group is split.

    Args:
        sweeps: the name of each run folder's sweep, if there are several; None: all runs are of one sweep.
    """
    of = ["" if sweeps is None else sweeps[run.folder] for run in runs]
    varying = {name: values for name, values in axes(runs).items() if name != "seed" and _varies(values, of)}
    names = _names(runs, of)
    groups: dict[tuple[Any, ...], Setting] = {}
    for number, run in enumerate(runs):
        own = {name: column[number] for name, column in varying.items()}
        values = own if run.has_overrides else {"": names[number]}
        group = groups.setdefault((of[number], *values.items()), Setting(values, [], metric, of[number]))
        group.runs.append(run)
    return [part for group in groups.values() for part in _parts(group)]


def _varies(values: Sequence[str], sweeps: Sequence[str]) -> bool:
    """Whether a key has several values in one of the sweeps."""
    return len(set(zip(sweeps, values, strict=True))) > len(set(sweeps))


def _names(runs: Sequence[Run], sweeps: Sequence[str]) -> list[str]:
    """Run folders' names without the number of the seed, after the folders that a sweep's runs do not share."""
    above: dict[str, Path] = {}
    for run, sweep in zip(runs, sweeps, strict=True):
        if not run.has_overrides:
            parent = run.folder.resolve().parent
            above[sweep] = Path(os.path.commonpath([above.get(sweep, parent), parent]))
    return [_name(run.folder.resolve(), above.get(sweep)) for run, sweep in zip(runs, sweeps, strict=True)]


def _name(folder: Path, above: Path | None) -> str:
    stem, _, seed = folder.name.rpartition("-")
    own = folder.parent / (stem if stem and seed.isdigit() else folder.name)
    return str(own if above is None or not own.is_relative_to(above) else own.relative_to(above).as_posix())


def _parts(group: Setting) -> list[Setting]:
    """The runs of a group by what decides their results, named by the first keys that tell them apart."""
    parts: list[tuple[dict[str, Any], list[Run]]] = []  # what the runs of a part have together, and the runs
    for run in group.runs:
        own = _deciding(run)
        number = next((n for n, (known, _) in enumerate(parts) if not _differing(known, own)), len(parts))
        known, members = parts[number] if number < len(parts) else ({}, [])
        parts[number : number + 1] = [(own | known, [*members, run])]
    nodes = [one for one, _ in parts]
    chosen: list[str] = []
    for key in sorted({key for one, other in combinations(nodes, 2) for key in _differing(one, other)}):
        if len(_told_apart(nodes, [*chosen, key])) > len(_told_apart(nodes, chosen)):
            chosen.append(key)
    return [
        replace(group, values=group.values | {key: _shown(one, key) for key in chosen}, runs=members)
        for one, members in parts
    ]


def _deciding(run: Run) -> dict[str, Any]:
    """What decides a run's result, without the seeds in an algorithm's own keys and how a machine multiplies.

    Returns:
        Values by dotted key; None for a group without keys.
    """
    keys = deciding(run.config)
    return {
        key: None if value == {} else value for key, value in _leaves(run.nested_config)
        if (value == {} or key in keys) and not key.startswith("executor.") and key.rpartition(".")[2] != "seed"
    }  # fmt: skip


def _leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries by dotted key, as in `runs.leaves`; a group without keys is a value too."""
    if not isinstance(node, dict) or not node:
        yield above, node
        return
    for name, value in node.items():
        yield from _leaves(value, f"{above}.{name}".lstrip("."))


def _differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The keys of both whose values differ, or of which one is a group; a key that was added later is in one."""
    found = {key for key in one.keys() & other.keys() if one[key] != other[key]}
    for node, groups in ((one, other), (other, one)):  # off here, a group there
        found |= {key for key in node.keys() - groups.keys() if any(name.startswith(f"{key}.") for name in groups)}
    return found


def _told_apart(known: Sequence[dict[str, Any]], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(_shown(one, key) for key in keys) for one in known}


def _shown(known: dict[str, Any], key: str) -> str:
    """A key's value; of a group the class that it builds, or that it is on."""
    if any(name.startswith(f"{key}.") for name in known):
        return str(known.get(f"{key}._target_", "on")).rpartition(".")[2]
    return "off" if known.get(key) is None else str(known[key])


def _finished(found: Sequence[Setting]) -> Sequence[Setting]:
    """The settings whose means are of finished runs; all if there are none."""
    return [one for one in found if one.is_finished and one.counted] or found


def common_target(found: Sequence[Setting]) -> float | None:
    """The best value that every counted run reached (accuracy: a whole percent, 0 to 1); None if nothing was tested.

    Of finished settings, if there are any; runs without a number do not count.
    """
    metric = found[0].metric
    values = [run.best(metric) for setting in _finished(found) for run in setting.counted]
    reached = [metric.scaled(value) for value in values if value is not None and math.isfinite(value)]
    if not reached:
        return None
    worst = min(reached) if metric.higher_is_better else max(reached)
    return math.floor(worst * (1 + ROUNDING)) / 100 if metric.is_share else worst


def pareto(found: Sequence[Setting]) -> set[str]:
    """Labels of the Pareto set: no other setting is as good for as few bytes, and better or cheaper.

    What counts are the means of the last test and of the bytes in all rounds; intervals do not. Settings that are not
    finished are left out beside finished ones, and those whose mean is not a number.
    """
    measured = [(one.last, one.gigabytes, one) for one in _finished(found)]
    sign = 1.0 if found and found[0].metric.higher_is_better else -1.0
    points = [(sign * last.mean, -sent.mean, one.label) for last, sent, one in measured if last and sent]
    points = [point for point in points if math.isfinite(point[0])]
    return {
        label for good, cheap, label in points
        if not any(g >= good and c >= cheap and (g, c) != (good, cheap) for g, c, _ in points)
    }  # fmt: skip
