"""metrics.csv and summary.json: a run in two files that are true at every moment, whatever becomes of the process."""

import csv
import io
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpara.federation import Federation, FederationCallback, Outcome
from fedpara.files import UnusableFile, write_atomically
from fedpara.record import COLUMNS, RoundRecord, objective
from fedpara.runs import METRICS, SUMMARY, read_rows, read_summary

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "wandb", "torchmetrics", "numpy")
NOTHING: dict[str, Any] = {  # of a run that failed before its first round
    "state": "failed", "rounds": 0, "parameters": {}, "bytes_per_round": {}, "metrics": {"last": {}, "best": {}},
}  # fmt: skip


class RunFolder(FederationCallback):
    """One row a round in metrics.csv, flushed to disk; summary.json, rewritten atomically after each round.

    Until the run ends its summary says "interrupted", which is the truth for a reader who finds it after a crash.
    A column that the run does not measure, or not in that round, is empty.

    Args:
        folder: the run folder.
        parameters: numbers of parameters: `dense`, `factorized`, `shared`, `personal`.
    """

    def __init__(self, folder: Path, parameters: dict[str, int]) -> None:
        self.folder, self.parameters = folder, parameters
        self.rows: list[dict[str, Any]] = []
        self._origin = {
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "git_commit": git_commit(),
        }

    def on_fit_start(self, federation: Federation) -> None:
        """Keep the rows of the rounds that a resumed run has behind it."""
        self.rows = [row for row in read_rows(self.folder / METRICS) if row["round"] <= federation.round]
        header = io.StringIO()
        writer = csv.DictWriter(header, COLUMNS)
        writer.writeheader()
        writer.writerows(map(_exact, self.rows))
        write_atomically(self.folder / METRICS, header.getvalue().encode())
        self._summarise("interrupted", federation)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Append the round."""
        self.rows.append(record.as_row())
        with (self.folder / METRICS).open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(_exact(self.rows[-1]))
            stream.flush()
            os.fsync(stream.fileno())
        self._summarise("interrupted", federation)

    def on_fit_end(self, federation: Federation, outcome: Outcome) -> None:
        """Say how it ended."""
        self._summarise(outcome, federation)

    def _summarise(self, outcome: Outcome, federation: Federation) -> None:
        evaluated = [row for row in self.rows if "test/acc" in row]
        judged = objective(bool(federation.split.personal))
        last = self.rows[-1] if self.rows else {}
        summary = {
            "state": outcome,
            **({"stopped": federation.stopped} if federation.stopped else {}),  # by a callback, which says why
            "rounds": last.get("round", federation.round),  # those with a row: an interruption may come just before it
            "parameters": self.parameters,
            "bytes_per_round": {"up": last.get("comm/up_bytes"), "down": last.get("comm/down_bytes")},
            "metrics": {
                "last": {**(evaluated[-1] if evaluated else {}), **last},  # the last test, where this round had none
                "best": max((row for row in evaluated if judged in row), key=lambda row: row[judged], default={}),
            },
            **self._origin,
        }
        write_atomically(self.folder / SUMMARY, json.dumps(summary, indent=2).encode())


def summarise_failure(folder: Path, error: str) -> None:
    """Put why a run failed into its summary; a run that ended otherwise, and was refused to go on, keeps its own."""
    try:
        summary = read_summary(folder) or NOTHING
    except UnusableFile:  # left as it is, for whoever can mend it
        return
    if summary["state"] == "failed":
        write_atomically(folder / SUMMARY, json.dumps(summary | {"error": error}, indent=2).encode())


def _exact(row: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers without a decimal point, also after a resume has read them as floats."""
    return {name: int(value) if float(value).is_integer() else value for name, value in row.items()}


def git_commit() -> str | None:
    """The commit of the source at hand, with `-dirty` where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
