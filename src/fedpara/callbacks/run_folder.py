"""metrics.csv and summary.json: two files that describe a run correctly even if the process is killed."""

import csv
import io
import json
import logging
import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpara import __version__
from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.files import write_atomically
from fedpara.installation import CHECKOUT
from fedpara.metric import Metric
from fedpara.record import RoundRecord, columns
from fedpara.runs import METRICS, SUMMARY, read_rows

log = logging.getLogger(__name__)
PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "wandb", "torchmetrics", "numpy")


class RunFolder(FederationCallback):
    """Writes metrics.csv, one row per round, flushed to disk, and summary.json, replaced atomically after each round.

    Until the run ends, its summary says "interrupted", so it is right if the process crashes. Columns that the run does
    not measure, or not in that round, are empty. A module's further metrics get columns when they first appear.

    Args:
        folder: the run folder.
        parameters: numbers of parameters: `dense`, `factorized`, `shared`, `personal`.
    """

    def __init__(self, folder: Path, parameters: dict[str, int]) -> None:
        self.folder, self.parameters = folder, parameters
        self.rows: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._origin = {
            "versions": {
                "python": platform.python_version(),
                "fedpara": __version__,
                **{name: version(name) for name in PACKAGES},
            },
            "git_commit": git_commit(),
        }

    def on_fit_start(self, federation: Federation) -> None:
        """Keep the rows of a resumed run's earlier rounds."""
        self.rows = [_exact(row) for row in read_rows(self.folder / METRICS) if row["round"] <= federation.round]
        self.columns = columns(federation.headline)
        self._write()
        self._summarise("interrupted", federation)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Append the round."""
        self.rows.append(record.as_row())
        if self.rows[-1].keys() <= set(self.columns):
            self._append()
        else:
            self._write()
        self._summarise("interrupted", federation)
        self._warn_of_nan()

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Write how the run ended."""
        self._summarise(outcome, federation)

    def _warn_of_nan(self) -> None:
        """Warn, once, of each metric of this round that no round has measured as a number."""
        for name in self.rows[-1]:
            if name not in self._warned and all(row[name] != row[name] for row in self.rows if name in row):
                self._warned.add(name)
                log.warning("round %d: %s is NaN, as in every round so far", self.rows[-1]["round"], name)

    def _append(self) -> None:
        with (self.folder / METRICS).open("a", newline="") as stream:
            csv.DictWriter(stream, self.columns).writerow(_exact(self.rows[-1]))
            stream.flush()
            os.fsync(stream.fileno())

    def _write(self) -> None:
        """Write the whole table, with a column for every metric in it."""
        first, *others = self.columns
        found = dict.fromkeys(name for row in self.rows for name in row if name not in self.columns)
        tested = [name for name in [*others, *found] if name.startswith("test/")]
        self.columns = tuple(dict.fromkeys([first, *tested, *others, *found]))
        table = io.StringIO()
        writer = csv.DictWriter(table, self.columns)
        writer.writeheader()
        writer.writerows(map(_exact, self.rows))
        write_atomically(self.folder / METRICS, table.getvalue().encode())

    def _best(self, judged: Metric) -> dict[str, Any]:
        """The row of the best round; the first one of several."""
        tested = [row for row in self.rows if judged.name in row]
        best = judged.best(row[judged.name] for row in tested)
        return next((row for row in tested if row[judged.name] == best), {})

    def _summarise(self, outcome: Outcome, federation: Federation) -> None:
        judged = federation.judged
        evaluated = [row for row in self.rows if federation.headline.judged(personal=False).name in row]
        last = self.rows[-1] if self.rows else {}
        summary = {
            "state": outcome,
            **({"stopped": federation.stopped} if federation.stopped else {}),  # the reason of a callback
            "rounds": last.get("round", federation.round),  # rounds with a row; an interruption may come before the row
            "parameters": self.parameters,
            "bytes_per_round": {"up": last.get("comm/up_bytes"), "down": last.get("comm/down_bytes")},
            "metrics": {
                "last": {**(evaluated[-1] if evaluated else {}), **last},  # the last test, if this round had none
                "best": self._best(judged),
            },
            "headline": asdict(federation.headline),
            **self._origin,
        }
        write_atomically(self.folder / SUMMARY, json.dumps(summary, indent=2).encode())


def _exact(row: dict[str, Any]) -> dict[str, Any]:
    """The row with whole numbers as integers, even if a resume has read them as floats."""
    return {name: int(value) if float(value).is_integer() else value for name, value in row.items()}


def git_commit() -> str | None:
    """The commit of this source, with `-dirty` if files differ; None outside a checkout."""
    if CHECKOUT is None:  # installed, perhaps below another project's repository
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
