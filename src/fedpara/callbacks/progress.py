"""The progress of a run: a live bar in a terminal, plain lines elsewhere."""

import logging
import time
from datetime import timedelta
from math import isnan

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from fedpara.federation import Federation, FederationCallback, Outcome, Report
from fedpara.record import RoundRecord, size

log = logging.getLogger(__name__)


class ProgressDisplay(FederationCallback):
    """Shows the round, finished clients, the metric that judges the run, bytes so far and time left.

    Args:
        console: the console to write to; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: Progress | None = None

    def on_fit_start(self, federation: Federation) -> None:
        """Open the display."""
        self._start, self._first = time.perf_counter(), federation.round
        self._clients = 0
        self._reached: float | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("round"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[clients]}"),
                TextColumn("{task.fields[reached]}", style="green"), TextColumn("{task.fields[sent]}", style="cyan"),
                TimeElapsedColumn(), _TimeLeft(self), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(
                "round", total=federation.num_rounds, completed=federation.round, clients="", reached="", sent=""
            )

    def on_client_end(self, federation: Federation, report: Report) -> None:
        """Count the client."""
        self._clients += 1
        if self._bar:
            self._bar.update(self._task, clients=f"client {self._clients}/{federation.clients_per_round}")

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Show the round."""
        self._clients = 0
        self._reached = record.as_row().get(federation.judged.name, self._reached)
        shown = federation.judged.shown(self._reached)
        reached = f"{federation.headline.name} {shown}" if shown else ""
        if "privacy/epsilon" in record.privacy:
            reached += f"{' | ' if reached else ''}epsilon {record.privacy['privacy/epsilon']:.3g}"
        if self._bar:
            self._bar.update(self._task, completed=record.round, reached=reached, sent=size(record.total_bytes))
        else:
            parts = [
                f"round {record.round}/{federation.num_rounds}",
                "" if federation.privacy and isnan(record.train_loss) else f"loss {record.train_loss:.4f}", reached,
                f"sent {size(record.total_bytes)}", f"{record.seconds:.1f} s",
                f"left {self.time_left(record.round, federation.num_rounds)}",
            ]  # fmt: skip
            log.info(" | ".join(part for part in parts if part))

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Close the display."""
        if self._bar:
            self._bar.stop()

    def time_left(self, done: int, total: int) -> str:
        """Time left as h:mm:ss, at the mean pace of this process so far."""
        if done == self._first:
            return "-:--:--"
        pace = (time.perf_counter() - self._start) / (done - self._first)
        return str(timedelta(seconds=round(pace * (total - done))))


class _TimeLeft(ProgressColumn):
    """Time left, computed from whole rounds; rich cannot estimate it for a bar that moves once a minute."""

    def __init__(self, display: ProgressDisplay) -> None:
        super().__init__()
        self.display = display

    def render(self, task: Task) -> Text:
        return Text(f"left {self.display.time_left(int(task.completed), int(task.total or 0))}", style="magenta")
