"""The metric that measures a model: its name, whether more is better, and how to show it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

ROUNDING = 1e-6  # of a metric in float32
ACCURACY = re.compile(r"acc(uracy)?(?![a-z])")  # `acc`, `accuracy`, `acc_mean`, not `accel_mse`


@dataclass(frozen=True)
class Metric:
    """A metric by which models are compared; the default is accuracy.

    Attributes:
        name: the name under which a module logs it in its test, `acc`; or a column of metrics.csv, `test/acc`.
        higher_is_better: as in torchmetrics.

    Example:
        >>> Metric().shown(0.7123), Metric("mse", higher_is_better=False).shown(0.7123)
        ('71.23 %', '0.7123')
    """

    name: str = "acc"
    higher_is_better: bool = True

    @classmethod
    def of(cls, module: object) -> "Metric":
        """The metric in `headline` and `higher_is_better` of a module's class; by default accuracy."""
        name = str(getattr(module, "headline", "acc"))
        return cls(name.removeprefix("test/"), bool(getattr(module, "higher_is_better", True)))

    def of_test(self, logged: Mapping[str, float]) -> float:
        """Its value among the metrics that a module logged in its test.

        Raises:
            ValueError: the module did not log it.
        """
        if self.name not in logged:
            names = ", ".join(logged) or "nothing"
            raise ValueError(f"headline={self.name}: must be a metric that the module logs in its test, {names}")
        return logged[self.name]

    def judged(self, personal: bool) -> "Metric":
        """The column that judges a run.

        Args:
            personal: whether a part of the model stays with the clients. That part is untrained in the global model, so
                the mean over the clients' own models is taken instead.
        """
        return replace(self, name=f"personal/{self.name}_mean" if personal else f"test/{self.name}")

    @property
    def is_share(self) -> bool:
        """Whether it is an accuracy from 0 to 1, which is shown in percent."""
        return bool(ACCURACY.match(self.name.rpartition("/")[2].removeprefix("trained_")))

    @property
    def label(self) -> str:
        """A readable name: `accuracy` for `test/acc`, `mse` for `test/mse`."""
        group, _, name = self.name.rpartition("/")
        word = "accuracy" if self.is_share else name.removesuffix("_mean")
        return f"personal {word}" if group == "personal" else word

    @property
    def worst_percentile(self) -> int:
        """The percentile of the worst clients: 10 if more is better, else 90."""
        return 10 if self.higher_is_better else 90

    def shown(self, value: float | None) -> str:
        """A readable value; empty for None."""
        if value is None:
            return ""
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.4g}"

    def scaled(self, value: float) -> float:
        """The value for tables: in percent if it is a share."""
        return 100 * value if self.is_share else value

    @property
    def unit(self) -> str:
        """The end of a column's head for `scaled` values: `, %`, or nothing."""
        return ", %" if self.is_share else ""

    def written(self, value: float) -> str:
        """A value in a table: `71.23` for a share of 0.7123, four digits for any other value."""
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"

    def target(self, value: float) -> str:
        """A readable target: `80 %`, `0.25`."""
        return f"{100 * value:g} %" if self.is_share else f"{value:.4g}"

    def best(self, values: Iterable[float]) -> float | None:
        """The best of some values, ignoring NaN; None if there are none."""
        numbers = [value for value in values if value == value]
        return max(numbers, default=None) if self.higher_is_better else min(numbers, default=None)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is at least as good as the target; 0.7 in float32, which is 0.69999999, reaches 0.7."""
        better = value >= target if self.higher_is_better else value <= target
        return better or math.isclose(value, target, rel_tol=ROUNDING)
