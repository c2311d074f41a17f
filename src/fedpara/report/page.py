"""The files of a report: one self-contained HTML page, its pictures with their data, its tables, a CSV of the runs."""

import base64
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from fedpara.cost import SPEEDS_MBPS
from fedpara.files import write_atomically
from fedpara.metric import Metric
from fedpara.record import counted, size, three_digits
from fedpara.report.differences import Difference, comparable, difference, differences
from fedpara.report.figures import STYLE, Chart, charts
from fedpara.report.paper import Comparison, compare
from fedpara.report.settings import Estimate, Setting, common_target, pareto, settings
from fedpara.report.sweeps import differences_of_sweeps, differing_keys
from fedpara.runs import Run, axes, headline, judged

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
NONE = "-"
LARGEST = 2**20  # bytes of a figure or of its data in the page
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?")
LESS_IS_BETTER = re.compile("loss|^(comm|time|cost)/|^privacy/epsilon$")  # columns
VENDOR = Path(__file__).with_name("vendor")


def write_report(
    runs: Sequence[Run],
    folder: Path,
    title: str,
    target: float | None = None,
    metric: str | None = None,
    baseline: str | None = None,
    sweeps: Mapping[Path, str] | None = None,
) -> list[Path]:
    """Write report.html, report.md, report.csv, and a PNG and a CSV for each figure into `folder`; returns their paths.

    Args:
        target: value of the metric for the cost to target; None: the best value that every counted run reached.
        metric: a column of metrics.csv, such as `personal/acc_mean`; None: the column that judges the runs.
        baseline: the setting from which differences are taken, see `differences`; None: the first.
        sweeps: the name of each run folder's sweep, if there are several; equal settings of them are compared.

    Raises:
        ValueError: no run has measured `metric`, or it is a share and the target is not; no setting is the baseline.
    """
    chosen = _metric(metric, runs)
    if target is not None and chosen.is_share and not 0 < target <= 1:
        raise ValueError(f"target={target:g}: must be a number above 0, at most 1")
    found = settings(runs, chosen, sweeps)
    sweeps = sweeps or {}
    if not any(setting.counted for setting in found):
        raise ValueError(f"metric={chosen.name}: no run has measured it")
    tested = [setting for setting in found if setting.counted]
    compared, between = differences(tested, baseline), differences_of_sweeps(_in_order(tested, sweeps))
    found.sort(key=_place)
    target = common_target(found) if target is None else target
    folder.mkdir(parents=True, exist_ok=True)
    printed = compare(found)
    drawn = charts(found, target, printed)
    written = {f"{name}.png": _picture(chart, "png") for name, chart in drawn.items()}
    written |= {f"{name}.csv": _csv(chart.table).encode() for name, chart in drawn.items()}
    parts = _parts(runs, found, title, target, sweeps)
    parts |= {
        "differences": difference_table(compared), "between": difference_table(between),
        "comparisons": _comparison_table(printed),
    }  # fmt: skip
    written["report.html"] = _page(parts, drawn, written).encode()
    written["report.md"] = _template("page.md", autoescape=False).render(parts, table=_markdown).encode()
    written["report.csv"] = _csv(parts["runs"]).encode()
    for name, content in written.items():
        write_atomically(folder / name, content, durable=False)
    return [folder / name for name in written]


def _metric(column: str | None, runs: Sequence[Run]) -> Metric:
    """The metric of a column; if it is not the headline, more is better unless it is a loss or a cost."""
    usual = judged(runs)
    if column is None or column == usual.name:
        return usual
    group, _, name = column.rpartition("/")
    stem = f"{name.removeprefix('trained_')}_"  # of the headline, its mean or percentile over clients, or a tier's
    own = next((run.headline for run in runs if stem.startswith(f"{run.headline.name}_")), None)
    by_headline = own is not None and group in ("test", "personal")
    return Metric(column, own.higher_is_better if own and by_headline else not LESS_IS_BETTER.search(column))


