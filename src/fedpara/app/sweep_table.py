"""A table of all jobs at the end of `python src/train.py -m ...`."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpara.app.sweep import headline_of, minimises
from fedpara.metric import Metric
from fedpara.record import size
from fedpara.runs import Run, axes, find_runs, judged

log = logging.getLogger(__name__)

unfinished: list[str] = []  # jobs of the sweep that this process ran, for its exit status


class SweepTable(Callback):
    """Reads the run folders of a sweep and prints what varied and what came of it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say so where a sweeper would look for the worst."""
        minimising = minimises(config.hydra.sweeper)
        if minimising is None or minimising != (headline := headline_of(config.model)).higher_is_better:
            return
        kind, wanted = ("least", "maximi") if minimising else ("largest", "minimi")
        log.warning(
            "hydra.sweeper looks for the %s %s; it is to %sse, as hydra.sweeper.direction=%sze",
            kind, headline.label, wanted, wanted,
        )  # fmt: skip

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """One row a job, whichever process ran it; beneath the table, why jobs failed."""
        runs = find_runs(Path(config.hydra.sweep.dir))
        console = Console(width=None if Console().is_terminal else 120)
        console.print(table(runs, title=escape(str(config.hydra.sweep.dir))))
        unfinished[:] = [run.name for run in runs if run.state != "finished"]
        for run in runs:
            if "error" in run.summary:
                console.print(f"{run.name}: {run.summary['error']}", markup=False, highlight=False)


def table(runs: list[Run], title: str) -> Table:
    """What varies between runs, last and best value of what they are judged by, what was sent, wall time, state."""
    varying, metric = axes(runs), judged(runs)
    columns = *map(escape, [*(varying or ["run"]), metric.label]), "best", "sent", "vs dense", "seconds", "state"
    made = Table(*columns, title=title)
    for number, run in enumerate(runs):
        names = [values[number] for values in varying.values()] or [run.name]
        made.add_row(*map(escape, names), *_outcome(run, metric), run.state)
    return made


def _outcome(run: Run, metric: Metric) -> list[str]:
    if not run.rows:
        return [""] * 5
    sizes, sent = run.summary["parameters"], run.rows[-1]["comm/total_bytes"]
    return [
        metric.shown(run.last(metric.name)), metric.shown(run.best(metric)), size(sent),
        f"1/{sizes['dense'] / max(1, sizes['shared']):.1f}", f"{run.seconds:.1f}",
    ]  # fmt: skip
