"""The paper's figures for any runs: accuracy against GB (Fig. 3), against size (Fig. 4), cost to target (Fig. 3g).

Beside them, the frontier: the last accuracy against all GB, with the Pareto set.

A chart is its points. They are drawn in one row for a page or in one column for a phone, and are the table beside the
picture. A number that the paper prints for a set-up that was run is a star; it does not print its curves as numbers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fedpara.cost import SPEEDS_MBPS
from fedpara.metric import Metric
from fedpara.record import GIGABYTE, three_digits
from fedpara.report.paper import GIBIBYTE, Comparison
from fedpara.report.settings import Estimate, Setting, pareto

LEGEND_ENTRIES = 12  # more colours are hard to distinguish: then they go from the first setting to the last
STYLE: Any = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "svg.hashsalt": "fedpara",
}  # fmt: skip
SENT = "sent, both ways, all clients"
WIDE, NARROW = 10.0, 4.6  # inches: a page, a phone
STAR: Any = {"marker": "*", "markersize": 12, "markeredgecolor": "black", "linestyle": "", "zorder": 3}
MEAN, PARETO = "mean", "mean, in the Pareto set"
COLUMNS = ("panel", "setting", "source", "x", "mean", "low", "high", "n")


@dataclass(frozen=True)
class Series:
    """Points of one setting that are drawn with one mark.

    Attributes:
        setting: the setting's label.
        source: `mean` over seeds, a run's name, or where the paper prints the number.
        points: (n, 4) array of x, y and the ends of the 95 % interval of y, NaN where there is none.
        num_runs: number of runs in a point; 0 for the paper's.
        style: matplotlib's arguments.
    """

    setting: str
    source: str
    points: np.ndarray
    num_runs: int
    style: dict[str, Any]


@dataclass(frozen=True)
class Chart(ABC):
    """A figure with its data.

    Attributes:
        panels: what is drawn in each panel, by the name of its axis.
        label: the name of the y axis.
        looks: colour, line and marker of each setting in the legend, in the order of the table.
    """

    panels: dict[str, list[Series]]
    label: str
    looks: Mapping[str, dict[str, Any]]

    @property
    def table(self) -> tuple[Sequence[str], list[list[str]]]:
        """The drawn points: a row each, under `COLUMNS`."""
        every = [(panel, series) for panel, drawn in self.panels.items() for series in drawn]
        rows = [
            [panel, s.setting, s.source, *(f"{v:.6g}" if math.isfinite(v) else "" for v in point), str(s.num_runs)]
            for panel, s in every for point in s.points
        ]  # fmt: skip
        return COLUMNS, rows

    @property
    def has_paper(self) -> bool:
        """Whether a number of the paper is drawn."""
        return any(series.num_runs == 0 for drawn in self.panels.values() for series in drawn)

    def draw(self, narrow: bool = False) -> Figure:
        """The figure: its panels side by side or, if `narrow`, one below the other."""
        with mpl.rc_context(STYLE):
            width, height = self._size(narrow)
            figure = Figure(figsize=(width, height), layout="constrained")
            shape = (len(self.panels), 1) if narrow else (1, len(self.panels))
            axes = list(figure.subplots(*shape, sharey=True, squeeze=False).flat)
            for axis, (name, drawn) in zip(axes, self.panels.items(), strict=True):
                self._panel(axis, name, drawn, narrow)
            self._finish(figure, axes, narrow)
        return figure

    @abstractmethod
    def _size(self, narrow: bool) -> tuple[float, float]:
        """Width and height in inches."""

    @abstractmethod
    def _panel(self, axis: Axes, name: str, drawn: list[Series], narrow: bool) -> None: ...

    def _finish(self, figure: Figure, axes: list[Axes], narrow: bool) -> None:
        """The legend, in the order of the table; for many settings a bar of colours."""
        if len(self.looks) > LEGEND_ENTRIES:
            colours = mpl.colors.ListedColormap([look["color"] for look in self.looks.values()])
            scale = ScalarMappable(Normalize(0.5, len(self.looks) + 0.5), colours)
            bar = figure.colorbar(scale, ax=axes, label="row in the table of settings", ticks=MaxNLocator(integer=True))
            bar.ax.invert_yaxis()
            return
        names = {name: _folded(name, 44) for name in self.looks}
        handles = [Line2D([], [], label=names[name], **look) for name, look in self.looks.items()]
        if self.has_paper:
            handles.append(Line2D([], [], label="printed in the paper", color="white", **STAR))
        if len(handles) > 1:
            longest = max(min(44, len(str(handle.get_label()))) for handle in handles) + 6
            columns = max(1, min(len(handles), int((11 * figure.get_figwidth()) // longest)))
            figure.legend(handles=handles, loc="outside lower left", ncols=columns)


class _Curves(Chart):
    """The metric against GB and rounds: the mean in bold, a thin line per seed, dashed if it is unfinished."""

    def _size(self, narrow: bool) -> tuple[float, float]:
        return (NARROW, 6.6) if narrow else (WIDE, 4.2)

    def _panel(self, axis: Axes, name: str, drawn: list[Series], narrow: bool) -> None:
        for series in drawn:
            axis.plot(series.points[:, 0], series.points[:, 1], **series.style)
        axis.set_xlabel(name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=name == "round"))
        if name != "round":
            ends = [series.points[-1, 0] for series in drawn]
            _log_scale(axis, ends, narrow, min(series.points[0, 0] for series in drawn))
        if narrow or axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axis.set_ylabel(self.label)


def _log_scale(axis: Axes, ends: Sequence[float], narrow: bool, first: float | None = None) -> None:
    """A logarithmic x axis with readable ticks, if the settings' numbers of bytes are far apart.

    Args:
        ends: the settings' last x.
        first: the least x that is drawn; None: that of `ends`.
    """
    if not max(ends) > 5 * min(ends) > 0:
        return
    axis.set_xscale("log")
    decades = np.log10(max(ends) / (min(ends) if first is None else first))
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > (2.5 if narrow else 4) else (1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


class _Sizes(Chart):
    """The metric in the last test against the share of parameters that travels, with 95 % intervals."""

    def _size(self, narrow: bool) -> tuple[float, float]:
        return (NARROW, 4.2) if narrow else (0.6 * WIDE, 4.2)

    def _panel(self, axis: Axes, name: str, drawn: list[Series], narrow: bool) -> None:
        for series in drawn:
            x, mean, low, high = series.points.T
            ends = np.nan_to_num([mean - low, high - mean])
            axis.errorbar(x, mean, yerr=ends if ends.any() else None, capsize=3, **series.style)
        axis.set_xlabel(name)
        axis.set_ylabel(self.label)
        axis.margins(0.12)
        if "(%)" in self.label:
            low, high = axis.get_ylim()
            axis.set_ylim(max(low, -2), min(high, 102))  # the interval of two seeds can be wider than 0 to 100 %


class _Frontier(_Sizes):
    """The metric in the last test against GB in all rounds, with 95 % intervals; a line joins the Pareto set."""

    def _panel(self, axis: Axes, name: str, drawn: list[Series], narrow: bool) -> None:
        super()._panel(axis, name, drawn, narrow)
        joined = sorted(tuple(series.points[0, :2]) for series in drawn if series.source == PARETO)
        axis.plot(*zip(*joined, strict=True), color="0.5", linewidth=1, zorder=0)
        _log_scale(axis, [series.points[0, 0] for series in drawn], narrow)


class _Costs(Chart):
    """Bars of the MB, and of the time over links of 2, 10, 50 Mbps, until the target was first reached."""

    def _size(self, narrow: bool) -> tuple[float, float]:
        height = 0.9 + 0.42 * len(self.looks)
        return (NARROW, height * len(self.panels)) if narrow else (min(WIDE, 3 + 3 * len(self.panels)), height)

    def _panel(self, axis: Axes, name: str, drawn: list[Series], narrow: bool) -> None:
        labels = [_folded(label, 18 if narrow else 26) for label in self.looks]
        places = {label: place for place, label in enumerate(self.looks)}
        for series in drawn:
            place, value = places[series.setting], series.points[0, 1]
            if not series.num_runs:
                axis.plot(value, place + 0.36, **series.style | {"markersize": 9})  # below the bar's number
                continue
            bars = axis.barh(place, value, **series.style)
            axis.bar_label(bars, [three_digits(value)], padding=3, fontsize=9)
        for label in self.looks.keys() - {series.setting for series in drawn if series.num_runs}:
            axis.annotate(" not reached", (0, places[label]), va="center", fontsize=9)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.set_title(name, fontsize=10)
        axis.margins(x=0.3)
        axis.set_xlim(left=0)
        axis.set_xticks([])
        axis.grid(visible=False)
        axis.spines["bottom"].set_visible(False)

    def _finish(self, figure: Figure, axes: list[Axes], narrow: bool) -> None:
        if self.has_paper:
            handle = Line2D([], [], label="printed in the paper", color="white", **STAR)
            figure.legend(handles=[handle], loc="outside lower left")


def _folded(label: str, width: int) -> str:
    """A label in lines, whose dollars matplotlib does not read as formulas."""
    return fill(label, width, break_long_words=False).replace("$", r"\$")


def draw(found: Sequence[Setting], target: float | None = None) -> dict[str, Figure]:
    """The figures of `charts`."""
    return {name: chart.draw() for name, chart in charts(found, target).items()}


def charts(
    found: Sequence[Setting], target: float | None = None, printed: Iterable[Comparison] = ()
) -> dict[str, Chart]:
    """Figures by name: `accuracy`, or `curves` of another metric; with several settings `frontier`, `size` and `cost`.

    Args:
        found: the settings in the order of the legend.
        target: value of the metric for the figure `cost`; None: no such figure.
        printed: the paper's numbers that are drawn beside those of the settings.
    """
    shown = [setting for setting in found if len(setting.mean_curve)]
    if not shown:
        return {}
    looks, metric = _looks(shown), shown[0].metric
    beside = [one for one in printed if metric.name == "test/acc" and one.setting in looks]
    unit = " (%)" if metric.is_share else ""
    label, last = _name(metric) + unit, f"{_name(metric)}, last{unit}"
    curves = "accuracy" if metric.is_share else "curves"  # a metric's own name could be that of another figure
    made: dict[str, Chart] = {curves: _Curves(_curves(shown, looks, beside), label, looks)}
    dots = {name: look | {"linestyle": "", "marker": look.get("marker") or "o"} for name, look in looks.items()}
    if len(shown) > 2:
        made["frontier"] = _Frontier(_frontier(shown, dots), last, dots)
    if len({setting.ratio for setting in shown} - {None}) > 1:
        panel = {"parameters that travel, share of the dense model (%)": list(_sizes(shown, dots, beside))}
        made["size"] = _Sizes(panel, last, dots)
    if target is not None and 1 < len(shown) <= LEGEND_ENTRIES and any(s.reaches(target) for s in shown):
        made["cost"] = _Costs(_costs(shown, looks, beside, target), "", looks)
    return made


def _looks(shown: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """Equal settings of several sweeps have one colour, and a line and marker of their sweep."""
    if len(shown) > LEGEND_ENTRIES:
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.8, len(shown)))
        return {setting.label: {"color": colour} for setting, colour in zip(shown, colours, strict=True)}
    kinds = list(dict.fromkeys(str(setting.values) for setting in shown))
    sweeps = sorted({setting.sweep for setting in shown})
    palette = mpl.colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    return {
        setting.label: {
            "color": palette(kinds.index(str(setting.values))),
            "linestyle": ("-", "--", ":", "-.")[sweeps.index(setting.sweep) % 4],
            "marker": "" if len(sweeps) == 1 else "osD^"[sweeps.index(setting.sweep) % 4],
        }
        for setting in shown
    }


def _curves(
    shown: Sequence[Setting], looks: Mapping[str, dict[str, Any]], printed: Sequence[Comparison]
) -> dict[str, list[Series]]:
    unit, factor = _unit(shown)
    sent, rounds = (
        [line for setting in shown for line in _lines(setting, looks[setting.label], column, by)]
        for column, by in ((1, factor), (0, 1.0))
    )
    gigabytes = factor * GIBIBYTE / GIGABYTE
    sent += [_star(one, looks, gigabytes * one.printed, 100 * one.target) for one in printed if one.target is not None]
    after = [(one, one.round) for one in printed if one.round is not None]
    last = max(setting.mean_curve[-1, 0] for setting in shown)
    last = max(last, min((number for _, number in after), default=0))  # later ones would squeeze the curves
    rounds += [_star(one, looks, number, one.printed) for one, number in after if number <= last]
    return {f"{SENT} ({unit})": sent, "round": rounds}


def _unit(shown: Sequence[Setting]) -> tuple[str, float]:
    """GB or MB for the settings' bytes, and how many of it are a GB."""
    largest = max(setting.mean_curve[-1, 1] for setting in shown)
    return ("GB", 1.0) if largest >= 1 else ("MB", 1000.0)


