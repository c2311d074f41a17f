"""The tables of results/fig5/README.md, from its run folders.

python tools/fig5.py keep RUNS results/fig5    # copy the figures of runs, without this machine's paths
python tools/fig5.py write results/fig5        # write the tables between the two marks of README.md

Folders are `search/<setting>/<method>-<rate>-<seed>`, tested on validation examples, and
`final/<setting>/<method>-<seed>`, tested on test examples. results/fig5_two_cores has earlier runs in the latter form.
"""

import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from scipy import stats

from fedpara.report.settings import Estimate
from fedpara.runs import CONFIG, METRICS, SUMMARY, Run

SETTINGS = {
    "femnist": "1: FEMNIST, all data",
    "femnist_20": "2: FEMNIST, a fifth",
    "mnist_shards": "3: MNIST, two classes",
}
METHODS = {"local": "Local", "fedavg": "FedAvg", "fedper": "FedPer", "pfedpara": "pFedPara"}
PAPER = {
    "femnist": "pFedPara > Local > FedAvg, FedPer",
    "femnist_20": "pFedPara > FedAvg > Local, FedPer",
    "mnist_shards": "pFedPara ≥ Local, FedPer ≫ FedAvg",
}
PAIRS = [("pfedpara", other) for other in ("local", "fedavg", "fedper")] + [("local", "fedavg"), ("local", "fedper")]
TRAINED, AVERAGED = "personal/trained_acc_mean", "personal/acc_mean"
MARKS = "<!-- tables: begin -->", "<!-- tables: end -->"


def runs(folder: Path, setting: str, method: str) -> list[Run]:
    """The runs of a method, by seed."""
    return [Run(path) for path in sorted((folder / setting).glob(f"{method}-*")) if (path / METRICS).is_file()]


def seed_of(run: Run) -> int:
    """The end of the folder's name."""
    return int(run.name.rpartition("-")[2])


def percent(run: Run, metric: str) -> float | None:
    """The last value of a finished run in percent; None if it diverged or goes on."""
    value = run.last(metric) if run.state == "finished" else None
    return None if value is None else 100 * value


def interval(values: Sequence[float]) -> str:
    """The mean and, of several values, the half width of its 95 % interval by Student's t."""
    found = Estimate.of(values)
    return f"{found.mean:.1f}" if len(values) < 2 else f"{found.mean:.1f} ± {found.half_width:.1f}"


def searched(folder: Path, setting: str, method: str) -> dict[float, list[tuple[float | None, float | None]]]:
    """By learning rate, the validation accuracy of each seed: averaged, and just trained."""
    found = defaultdict(list)
    for run in runs(folder / "search", setting, method):
        if run.state in ("finished", "failed"):
            found[run.config["model.optimizer.lr"]].append((percent(run, AVERAGED), percent(run, TRAINED)))
    return dict(sorted(found.items(), reverse=True))


def rate_table(folder: Path) -> Iterator[str]:
    """The search of the learning rates."""
    rates = sorted({rate for s in SETTINGS for m in METHODS for rate in searched(folder, s, m)}, reverse=True)
    yield "| scenario | method | " + " | ".join(f"lr {rate}" for rate in rates) + " | seeds |"
    yield "|---|---|" + "---|" * (len(rates) + 1)
    for setting in SETTINGS:
        for method in METHODS:
            found = searched(folder, setting, method)
            if not found:
                continue
            cells = []
            for rate in rates:
                pairs = found.get(rate, [])
                whole = [(a, b) for a, b in pairs if a is not None and b is not None]
                if not pairs:
                    cells.append("")
                elif len(whole) < len(pairs):
                    cells.append("diverged")
                else:
                    cells.append(" \\| ".join(f"{statistics.mean(values):.1f}" for values in zip(*whole, strict=True)))
            seeds = max(map(len, found.values()))
            yield f"| {SETTINGS[setting]} | {METHODS[method]} | " + " | ".join(cells) + f" | {seeds} |"


def accuracies(folder: Path, setting: str, method: str, metric: str) -> dict[int, float]:
    """The accuracy of the finished runs by seed, in percent."""
    values = {seed_of(run): percent(run, metric) for run in runs(folder, setting, method)}
    return {seed: value for seed, value in values.items() if value is not None}