def _place(setting: Setting) -> tuple[bool, bool, bool, float]:
    """The best first; unfinished settings after finished ones, and last those without a number."""
    mean = setting.last.mean if setting.last else math.nan
    sign = -1.0 if setting.metric.higher_is_better else 1.0
    return setting.last is None, not setting.is_finished, not math.isfinite(mean), sign * mean


def _in_order(found: Sequence[Setting], sweeps: Mapping[Path, str]) -> list[Setting]:
    """The settings in the order of their sweeps."""
    names = list(dict.fromkeys(sweeps.values()))
    return sorted(found, key=lambda setting: names.index(setting.sweep)) if sweeps else []


def _parts(
    runs: Sequence[Run], found: list[Setting], title: str, target: float | None, sweeps: Mapping[Path, str]
) -> dict[str, Any]:
    """The texts of a report and the tables of its settings and runs."""
    states = Counter(run.state for run in runs)
    return {
        "title": title,
        "states": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        "answer": _answer(found, target),
        "metric": found[0].metric.name,
        "label": found[0].metric.label,
        "target": "" if target is None else found[0].metric.target(target),
        "settings": _setting_table(found, target),
        "sweeps": list(dict.fromkeys(sweeps.values())),
        "keys": differing_keys(runs, sweeps),
        "runs": _run_table(runs, sweeps),
        "origin": _origin(runs),
    }


def _page(parts: dict[str, Any], drawn: Mapping[str, Chart], beside: Mapping[str, bytes]) -> str:
    """The page; figures are in it twice, as wide and as narrow ones.

    Args:
        beside: the files beside the page, by name.
    """
    figures = {
        name: {
            "wide": _embedded(chart, narrow=False), "narrow": _embedded(chart, narrow=True), "paper": chart.has_paper,
            "data": _data(f"{name}.csv", beside[f"{name}.csv"]),
        }
        for name, chart in drawn.items()
    }  # fmt: skip
    runs = _data("report.csv", _csv(parts["runs"]).encode())
    scripts = [path.read_text() for path in sorted(VENDOR.glob("*.js"))]
    template = _template("page.html", autoescape=True)
    return template.render(parts, figures=figures, run_data=runs, scripts=scripts, columns=_columns, sort_key=_sort_key)


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _data(name: str, content: bytes) -> str:
    """The address of a CSV: its content or, if that is too large for a page, the file beside it."""
    return name if len(content) > LARGEST else _uri(content, "text/csv")


def _embedded(chart: Chart, narrow: bool) -> str:
    """A sharp picture or, if it has very many lines, one in pixels."""
    sharp = _picture(chart, "svg", narrow)
    return _uri(sharp, "image/svg+xml") if len(sharp) <= LARGEST else _uri(_picture(chart, "png", narrow), "image/png")


def _template(name: str, autoescape: bool) -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(name)


def _answer(found: list[Setting], target: float | None) -> str:
    """The result of the runs in a sentence or two; `found` is sorted by its metric."""
    best, metric = found[0], found[0].metric
    if best.last is None or best.gigabytes is None:
        return "No setting has a round that all of its seeds tested."
    part = f" (of {len(best.counted)} of its {best.num_seeds} seeds)" if len(best.counted) < best.num_seeds else ""
    unit = " %" if metric.is_share else f" {metric.name}"
    reached = f"{_value(best.last, metric)}{unit}"
    sentence = f"Best: {best.label}, {reached} for {size(1e9 * best.gigabytes.mean)}{part}."
    near = [s.label for s in found[1:] if s.last and comparable(s, best) and not difference(s, best).settled]
    if near:
        others = " and others" if len(near) > 4 else ""
        sentence += f" Its difference from {'; '.join(near[:4])}{others} is not settled."
    aimed = [s for s in found if target is not None and s.is_finished == best.is_finished and s.reaches(target)]
    costs = [(fmean(c.num_bytes for c in s.cost(target or 0.0, 10)), s) for s in aimed]
    ranked = sorted(costs, key=lambda pair: pair[0])
    if ranked and ranked[0][0] < ranked[-1][0]:
        (least, cheapest), (most, dearest) = ranked[0], ranked[-1]
        times = f" ({most / least:.1f} times as much)" if least else ""  # local training sends nothing
        sentence += (
            f" To {metric.target(target or 0.0)}, {cheapest.label} sends the least, {size(least)}, "
            f"and {dearest.label} the most, {size(most)}{times}."
        )
    return sentence


