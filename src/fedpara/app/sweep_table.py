"""A table of all jobs at the end of `python src/train.py -m ...`."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpara.app.sweep import minimises
from fedpara.record import objective, size
from fedpara.runs import Run, axes, find_runs

log = logging.getLogger(__name__)

unfinished: list[str] = []  # unfinished jobs of this process's sweep, for its exit status


class SweepTable(Callback):
    """Reads the run folders of a sweep and prints the values that varied beside the results."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Warn if a sweeper would look for the lowest accuracy."""
        if minimises(config.hydra.sweeper):
            log.warning("hydra.sweeper minimises the accuracy; it should maximise it: hydra.sweeper.direction=maximize")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print one row for each job, whichever process ran it, and below the table why jobs failed."""
        runs = find_runs(Path(config.hydra.sweep.dir))
        console = Console(width=None if Console().is_terminal else 120)
        console.print(table(runs, title=escape(str(config.hydra.sweep.dir))))
        unfinished[:] = [run.name for run in runs if run.state != "finished"]
        for run in runs:
            if "error" in run.summary:
                console.print(f"{run.name}: {run.summary['error']}", markup=False, highlight=False)


def table(runs: list[Run], title: str) -> Table:
    """The values that vary between runs, last and best accuracy, bytes sent, wall time and state."""
    varying = axes(runs)
    metric = objective(any(run.objective != objective(False) for run in runs))  # one for all, to be compared
    shown = "accuracy" if metric == objective(False) else "personal accuracy"
    columns = *map(escape, varying or ["run"]), shown, "best", "sent", "vs dense", "seconds", "state"
    made = Table(*columns, title=title)
    for number, run in enumerate(runs):
        names = [values[number] for values in varying.values()] or [run.name]
        made.add_row(*map(escape, names), *_outcome(run, metric), run.state)
    return made


def _outcome(run: Run, metric: str) -> list[str]:
    if not run.rows:
        return [""] * 5
    sizes, sent = run.summary["parameters"], run.rows[-1]["comm/total_bytes"]
    return [
        _percent(run.last(metric)), _percent(run.best(metric)), size(sent),
        f"1/{sizes['dense'] / max(1, sizes['shared']):.1f}", f"{run.seconds:.1f}",
    ]  # fmt: skip


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"