def final_table(folder: Path) -> Iterator[str]:
    """Accuracies on the clients' own test examples beside the paper's order."""
    yield "| scenario | method | lr | rounds | seeds | just trained | averaged | hours a run |"
    yield "|---|---|---|---|---|---|---|---|"
    for setting in SETTINGS:
        for method in METHODS:
            finished = [run for run in runs(folder, setting, method) if run.state == "finished"]
            if not finished:
                continue
            cells = [
                interval(list(accuracies(folder, setting, method, metric).values())) for metric in (TRAINED, AVERAGED)
            ]
            rates = ", ".join(sorted({str(run.config.get("model.optimizer.lr", "")) for run in finished}))
            rounds = ", ".join(sorted({str(len(run.rows)) for run in finished}))
            seeds = ", ".join(str(seed_of(run)) for run in finished)
            hours = statistics.mean(run.seconds or math.nan for run in finished) / 3600
            first = f"| {SETTINGS[setting]} | {METHODS[method]} | {rates} | {rounds} | {seeds} "
            yield f"{first}| {' | '.join(cells)} | {hours:.2f} |"
        yield f"| {SETTINGS[setting]} | *paper's order* | | | | *{PAPER[setting]}* | | |"


def difference_table(folder: Path) -> Iterator[str]:
    """Differences of two methods with the same seed, so with the same clients."""
    yield "| scenario | difference | seeds | just trained | p | averaged | p |"
    yield "|---|---|---|---|---|---|---|"
    for setting in SETTINGS:
        for first, second in PAIRS:
            cells, seeds = [], set()
            for metric in (TRAINED, AVERAGED):
                one, other = (accuracies(folder, setting, method, metric) for method in (first, second))
                seeds = one.keys() & other.keys()
                pairs = [(one[seed], other[seed]) for seed in sorted(seeds)]
                if len(pairs) > 1:
                    p = stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
                    cells += [interval([a - b for a, b in pairs]), f"{p:.3f}" if p >= 0.001 else "< 0.001"]
                elif pairs:
                    cells += [f"{pairs[0][0] - pairs[0][1]:.1f}", ""]
            if cells:
                name = f"{METHODS[first]} - {METHODS[second]}"
                yield f"| {SETTINGS[setting]} | {name} | {len(seeds)} | {' | '.join(cells)} |"


def tables(folder: Path) -> str:
    """All tables as Markdown."""
    final, earlier = folder / "final", folder.parent / "fig5_two_cores"
    parts = {
        "Test accuracy in %": final_table(final),
        "Paired differences in points": difference_table(final),
        "Paired differences of the earlier runs, results/fig5_two_cores": difference_table(earlier),
        "Rates: validation accuracy in %, averaged | just trained": rate_table(folder),
    }
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())


def keep(source: Path, target: Path) -> None:
    """Copy metrics, summary and configuration of every run that ended, without this machine's paths."""
    for summary in sorted(source.glob(f"*/*/*/{SUMMARY}")):
        if json.loads(summary.read_text())["state"] not in ("finished", "failed"):
            continue
        own = target / summary.parent.relative_to(source)
        own.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, SUMMARY, CONFIG):
            text = (summary.parent / name).read_text() if (summary.parent / name).is_file() else ""
            (own / name).write_text(stripped(text, summary.parent, own))


def stripped(text: str, source: Path, target: Path) -> str:
    """The text with paths that are relative to the repository."""
    text = text.replace(str(source), str(target))
    text = re.sub(r"(data_dir: ).*", r"\1data", text)
    text = re.sub(r"(log_dir: ).*", r"\1logs", text)
    return re.sub(r"(root_dir: ).*", r"\1.", text)


def write(folder: Path) -> None:
    """Replace the tables in the folder's README.md."""
    path = folder / "README.md"
    before, _, rest = path.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    path.write_text(f"{before}{MARKS[0]}\n\n{tables(folder)}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keep", source, target]:
            keep(Path(source), Path(target))
        case ["write", folder]:
            write(Path(folder))
        case _:
            sys.exit(__doc__)
