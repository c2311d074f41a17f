"""A table of all jobs at the end of `python src/train.py -m ...`."""

import csv
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table


class SweepTable(Callback):
    """Reads the run folders of a sweep and prints what varied and what came of it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """One row a job, in the order of the jobs; a job without a summary failed before its first round."""
        jobs = sorted(
            (p for p in Path(config.hydra.sweep.dir).iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
        )
        overrides = [_overrides(job) for job in jobs]
        axes = [
            key for key in dict.fromkeys(k for o in overrides for k in o) if len({o.get(key) for o in overrides}) > 1
        ]
        table = Table(
            *axes, "accuracy", "best", "sent", "vs dense", "minutes", "state", title=str(config.hydra.sweep.dir)
        )
        for job, values in zip(jobs, overrides, strict=True):
            table.add_row(*(values.get(axis, "") for axis in axes), *_outcome(job))
        Console(width=None if Console().is_terminal else 120).print(table)


def _overrides(job: Path) -> dict[str, str]:
    path = job / ".hydra" / "overrides.yaml"
    saved: Any = OmegaConf.load(path) if path.is_file() else []
    return {name: value for name, _, value in (str(override).partition("=") for override in saved)}


def _outcome(job: Path) -> list[str]:
    path = job / "summary.json"
    if not path.is_file():
        return ["", "", "", "", "", "failed"]
    summary = json.loads(path.read_text())
    last, best, sizes = summary["metrics"]["last"], summary["metrics"]["best"], summary["parameters"]
    if not last:
        return ["", "", "", "", "", summary["state"]]
    with (job / "metrics.csv").open() as stream:
        seconds = sum(float(row["time/round_s"]) for row in csv.DictReader(stream))
    return [
        f"{last.get('test/acc', float('nan')):.2%}", f"{best.get('test/acc', float('nan')):.2%}",
        f"{last['comm/total_bytes'] / 1e6:.2f} MB", f"1/{sizes['dense'] / max(1, sizes['shared']):.1f}",
        f"{seconds / 60:.1f}",
        summary["state"],
    ]  # fmt: skip
