"""Groups runs that differ only in their seed into settings, with means over seeds and 95 % intervals."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedpara.cost import TEST_ACCURACY, CostToTarget, cost_to_target
from fedpara.metric import Metric
from fedpara.record import GIGABYTE
from fedpara.runs import Run, axes, deciding, short_names

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
        chosen: dict[str, Run] = {}
        for run in [run for run in tested if run.state == "finished"] or tested:
            seed = run.name if run.seed is None else run.seed
            if seed not in chosen or len(run.rows) > len(chosen[seed].rows):
                chosen[seed] = run
        return list(chosen.values())

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
        """GB sent in all rounds by all clients, both ways; of runs that are not finished up to that round."""
        if self.is_finished:
            return self.estimate(lambda run: run.rows[-1]["comm/total_bytes"] / GIGABYTE)
        return Estimate.of(self._curves[:, -1, 1].tolist()) if self._curves.size else None

    @property
    def num_shared(self) -> int | None:
        """Number of parameters that travel each way."""
        return next((run.summary["parameters"]["shared"] for run in self.runs if run.summary.get("parameters")), None)

    @property
    def ratio(self) -> float | None:
        """The share of the dense model's parameters that travels."""
        sizes = next((run.summary["parameters"] for run in self.runs if run.summary.get("parameters")), None)
        return sizes["shared"] / sizes["dense"] if sizes else None

    def cost(self, target: float, speed_mbps: float) -> list[CostToTarget]:
        """The cost of each counted run until `target` (accuracy: 0 to 1), without runs that never reached it."""
        found = [cost_to_target(run.rows, target, speed_mbps, self.metric) for run in self.counted]
        return [cost for cost in found if cost is not None]

    def reaches(self, target: float) -> bool:
        """Whether every counted run reached `target`; the mean of the others' costs would be of the lucky seeds."""
        return bool(self.counted) and len(self.cost(target, 1)) == len(self.counted)


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
    unnamed: dict[str, list[Run]] = {sweep: [] for sweep in of}
    for run, sweep in zip(runs, of, strict=True):
        unnamed[sweep] += [] if run.overrides else [run]
    groups: dict[tuple[Any, ...], Setting] = {}
    for number, run in enumerate(runs):
        own = {name: column[number] for name, column in varying.items()}
        values = own if run.overrides else {"": _name(run, unnamed[of[number]])}
        group = groups.setdefault((of[number], *values.items()), Setting(values, [], metric, of[number]))
        group.runs.append(run)
    return [part for group in groups.values() for part in _parts(group)]


def _varies(values: Sequence[str], sweeps: Sequence[str]) -> bool:
    """Whether a key has several values in one of the sweeps."""
    return len(set(zip(sweeps, values, strict=True))) > len(set(sweeps))


def _name(run: Run, others: Sequence[Run]) -> str:
    """A run folder's name without the number of its seed, after the folders that it does not share with the others."""
    above = os.path.commonpath([other.folder.parent for other in others])
    stem, _, seed = run.name.rpartition("-")
    return (run.folder.parent.relative_to(above) / (stem if stem and seed.isdigit() else run.name)).as_posix()


def _parts(group: Setting) -> list[Setting]:
    """The runs of a group by what decides their results, named by the first keys that tell them apart."""
    parts: list[tuple[dict[str, Any], list[Run]]] = []  # the first run's keys, and the runs that are like it
    for run in group.runs:
        own = _deciding(run)
        like = next((members for first, members in parts if not _differing(first, own)), None)
        parts.append((own, [run])) if like is None else like.append(run)
    firsts = [first for first, _ in parts]
    chosen: list[str] = []
    for key in sorted({key for one, other in combinations(firsts, 2) for key in _differing(one, other)}):
        if len(_told_apart(firsts, [*chosen, key])) > len(_told_apart(firsts, chosen)):
            chosen.append(key)
    names = short_names(chosen)
    return [
        replace(group, values=group.values | {names[key]: str(first.get(key)) for key in chosen}, runs=members)
        for first, members in parts
    ]


def _deciding(run: Run) -> dict[str, Any]:
    """What decides its result, without the seeds in an algorithm's own keys and how a machine multiplies."""
    own = deciding(run.config).items()
    return {key: value for key, value in own if not key.endswith(".seed") and not key.startswith("executor.")}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys of both whose values differ; a key that was added later is in only one."""
    return [key for key, value in one.items() if key in other and other[key] != value]


def _told_apart(firsts: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(str(first.get(key)) for key in keys) for first in firsts}


def common_target(found: Sequence[Setting]) -> float | None:
    """The best value that every counted run reached (accuracy: a whole percent, 0 to 1); None if nothing was tested."""
    metric = found[0].metric
    values = [run.best(metric) for setting in found for run in setting.counted]
    reached = [metric.scaled(value) for value in values if value is not None and math.isfinite(value)]
    if not reached:
        return None
    worst = min(reached) if metric.higher_is_better else max(reached)
    return math.floor(worst) / 100 if metric.is_share else worst


def pareto(found: Sequence[Setting]) -> set[str]:
    """Labels of the Pareto set: no other setting is as good for as few bytes, and better or cheaper.

    What counts are the means of the last test and of the bytes in all rounds; intervals do not. Settings that are not
    finished are left out beside finished ones, and those whose mean is not a number.
    """
    finished = [one for one in found if one.is_finished and one.counted] or found
    measured = [(one.last, one.gigabytes, one) for one in finished]
    sign = 1.0 if found and found[0].metric.higher_is_better else -1.0
    points = [(sign * last.mean, -sent.mean, one.label) for last, sent, one in measured if last and sent]
    points = [point for point in points if math.isfinite(point[0])]
    return {
        label for good, cheap, label in points
        if not any(g >= good and c >= cheap and (g, c) != (good, cheap) for g, c, _ in points)
    }  # fmt: skip
