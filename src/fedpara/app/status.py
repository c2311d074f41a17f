"""The program `status`: it shows the progress of the runs in folders; by default, of all runs in `logs/`."""

import sys
import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fedpara.app.errors import as_folders, show_usage, stop
from fedpara.installation import command_of, root
from fedpara.record import size
from fedpara.runs import Run, find_runs

COLOURS = {"running": "blue", "finished": "green", "failed": "red", "interrupted": "yellow"}


def status(roots: list[Path]) -> Table:
    """One row per run, the most recent at the end; a run whose process died is shown as "interrupted".

    Raises:
        ValueError: a root holds no run.
    """
    runs = sorted(find_runs(*roots), key=lambda run: run.written)
    judged = "accuracy" if all(run.headline.is_share for run in runs) else "metric"
    table = Table(Column("run", overflow="fold"), "state", "rounds", judged, "sent", "last round", "time left")
    for run in runs:
        table.add_row(escape(_name(run, roots)), f"[{COLOURS[run.state]}]{run.state}", *map(escape, _progress(run)))
    return table


def _name(run: Run, roots: list[Path]) -> str:
    root = next(root for root in roots if run.folder.is_relative_to(root))
    return run.name if run.folder == root else str(run.folder.relative_to(root))


def _progress(run: Run) -> list[str]:
    """Rounds done and planned, the metric, bytes sent, time since the last round, and time left at this pace."""
    asked = run.config.get("federation.num_rounds")
    rounds = f"{len(run.rows)}/{asked}" if asked else str(len(run.rows))
    if not run.rows:
        return [rounds, "", "", "", run.summary.get("error", "")]
    metric = run.judged
    shown = metric.shown(run.last(metric.name)) + ("" if metric.is_share else f" {metric.label}")
    to_run = max(0, (asked or 0) - len(run.rows))
    left = "" if run.state != "running" or run.pace is None else _duration(to_run * run.pace)
    ago = f"{_duration(time.time() - run.written)} ago"
    return [rounds, shown, size(run.rows[-1]["comm/total_bytes"]), ago, left or run.summary.get("error", "")]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def main() -> None:
    """Print the table."""
    usage = f"{command_of('status')} [<folder> ...]"
    show_usage(f"{usage}\n\n{__doc__}")
    try:
        table = status(as_folders(sys.argv[1:], usage) or [root() / "logs"])
    except (ValueError, OSError) as error:
        stop(str(error))
    Console(width=None if Console().is_terminal else 150).print(table)
