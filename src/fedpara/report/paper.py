"""Runs beside the numbers that the paper prints (paper.yaml), where a run's configuration is that of a table's row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fedpara.cost import cost_to_target
from fedpara.report.settings import Estimate, Setting
from fedpara.runs import Run

GIBIBYTE = 2**30


@dataclass(frozen=True)
class Comparison:
    """A printed number and what runs of the same set-up gave.

    Attributes:
        source: the table or figure.
        row: set-up and what was trained.
        setting: the runs beside it.
        quantity: what the number is, with its unit.
        printed: by the paper.
        measured: over seeds; None where no run got there.
        note: how far the runs are, where they are not at the paper's round.
    """

    source: str
    row: str
    setting: str
    quantity: str
    printed: float
    measured: Estimate | None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Measured less printed."""
        return None if self.measured is None else self.measured.mean - self.printed


def compare(found: Iterable[Setting]) -> list[Comparison]:
    """A comparison for each printed number and each setting of its set-up; empty for other set-ups."""
    found = list(found)
    return [*_accuracies(found), *_costs(found)]


def _accuracies(found: list[Setting]) -> Iterator[Comparison]:
    for table, row, printed, setting in _rows("accuracies", found):
        quantity = f"accuracy after {table['rounds']} rounds, %"
        complete = [value for run in setting.runs if (value := _accuracy_at(run, table["rounds"])) is not None]
        tested = [run for run in setting.runs if run.last("test/acc") is not None]
        values, note = complete, ""
        if tested and not complete:
            values = [100 * (run.last("test/acc") or 0.0) for run in tested]
            note = f"so far, after {' and '.join(sorted({str(len(run.rows)) for run in tested}))} rounds"
        if values:
            yield Comparison(table["source"], row, setting.label, quantity, printed, Estimate.of(values), note)


def _costs(found: list[Setting]) -> Iterator[Comparison]:
    for table, row, printed, setting in _rows("costs", found):
        costs = [_gibibytes(run, table["target"]) for run in setting.runs]
        reached = [cost for cost in costs if cost is not None]
        note = "" if len(reached) == len(costs) else f"reached by {len(reached)} of {len(costs)} runs"
        measured = Estimate.of(reached) if reached else None
        yield Comparison(table["source"], row, setting.label, f"GiB to {table['target']:.0%}", printed, measured, note)


def _rows(kind: str, found: list[Setting]) -> Iterator[tuple[dict[str, Any], str, float, Setting]]:
    """Printed numbers of a kind, their row's name, and the settings of their set-up, where there are any."""
    paper = _paper()
    for table in paper[kind]:
        for row, printed in table["values"].items():
            wanted = paper["setups"][table["setup"]] | paper["rows"][row]
            for setting in found:
                if all(run.config and all(run.config.get(k) == v for k, v in wanted.items()) for run in setting.runs):
                    yield table, f"{table['setup']}, {row}", printed, setting


@cache
def _paper() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())


def _accuracy_at(run: Run, rounds: int) -> float | None:
    return next((100 * row["test/acc"] for row in run.rows if row["round"] == rounds and "test/acc" in row), None)


def _gibibytes(run: Run, target: float) -> float | None:
    rows = [{"cost/round_s_10mbps": 0.0} | row for row in run.rows]  # only bytes are asked for
    cost = cost_to_target(rows, target, speed_mbps=10)
    return cost.num_bytes / GIBIBYTE if cost else None
