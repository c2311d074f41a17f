"""Differences of variants from a baseline over seeds, paired where it is possible, with 95 % intervals (scipy).

A pair is two runs with one seed on the same data, cut into the same parts: what the partition does to both drops out.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from fedpara.report.settings import CONFIDENCE, Setting
from fedpara.runs import Run

PARTITION = (
    "data.dataset.", "data.class_range", "data.max_", "data.local_fraction", "data.validation", "partition.",
    "federation.num_clients",
)  # fmt: skip
PLACE = "data.dataset.data_dir"
NOISE = 1e-9  # of a value's size: differences below it come from rounding


@dataclass(frozen=True)
class Difference:
    """A variant's metric minus its baseline's, in the last round that all of their runs tested.

    Attributes:
        variant, baseline: the two settings, on the same data and partition.
        round: the round of the comparison; None if no round was tested in all runs.
        mean: the mean difference, in percentage points if the metric is a share.
        low, high: the ends of the 95 % interval; NaN with fewer than two pairs (unpaired: runs of either) or with a
            value that is not finite. They are the same number if the seeds have no spread from which to estimate it.
        num_runs: the numbers of runs of both that were compared.
        paired: whether runs were compared seed by seed (Student's t); otherwise the interval is Welch's.
    """

    variant: Setting
    baseline: Setting
    round: int | None
    mean: float
    low: float
    high: float
    num_runs: tuple[int, int]
    paired: bool

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out 0, and is one."""
        return self.low < self.high and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, `equal`, or `not settled` with the reason if it is not the interval."""
        if self.settled:
            return "higher" if self.mean > 0 else "lower"
        if self.round is None:
            return "not settled: no round in common"
        if min(self.num_runs) < 2:
            return "not settled: fewer than 2 pairs"
        if self.low == self.high:
            return "not settled: no spread between seeds" if self.mean else "equal"
        return "not settled" if self.low <= self.high else "not settled: a value is not finite"


def differences(found: Sequence[Setting], baseline: str | None = None) -> list[Difference]:
    """Each variant against the baseline on the same data and partition; none for a variant that has no baseline there.

    Args:
        found: the settings; without `baseline`, the first of its sweep on its data and partition is the baseline there.
        baseline: a label, or one of its values: `dense`, `factorization=dense`. If several settings have the value, a
            variant is compared with the one of its sweep, if there is one, that is most like it otherwise.

    Raises:
        ValueError: no setting is such a baseline.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Setting]] = {}
    for setting in found:
        groups.setdefault(_partition(setting.runs[0]), []).append(setting)
    if baseline is not None and not any(is_called(setting, baseline) for setting in found):
        raise ValueError(f"baseline={baseline}: must be one of {', '.join(setting.label for setting in found)}")
    made = []
    for members in groups.values():
        firsts = {setting.sweep: setting for setting in reversed(members)}.values()
        candidates = firsts if baseline is None else [setting for setting in members if is_called(setting, baseline)]
        for variant in members if candidates else []:
            if variant not in candidates:
                made.append(difference(variant, max(candidates, key=lambda one: _likeness(one, variant))))
    return made


def difference(variant: Setting, baseline: Setting) -> Difference:
    """The difference of two settings, paired by seed if they are on the same data and partition."""
    from scipy import stats  # takes a second to import

    ours, theirs = ({run.seed or run.name: _tested(one, run) for run in one.counted} for one in (variant, baseline))
    common = sorted(ours.keys() & theirs.keys()) if comparable(variant, baseline) else []
    paired = len(common) >= 2 or (bool(common) and min(len(ours), len(theirs)) < 2)
    curves = [[one[seed] for seed in (common if paired else sorted(one))] for one in (ours, theirs)]
    rounds = set.intersection(*(set(curve) for curve in [*curves[0], *curves[1]])) if all(curves) else set()
    counts = len(curves[0]), len(curves[1])
    if not rounds:
        return Difference(variant, baseline, None, math.nan, math.nan, math.nan, counts, paired)
    last = max(rounds)
    a, b = ([curve[last] for curve in half] for half in curves)
    mean, low, high = sum(a) / len(a) - sum(b) / len(b), math.nan, math.nan
    if min(counts) >= 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # equal values have an interval of width 0
            test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
            low, high = map(float, test.confidence_interval(CONFIDENCE))
        noise = NOISE * max(map(abs, [*a, *b]))
        mean = 0.0 if abs(mean) <= noise else mean
        low, high = (mean, mean) if high - low <= noise else (low, high)
    return Difference(variant, baseline, last, mean, low, high, counts, paired)


def comparable(one: Setting, other: Setting) -> bool:
    """Whether two settings have the same data, cut into the same parts by the same seed."""
    return _partition(one.runs[0]) == _partition(other.runs[0])


def is_called(setting: Setting, baseline: str) -> bool:
    """Whether a baseline is the setting's label or one of its values: `dense`, `factorization=dense`."""
    pairs = (f"{name}={value}" for name, value in setting.values.items())
    return baseline in {setting.label, *setting.values.values(), *pairs}


def _likeness(one: Setting, other: Setting) -> tuple[bool, int]:
    """Whether they are of one sweep, and the number of values that they share."""
    return one.sweep == other.sweep, sum(value == other.values.get(name) for name, value in one.values.items())


def _tested(setting: Setting, run: Run) -> dict[int, float]:
    """The scaled metric by round."""
    return {int(number): float(value) for number, _, value in setting.curve(run)}


def _partition(run: Run) -> tuple[tuple[str, str], ...]:
    """The keys that, with the seed, decide who holds which example; one that is off is as one that did not exist."""
    return tuple(sorted((k, str(v)) for k, v in run.config.items() if v and k.startswith(PARTITION) and k != PLACE))
