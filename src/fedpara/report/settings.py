"""Groups runs that differ only in their seed into settings, with means over seeds and 95 % intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedpara.cost import TEST_ACCURACY, CostToTarget, cost_to_target
from fedpara.metric import Metric
from fedpara.record import GIGABYTE
from fedpara.runs import Run, axes

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
        runs: one run per seed, in any state.
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
        """The runs in the means: the finished ones, or all with a tested round if none is finished."""
        tested = [run for run in self.runs if run.last(self.metric.name) is not None]
        return [run for run in tested if run.state == "finished"] or tested

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
        """The counted runs in their common rounds: (runs, n, 3)."""
        curves = [self.curve(run) for run in self.counted]
        length = min(map(len, curves), default=0)
        return np.array([curve[:length] for curve in curves]).reshape(len(curves), length, 3)

    def estimate(self, value: Callable[[Run], float | None]) -> Estimate | None:
        """The estimate of a figure over the counted runs; None if no run has it."""
        values = [found for run in self.counted if (found := value(run)) is not None]
        return Estimate.of(values) if values else None

    @property
    def last(self) -> Estimate | None:
        """The metric in the last test."""
        return self.estimate(lambda run: self._scaled(run.last(self.metric.name)))

    @property
    def best(self) -> Estimate | None:
        """The best value of the metric."""
        return self.estimate(lambda run: self._scaled(run.best(self.metric)))

    @property
    def gigabytes(self) -> Estimate | None:
        """GB sent in all rounds by all clients, both ways."""
        return self.estimate(lambda run: run.rows[-1]["comm/total_bytes"] / GIGABYTE)

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

    def _scaled(self, value: float | None) -> float | None:
        return None if value is None else self.metric.scaled(value)


def settings(
    runs: Sequence[Run], metric: Metric = TEST_ACCURACY, sweeps: Mapping[Path, str] | None = None
) -> list[Setting]:
    """Runs grouped by everything that varies within a sweep except the seed.

    Runs without an overrides.yaml are named by their folder; a number at its end is the seed: `dense-0`.

    Args:
        sweeps: the name of each run folder's sweep, if there are several; None: all runs are of one sweep.
    """
    of = ["" if sweeps is None else sweeps[run.folder] for run in runs]
    varying = {name: values for name, values in axes(runs).items() if name != "seed" and _varies(values, of)}
    groups: dict[tuple[Any, ...], Setting] = {}
    for number, run in enumerate(runs):
        values = {name: column[number] for name, column in varying.items()} if run.overrides else {"": _stem(run.name)}
        group = groups.setdefault((of[number], *values.items()), Setting(values, [], metric, of[number]))
        group.runs.append(run)
    return list(groups.values())


def _varies(values: Sequence[str], sweeps: Sequence[str]) -> bool:
    """Whether a key has several values in one of the sweeps."""
    return len(set(zip(sweeps, values, strict=True))) > len(set(sweeps))


def _stem(name: str) -> str:
    stem, _, seed = name.rpartition("-")
    return stem if stem and seed.isdigit() else name


def common_target(found: Sequence[Setting]) -> float | None:
    """The best value that all mean curves reached (accuracy: a whole percent, 0 to 1); None if nothing was tested."""
    metric = found[0].metric
    best, worst = (np.max, np.min) if metric.higher_is_better else (np.min, np.max)
    peaks = [best(setting.mean_curve[:, 2]) for setting in found if len(setting.mean_curve)]
    if not peaks:
        return None
    return math.floor(worst(peaks)) / 100 if metric.is_share else float(worst(peaks))


def pareto(found: Sequence[Setting]) -> set[str]:
    """Labels of the Pareto set: no other setting is as good for as few bytes, and better or cheaper.

    What counts are the means of the last test and of the bytes in all rounds; intervals do not.
    """
    measured = [(one.last, one.gigabytes, one) for one in found]
    sign = 1.0 if found and found[0].metric.higher_is_better else -1.0
    points = [(sign * last.mean, -sent.mean, one.label) for last, sent, one in measured if last and sent]
    return {
        label for good, cheap, label in points
        if not any(g >= good and c >= cheap and (g, c) != (good, cheap) for g, c, _ in points)
    }  # fmt: skip
