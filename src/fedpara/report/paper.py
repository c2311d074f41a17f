"""Runs beside the numbers that the paper prints (paper.yaml), where a run's configuration is that of a table's row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fedpara.cost import cost_to_target
from fedpara.report.settings import Estimate
from fedpara.runs import Run

GIBIBYTE = 2**30


@dataclass(frozen=True)
class Comparison:
    """A printed number and what runs of the same set-up gave.

    Attributes:
        source: the table or figure.
        row: set-up and what was trained.
        quantity: what the number is, with its unit.
        printed: by the paper.
        measured: over seeds; None where no run got there.
        note: how far the runs are, where they are not at the paper's round.
    """

    source: str
    row: str
    quantity: str
    printed: float
    measured: Estimate | None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Measured less printed."""
        return None if self.measured is None else self.measured.mean - self.printed


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """A comparison for each printed number of whose set-up there is a run; empty for other set-ups."""
    return [*_accuracies(runs), *_costs(runs)]


def _accuracies(runs: Sequence[Run]) -> Iterator[Comparison]:
    for table, row, printed, chosen in _rows("accuracies", runs):
        complete = {run: value for run in chosen if (value := _accuracy_at(run, table["rounds"])) is not None}
        name = f"{table['setup']}, {row}"
        quantity = f"accuracy after {table['rounds']} rounds, %"
        if complete:
            yield Comparison(table["source"], name, quantity, printed, Estimate.of(list(complete.values())))
            continue
        tested = [run for run in chosen if run.last("test/acc") is not None]
        if tested:
            reached = " and ".join(sorted({f"{len(run.rows)}" for run in tested}))
            so_far = Estimate.of([100 * (run.last("test/acc") or 0) for run in tested])
            yield Comparison(table["source"], name, quantity, printed, so_far, f"so far, after {reached} rounds")


def _costs(runs: Sequence[Run]) -> Iterator[Comparison]:
    for table, row, printed, chosen in _rows("costs", runs):
        costs = [_gibibytes(run, table["target"]) for run in chosen]
        reached = [cost for cost in costs if cost is not None]
        note = "" if len(reached) == len(costs) else f"reached by {len(reached)} of {len(costs)} runs"
        quantity = f"GiB to {table['target']:.0%}"
        name = f"{table['setup']}, {row}"
        yield Comparison(table["source"], name, quantity, printed, Estimate.of(reached) if reached else None, note)


def _rows(kind: str, runs: Sequence[Run]) -> Iterator[tuple[dict[str, Any], str, float, list[Run]]]:
    """Printed numbers of a kind with the runs of their set-up, where there are any."""
    paper = _paper()
    for table in paper[kind]:
        for row, printed in table["values"].items():
            wanted = paper["setups"][table["setup"]] | paper["rows"][row]
            chosen = [run for run in runs if run.config and all(run.config.get(k) == v for k, v in wanted.items())]
            if chosen:
                yield table, row, printed, chosen


@cache
def _paper() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())


def _accuracy_at(run: Run, rounds: int) -> float | None:
    return next((100 * row["test/acc"] for row in run.rows if row["round"] == rounds and "test/acc" in row), None)


def _gibibytes(run: Run, target: float) -> float | None:
    rows = [{"cost/round_s_10mbps": 0.0} | row for row in run.rows]  # only bytes are asked for
    cost = cost_to_target(rows, target, speed_mbps=10)
    return cost.num_bytes / GIBIBYTE if cost else None
