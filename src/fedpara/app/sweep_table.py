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

unfinished: list[str] = []  # unfinished jobs of this process's sweep, for its exit status


class SweepTable(Callback):
    """Reads the run folders of a sweep and prints the values that varied beside the results."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Warn if a sweeper would look for the worst value."""
        minimising = minimises(config.hydra.sweeper)
        if minimising is None or minimising != (headline := headline_of(config.model)).higher_is_better:
            return
        kind, verb = ("lowest", "maximi") if minimising else ("highest", "minimi")
        log.warning(
            "hydra.sweeper looks for the %s %s; it should %sse it: hydra.sweeper.direction=%sze",
            kind, headline.label, verb, verb,
        )  # fmt: skip

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print one row for each job, whichever process ran it; then differences over seeds, and why jobs failed."""
        runs = find_runs(Path(config.hydra.sweep.dir))
        console = Console(width=None if Console().is_terminal else 120)
        console.print(table(runs, title=escape(str(config.hydra.sweep.dir))))
        if (compared := differences_of(runs)) is not None:
            console.print(compared)
        unfinished[:] = [run.name for run in runs if run.state != "finished"]
        for run in runs:
            if "error" in run.summary:
                console.print(f"{run.name}: {run.summary['error']}", markup=False, highlight=False)


def table(runs: list[Run], title: str) -> Table:
    """The values that vary between runs, last and best value of their metric, bytes sent, wall time and state."""
    varying, metric = axes(runs), judged(runs)
    columns = *map(escape, [*(varying or ["run"]), metric.label]), "best", "sent", "vs dense", "seconds", "state"
    made = Table(*columns, title=title)
    for number, run in enumerate(runs):
        names = [values[number] for values in varying.values()] or [run.name]
        made.add_row(*map(escape, names), *_outcome(run, metric), run.state)
    return made


def differences_of(runs: list[Run]) -> Table | None:
    """The differences of the variants from the first, if there are several variants and seeds; else None."""
    if not {"seed"} < axes(runs).keys() or not any(run.rows for run in runs):
        return None
    from fedpara.report import difference_table, differences, settings  # matplotlib takes a second to import

    found = [setting for setting in settings(runs, judged(runs)) if setting.counted]
    heads, rows = difference_table(differences(found))
    made = Table(*map(escape, heads), title="differences, paired by seed")
    for row in rows:
        made.add_row(*map(escape, row))
    return made if rows else None


def _outcome(run: Run, metric: Metric) -> list[str]:
    if not run.rows:
        return [""] * 5
    sizes, sent = run.summary["parameters"], run.rows[-1]["comm/total_bytes"]
    return [
        metric.shown(run.last(metric.name)), metric.shown(run.best(metric)), size(sent),
        f"1/{sizes['dense'] / max(1, sizes['shared']):.1f}", "" if run.seconds is None else f"{run.seconds:.1f}",
    ]  # fmt: skip