def _frontier(shown: Sequence[Setting], looks: Mapping[str, dict[str, Any]]) -> dict[str, list[Series]]:
    """What the paper prints is not drawn: it has no bytes of whole runs."""
    unit, factor = _unit(shown)
    best, drawn = pareto(shown), []
    for setting in shown:
        if (last := setting.last) and (sent := setting.gigabytes):
            points = _points(factor * sent.mean, last.mean, last.mean - last.half_width, last.mean + last.half_width)
            source = PARETO if setting.label in best else MEAN
            drawn.append(Series(setting.label, source, points, last.num_seeds, looks[setting.label]))
    return {f"{SENT} ({unit})": drawn}


def _lines(setting: Setting, look: dict[str, Any], column: int, by: float) -> Iterator[Series]:
    if len(setting.runs) > 1 or setting.counted != setting.runs:
        for run in setting.runs:
            curve = setting.curve(run)
            if len(curve):
                line = "-" if run.state == "finished" else "--"
                thin = {"color": look["color"], "linestyle": line, "alpha": 0.45, "linewidth": 0.8}
                yield Series(setting.label, run.name, _points(by * curve[:, column], curve[:, 2]), 1, thin)
    mean, ends = setting.mean_curve, setting.interval
    few = {"marker": "o"} if len(mean) == 1 else {"markevery": max(1, len(mean) // 8)}
    points = _points(by * mean[:, column], mean[:, 2], ends[:, 0], ends[:, 1])
    yield Series(setting.label, MEAN, points, len(setting.counted), {"linewidth": 2, "markersize": 4} | look | few)


def _sizes(
    shown: Sequence[Setting], looks: Mapping[str, dict[str, Any]], printed: Sequence[Comparison]
) -> Iterator[Series]:
    """Also what the paper prints for the last round that was tested."""
    for setting in shown:
        last, ratio = setting.last, setting.ratio
        if last is None or ratio is None:
            continue
        points = _points(100 * ratio, last.mean, last.mean - last.half_width, last.mean + last.half_width)
        yield Series(setting.label, MEAN, points, last.num_seeds, looks[setting.label])
        for one in printed:
            if one.setting == setting.label and one.round == setting.mean_curve[-1, 0]:
                yield _star(one, looks, 100 * ratio, one.printed)


def _costs(
    shown: Sequence[Setting], looks: Mapping[str, dict[str, Any]], printed: Sequence[Comparison], target: float
) -> dict[str, list[Series]]:
    reached = [setting.reaches(target) for setting in shown]
    costs = {
        speed: [setting.cost(target, speed) if all_did else [] for setting, all_did in zip(shown, reached, strict=True)]
        for speed in SPEEDS_MBPS
    }
    sent = f"MB to {shown[0].metric.target(target)}"
    values = {sent: [[cost.num_bytes / 1e6 for cost in found] for found in costs[SPEEDS_MBPS[0]]]}
    for speed in SPEEDS_MBPS:
        values[f"minutes at {speed} Mbps"] = [[cost.seconds / 60 for cost in found] for found in costs[speed]]
    panels = {
        name: [bar for setting, one in zip(shown, column, strict=True) for bar in _bar(setting.label, one, looks)]
        for name, column in values.items()
    }
    panels[sent] += [
        _star(one, looks, math.nan, one.printed * GIBIBYTE / 1e6)
        for one in printed if one.target is not None and math.isclose(one.target, target)
    ]  # fmt: skip
    return {name: bars for name, bars in panels.items() if bars}


def _bar(label: str, values: Sequence[float], looks: Mapping[str, dict[str, Any]]) -> Iterator[Series]:
    """The mean of the values; no bar without a value, or if one was not measured."""
    if values and np.isfinite(values).all():
        one = Estimate.of(values)
        points = _points(math.nan, one.mean, one.mean - one.half_width, one.mean + one.half_width)
        yield Series(label, MEAN, points, one.num_seeds, {"color": looks[label]["color"]})


def _star(one: Comparison, looks: Mapping[str, dict[str, Any]], x: float, y: float) -> Series:
    """A number that the paper prints."""
    style = STAR | {"color": looks[one.setting]["color"]}
    return Series(one.setting, f"paper, {one.source}", _points(x, y), 0, style)


def _points(x: Any, y: Any, low: Any = math.nan, high: Any = math.nan) -> np.ndarray:
    """(n, 4) array."""
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(values) for values in (x, y, low, high))), axis=1)


def _name(metric: Metric) -> str:
    return {"test/acc": "test accuracy", "personal/acc_mean": "personal accuracy"}.get(metric.name, metric.name)
