"""Accuracy against megabytes from run folders kept under results/: a table on standard output and a picture.

    python results/curves.py results/cifar10_two_cores

The folder holds <name>-<seed>/{metrics.csv,summary.json}; the picture is written beside them as curves.png.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

LABELS = {"dense": "dense", "fedpara": "FedPara, gamma 0.1", "low_rank": "low rank, same size"}
COLOURS = {"dense": "#7f7f7f", "fedpara": "#d1495b", "low_rank": "#30638e"}


def curve(run: Path) -> np.ndarray:
    """Tested rounds of a run: (n, 3) array of round, megabytes sent so far, accuracy in percent."""
    with (run / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["test/acc"]]
    return np.array([[float(r["round"]), float(r["comm/total_bytes"]) / 1e6, 100 * float(r["test/acc"])] for r in rows])


def read(folder: Path) -> dict[str, np.ndarray]:
    """Runs by name: (seeds, n, 3), cut to the rounds that every seed has."""
    runs = defaultdict(list)
    for run in sorted(path for path in folder.iterdir() if (path / "metrics.csv").is_file()):
        runs[run.name.rpartition("-")[0]].append(curve(run))
    return {name: np.stack([c[: min(map(len, curves))] for c in curves]) for name, curves in runs.items()}


def interval(values: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the mean over seeds (Student's t)."""
    quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    return quantile * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def print_table(folder: Path, runs: dict[str, np.ndarray]) -> None:
    """Markdown: size, accuracy at the last round, bytes so far, bytes to an accuracy that every mean curve reached."""
    target = np.floor(min(seeds[:, :, 2].mean(0).max() for seeds in runs.values()))
    print(f"| | parameters | seeds | rounds | accuracy, % | sent, MB | sent to {target:.0f} %, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, seeds in sorted(runs.items()):
        size = json.loads((folder / f"{name}-0" / "summary.json").read_text())["parameters"]["shared"]
        last, mean = seeds[:, -1, 2], seeds[:, :, 2].mean(0)
        reached = seeds[0, np.argmax(mean >= target), 1]
        print(
            f"| {LABELS.get(name, name)} | {size:,} | {len(seeds)} | {seeds[0, -1, 0]:.0f} "
            f"| {last.mean():.1f} ± {interval(last):.1f} | {seeds[0, -1, 1]:,.0f} | {reached:,.0f} |"
        )


def draw(folder: Path, runs: dict[str, np.ndarray]) -> None:
    """Means over seeds, one thin line a seed, megabytes on a logarithmic axis; beside it the same over rounds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
    for axis, column, label in zip(axes, (1, 0), ("sent, both ways, all clients (MB)", "round"), strict=True):
        for name, seeds in runs.items():
            colour = COLOURS.get(name)
            for one in seeds:
                axis.plot(one[:, column], one[:, 2], color=colour, alpha=0.3, linewidth=0.8)
            axis.plot(
                seeds[0, :, column], seeds[:, :, 2].mean(0), color=colour, linewidth=2, label=LABELS.get(name, name)
            )
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("log")
    axes[0].set_ylabel("test accuracy (%)")
    axes[1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=130)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    found = read(where)
    print_table(where, found)
    draw(where, found)
