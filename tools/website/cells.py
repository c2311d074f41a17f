"""What the makers of tables share: cells with their intervals, the settings of a folder, what the paper prints."""

import statistics
import sys
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "benchmarks") if str(ROOT / folder) not in sys.path]

import yaml

from fedpara.metric import Metric
from fedpara.report.differences import Difference, difference
from fedpara.report.settings import Estimate, Setting, settings
from fedpara.runs import find_runs

EXTRAS = {  # of Table 4, by the folder's name: the nonlinearity and lambda
    "identity_0": "neither", "tanh_0": "tanh", "identity_10": "Jacobian correction, λ = 10", "tanh_10": "both",
}  # fmt: skip
ENDS = {"up": ["up"], "down": ["down"], "total": ["up", "down"]}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def estimate(value: Estimate | None, digits: int = 1) -> str:
    """A mean, and the half width of its 95 % interval where there are several seeds."""
    if value is None:
        return ""
    return f"{value.mean:,.{digits}f}{_width(value, digits)}"


def found(folder: str, metric: str = "test/acc") -> dict[str, Setting]:
    """The settings of a folder of `results/`, by name, without the number of the seed."""
    return {setting.label: setting for setting in settings(find_runs(RESULTS / folder), Metric(metric))}


def sent_bytes(setting: Setting, way: str = "total") -> float:
    """Bytes that all clients of a run sent (`up`), received (`down`) or both; the mean over seeds."""
    sent = setting.estimate(lambda run: sum(row[f"comm/{end}_bytes"] for row in run.rows for end in ENDS[way]))
    assert sent is not None
    return sent.mean


def megabytes(setting: Setting, way: str = "total") -> str:
    """`sent_bytes` in MB."""
    return f"{sent_bytes(setting, way) / 1e6:,.0f}"


def mean_cost(setting: Setting, target: float) -> tuple[float, float]:
    """The mean rounds and MB until the target over the seeds, all of which reached it.

    Raises:
        ValueError: a seed did not.
    """
    if not setting.reaches(target):
        raise ValueError(f"{setting.label}: a seed is below {target}")
    costs = setting.cost(target, 10)
    return statistics.fmean(c.rounds for c in costs), statistics.fmean(c.num_bytes / 1e6 for c in costs)


def megabytes_to(setting: Setting, target: float, digits: int = 0) -> str:
    """The mean MB until the target, or how many seeds reached it if not all did."""
    if setting.reaches(target):
        return f"{mean_cost(setting, target)[1]:,.{digits}f}"
    reached = len(setting.cost(target, 10))
    return f"{reached} of {len(setting.counted)} seeds" if reached else "-"


def rounds_of(setting: Setting) -> int:
    """The number of rounds of a setting's first run."""
    return len(setting.runs[0].rows)


def points(variant: Setting, baseline: Setting) -> str:
    """A difference in points with its 95 % interval, paired by seed."""
    return estimate_of(difference(variant, baseline))


def estimate_of(one: Difference) -> str:
    """A difference in points with its 95 % interval."""
    return signed_estimate(Estimate(one.mean, (one.high - one.low) / 2, min(one.num_runs)))


def signed_estimate(value: Estimate) -> str:
    """A difference with its sign, and the half width of its interval where there are several seeds."""
    return signed(value.mean) + _width(value, 1)


def _width(value: Estimate, digits: int) -> str:
    return "" if isnan(value.half_width) else f" ± {value.half_width:,.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def origin(folder: str) -> str:
    """Where a table is from: the runs' folder, commits and versions of torch."""
    summaries = [run.summary for run in find_runs(RESULTS / folder)]
    commits = sorted({summary["git_commit"][:7] for summary in summaries if summary.get("git_commit")})
    versions = sorted({summary["versions"]["torch"] for summary in summaries if summary.get("versions")})
    runs = f"{len(summaries)} run{'s' * (len(summaries) > 1)}"
    return f"From `results/{folder}`: {runs}, commit {', '.join(commits)}, torch {', '.join(versions)}."


def printed_accuracies(source: str, setup: str) -> dict[str, float]:
    """The accuracies, %, that a table of the paper prints for a set-up, of several those after the fewest rounds."""
    return _printed("accuracies", source, setup)


def paper_of_table_3() -> dict[str, float]:
    """The accuracies that the paper prints after 200 rounds of CIFAR-10 IID with gamma 0.1, by algorithm."""
    others = printed_accuracies("Table 3", "CIFAR-10 IID")
    found = {name.rpartition(" + ")[2].lower(): value for name, value in others.items()}
    return {"fedavg": printed_accuracies("Table 2", "CIFAR-10 IID")["FedPara 0.1"]} | found


def printed_costs(source: str, setup: str) -> dict[str, float]:
    """The GiB until a target that a figure of the paper prints for a set-up."""
    return _printed("costs", source, setup)


def _printed(kind: str, source: str, setup: str) -> dict[str, float]:
    printed = yaml.safe_load((ROOT / "src/fedpara/report/paper.yaml").read_text())[kind]
    values: dict[str, float] = next(e for e in printed if (e["source"], e["setup"]) == (source, setup))["values"]
    return values