def _setting_table(found: list[Setting], target: float | None) -> Table:
    names = list(dict.fromkeys(name for setting in found for name in setting.values))  # runs without overrides have one
    best = pareto(found) if len(found) > 2 else set()
    metric = found[0].metric
    heads = [
        "sweep",
        *names,
        "so far",
        "seeds",
        "parameters",
        "of dense, %",
        f"last{metric.unit}",
        f"best{metric.unit}",
        "GB",
        "Pareto",
    ]
    if target is not None:
        heads += [f"MB to {metric.target(target)}", "rounds", *(f"min at {speed} Mbps" for speed in SPEEDS_MBPS), "MJ"]
    heads = ["setting" if head == "" else head for head in heads]
    values = [[setting.sweep, *(setting.values.get(name, NONE) for name in names)] for setting in found]
    rows = [_setting_row(setting, target, setting.label in best) for setting in found]
    return _measured(heads, [own + row for own, row in zip(values, rows, strict=True)])


def _measured(heads: list[str], rows: list[list[str]]) -> Table:
    """The table without empty columns."""
    kept = [n for n in range(len(heads)) if any(row[n] not in ("", NONE) for row in rows)]
    return [heads[n] for n in kept], [[row[n] for n in kept] for row in rows]


def _setting_row(setting: Setting, target: float | None, best: bool) -> list[str]:
    seeds = f"{len(setting.counted)}" + (f" of {setting.num_seeds}" if len(setting.counted) < setting.num_seeds else "")
    ratio = NONE if setting.ratio is None else f"{100 * setting.ratio:.1f}"
    shared = " to ".join(f"{size:,}" for size in setting.shared_sizes) or NONE
    common = setting.mean_curve
    until = NONE if setting.is_finished or not len(common) else counted(int(common[-1, 0]), "round")
    row = [until, seeds, shared, ratio, _value(setting.last, setting.metric), _value(setting.best, setting.metric)]
    row += [NONE if setting.gigabytes is None else three_digits(setting.gigabytes.mean), "yes" if best else NONE]
    if target is None:
        return row
    costs = {speed: setting.cost(target, speed) for speed in SPEEDS_MBPS}
    reached = costs[SPEEDS_MBPS[0]]
    if not setting.reaches(target):  # a mean would be of the lucky seeds
        some = f"reached by {len(reached)} of {len(setting.counted)}" if reached else NONE
        return [*row, some, *[NONE] * (len(costs) + 2)]
    row += [_mean([c.num_bytes / 1e6 for c in reached]), _mean([c.rounds for c in reached], "{:.0f}".format)]
    row += [_mean([c.seconds / 60 for c in cost]) for cost in costs.values()]
    return [*row, _mean([c.megajoules for c in reached])]


def difference_table(compared: Sequence[Difference]) -> Table:
    """A row for each variant: the difference from its baseline, the 95 % interval, and whether that settles it."""
    metric = compared[0].variant.metric if compared else Metric()
    unit = ", points" if metric.is_share else ""
    heads = ["variant", "baseline", "round", f"difference{unit}", "95 % interval", "seeds", "verdict"]
    return heads, [_difference_row(one, metric) for one in compared]


