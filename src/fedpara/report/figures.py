"""The paper's figures for any runs: accuracy against GB (Fig. 3), against size (Fig. 4), cost to target (Fig. 3g)."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedpara.cost import SPEEDS_MBPS
from fedpara.metric import Metric
from fedpara.record import three_digits
from fedpara.report.settings import Setting

LEGEND_ENTRIES = 12  # more colours are hard to distinguish: then they go from dark to light by size
STYLE: Any = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip
Colours = dict[str, Any]


def draw(found: Sequence[Setting], target: float | None) -> dict[str, Figure]:
    """Figures by name: `accuracy`, or another metric's name; with several settings also `size` and `cost`.

    Args:
        found: the settings in the order of their colours.
        target: value of the metric for the figure `cost`; None: no such figure.
    """
    shown = [setting for setting in found if len(setting.mean_curve)]
    if not shown:
        return {}
    palette = mpl.colormaps["tab10" if len(shown) <= 10 else "viridis"]
    scale = 1 if len(shown) <= 10 else 1 / (len(shown) - 1)
    colours = {s.label: palette(number if scale == 1 else number * scale) for number, s in enumerate(shown)}
    with mpl.rc_context(STYLE):
        figures = {shown[0].metric.label.rpartition(" ")[2]: _accuracy(shown, colours)}
        if len({setting.ratio for setting in shown} - {None}) > 1:
            figures["size"] = _size(shown, colours)
        if target is not None and 1 < len(shown) <= LEGEND_ENTRIES and any(s.cost(target, 10) for s in shown):
            figures["cost"] = _cost(shown, colours, target)
    return figures


def _accuracy(shown: Sequence[Setting], colours: Colours) -> Figure:
    """The metric against GB and rounds: the mean in bold, a thin line per seed, dashed if it is unfinished."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    largest = max(setting.mean_curve[-1, 1] for setting in shown)
    unit, factor = ("GB", 1.0) if largest >= 1 else ("MB", 1000.0)
    for axis, column, label in zip(axes, (1, 0), (f"sent, both ways, all clients ({unit})", "round"), strict=True):
        for setting in shown:
            colour, by = colours[setting.label], factor if column == 1 else 1.0
            if len(setting.runs) > 1 or setting.counted != setting.runs:
                _seeds(axis, setting, column, by, colour)
            mean = setting.mean_curve
            marker = "o" if len(mean) == 1 else ""
            axis.plot(by * mean[:, column], mean[:, 2], color=colour, linewidth=2, marker=marker, label=setting.label)
        axis.set_xlabel(label)
    if largest > 5 * min(setting.mean_curve[-1, 1] for setting in shown):
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(_name(shown[0].metric) + (" (%)" if shown[0].metric.is_share else ""))
    if 1 < len(shown) <= LEGEND_ENTRIES:
        axes[1].legend(loc="best")
    elif len(shown) > LEGEND_ENTRIES:
        axes[1].set_title("colour: fewest parameters dark, most light", fontsize=10)
    return figure


def _seeds(axis: Axes, setting: Setting, column: int, factor: float, colour: Any) -> None:
    for run in setting.runs:
        curve = setting.curve(run)
        if len(curve):
            style = "-" if run.state == "finished" else "--"
            axis.plot(factor * curve[:, column], curve[:, 2], style, color=colour, alpha=0.35, linewidth=0.8)


def _size(shown: Sequence[Setting], colours: Colours) -> Figure:
    """The metric in the last test against the share of parameters that travels, with 95 % intervals."""
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axis = figure.subplots()
    few = len(shown) <= LEGEND_ENTRIES
    for setting in shown:
        last, ratio = setting.last, setting.ratio
        if last is None or ratio is None:
            continue
        axis.errorbar(
            100 * ratio, last.mean, yerr=np.nan_to_num(last.half_width), fmt="o", capsize=3, markersize=6 if few else 3,
            color=colours[setting.label], label=setting.label,
        )  # fmt: skip
    axis.set_xlabel("parameters that travel, share of the dense model (%)")
    axis.set_ylabel(f"{_name(shown[0].metric)}, last" + (" (%)" if shown[0].metric.is_share else ""))
    axis.margins(0.12)
    if shown[0].metric.is_share:
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2), min(high, 102))  # the interval of two seeds can be wider than 0 to 100 %
    if few:
        axis.legend(loc="best")
    return figure


def _cost(shown: Sequence[Setting], colours: Colours, target: float) -> Figure:
    """Bars of the GB, and of the time over links of 2, 10, 50 Mbps, until the target was first reached."""
    words = shown[0].metric.target(target)
    panels = {f"MB to {words}": [_mean([c.num_bytes / 1e6 for c in s.cost(target, 10)]) for s in shown]}
    for speed in SPEEDS_MBPS:
        minutes = [_mean([cost.seconds / 60 for cost in setting.cost(target, speed)]) for setting in shown]
        panels[f"minutes at {speed} Mbps"] = minutes
    panels = {title: values for title, values in panels.items() if np.isfinite(values).any()}
    figure = Figure(figsize=(11, 0.9 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = [setting.label for setting in shown]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars = axis.barh(labels, np.nan_to_num(values), color=[colours[label] for label in labels])
        axis.bar_label(bars, [three_digits(v) if np.isfinite(v) else "-" for v in values], padding=3, fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.3)
        axis.set_xticks([])
        axis.grid(visible=False)
        axis.spines["bottom"].set_visible(False)
    axes[0].invert_yaxis()
    return figure


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _name(metric: Metric) -> str:
    return {"test/acc": "test accuracy", "personal/acc_mean": "personal accuracy"}.get(metric.name, metric.name)