def _difference_row(one: Difference, metric: Metric) -> list[str]:
    form = "{:+.1f}" if metric.is_share else "{:+.3g}"
    mean, low, high = (NONE if value != value else form.format(value) for value in (one.mean, one.low, one.high))
    ours, theirs = one.num_runs
    seeds = f"{ours} paired" if one.paired else f"{ours} and {theirs}, unpaired"
    interval = NONE if low == NONE else f"{low} to {high}"
    return [one.variant.label, one.baseline.label, str(one.round or NONE), mean, interval, seeds, one.verdict]


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    heads = ["source", "row", "runs", "quantity", "paper", "here", "seeds", "difference", "note"]
    rows = [
        [
            c.source, c.row, c.setting, c.quantity, f"{c.printed:g}", _estimate(c.measured, 2),
            str(c.measured.num_seeds) if c.measured else NONE,
            NONE if c.difference is None else f"{c.difference:+.2f}", c.note,
        ]
        for c in comparisons
    ]  # fmt: skip
    return heads, rows


def _run_table(runs: Sequence[Run], sweeps: Mapping[Path, str]) -> Table:
    varying, metric = axes(runs), headline(runs)
    tested, personal = metric.judged(False), metric.judged(True)
    heads = [
        "sweep", "run", *varying, "state", "rounds", f"{tested.name} last{tested.unit}",
        f"{tested.name} best{tested.unit}", f"{personal.name} last{personal.unit}", "GB", "seconds", "error",
    ]  # fmt: skip
    rows = []
    for number, run in enumerate(runs):
        values = (run.last(tested.name), run.best(tested), run.last(personal.name))
        sent = f"{run.rows[-1]['comm/total_bytes'] / 1e9:.4f}" if run.rows else NONE
        rows.append([
            sweeps.get(run.folder, ""), run.name, *(column[number] for column in varying.values()),
            run.state, str(len(run.rows)),
            *(NONE if value is None else metric.written(value) for value in values),
            sent, NONE if run.seconds is None else f"{run.seconds:.1f}", run.summary.get("error", ""),
        ])  # fmt: skip
    return _measured(heads, rows)


def _origin(runs: Sequence[Run]) -> str:
    commits = sorted({run.summary.get("git_commit") or "unknown" for run in runs if run.summary})
    versions = sorted({run.summary.get("versions", {}).get("torch", "?") for run in runs if run.summary})
    return f"Commit {', '.join(commits[:5])}; torch {', '.join(versions)}. Paper: FedPara, ICLR 2022, arXiv 2108.06098."


def _columns(table: Table) -> list[tuple[str, bool]]:
    """The heads, and whether their columns are of text: the first filled cell is not a number."""
    heads, rows = table
    first = [next((row[n] for row in rows if row[n] not in ("", NONE)), "") for n in range(len(heads))]
    return [(head, not NUMBER.match(cell)) for head, cell in zip(heads, first, strict=True)]


def _sort_key(cell: str, is_text: bool) -> str:
    """What a column is sorted by: the number at the start of `55.8 ± 2.0` and `982,538`; empty cells are last."""
    number = None if is_text else NUMBER.match(cell)
    return number[0].replace(",", "") if number else cell if cell != NONE else ""


def _markdown(table: Table) -> str:
    heads, rows = table
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _csv(table: Table) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([table[0], *table[1]])
    return stream.getvalue()


def _picture(chart: Chart, kind: str, narrow: bool = False) -> bytes:
    stream = io.BytesIO()
    dated = {"metadata": {"Date": None}} if kind == "svg" else {}  # the same runs give the same bytes
    with mpl.rc_context(STYLE):
        chart.draw(narrow).savefig(stream, format=kind, dpi=130, transparent=kind == "svg", **dated)
    return stream.getvalue()


def _estimate(value: Estimate | None, digits: int = 1) -> str:
    if value is None:
        return NONE
    width = "" if math.isnan(value.half_width) else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{width}"


def _mean(values: Sequence[float], form: Callable[[float], str] = three_digits) -> str:
    mean = sum(values) / len(values) if values else float("nan")
    return form(mean) if mean == mean else NONE


def _value(value: Estimate | None, metric: Metric) -> str:
    """An estimate of the metric: a share in percent with one decimal, other values with four digits."""
    if value is None or metric.is_share:
        return _estimate(value)
    return f"{value.mean:.4g}" + ("" if math.isnan(value.half_width) else f" ± {value.half_width:.2g}")
