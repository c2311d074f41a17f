"""Compares runs with the numbers that the paper prints (paper.yaml), if a run's configuration is that of a table's row.

A set-up is the part of the configuration that changes the result. The paper's is composed from configs/. A run that is
recognised as a row but differs in such a key is shown with a note that names the key. A run whose data, clients or
local training have another size is not compared.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fedpara.cost import cost_to_target
from fedpara.installation import CONFIGS
from fedpara.record import counted
from fedpara.report.settings import Estimate, Setting, of_each_seed
from fedpara.runs import MATTER, Run, deciding, leaves

GIBIBYTE = 2**30
SIZE = (  # keys that a run has in common with its column of the paper
    "model.network._target_", "model.network.stages", "data.dataset._target_", "data.batch_size", "data.max_train",
    "data.max_test", "partition._target_", "partition.alpha", "federation.num_clients", "federation.clients_per_round",
    "trainer.max_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A printed number beside the result of runs of the same set-up.

    Attributes:
        source: the table or figure.
        row: the set-up and the kind of network that was trained.
        setting: name of the runs that are compared.
        quantity: the quantity with its unit.
        printed: the paper's number.
        measured: ours, over seeds; None if no run reached it.
        note: differences from the paper's set-up, and the runs' rounds if they are not at the paper's round.
        round: the round of a printed accuracy; None for a cost.
        target: the accuracy, 0 to 1, to which a printed cost leads; None for an accuracy.
    """

    source: str
    row: str
    setting: str
    quantity: str
    printed: float
    measured: Estimate | None
    note: str = ""
    round: int | None = None
    target: float | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus printed."""
        return None if self.measured is None else self.measured.mean - self.printed


def compare(found: Iterable[Setting]) -> list[Comparison]:
    """A comparison for each printed number and each setting of its row; empty if no run matches a row."""
    found = list(found)
    return [*_accuracies(found), *_costs(found)]


def differing(run: Run, setup: str, row: str) -> list[str]:
    """The keys in which a run differs from a row's set-up, if they change the result: `key value (value there)`."""
    wanted, own = _effective(composed(setup, row)), _effective(run.config)
    keys = sorted(key for key in wanted.keys() | own.keys() if wanted.get(key) != own.get(key))
    return [f"{key} {own.get(key)} ({wanted.get(key)} there)" for key in keys]


def _effective(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that change the result; a dense network takes nothing from those of a factorisation."""
    dense = str(config.get("factorization._target_")).endswith(".Dense")
    unused = {key for key in config if dense and key.startswith("factorization.") and key not in MATTER}
    return deciding({key: value for key, value in config.items() if key not in unused})


@cache
def composed(setup: str, row: str | None = None) -> dict[str, Any]:
    """The resolved set-up of a row by dotted key; without a row, FedPara's."""
    typed = _paper()["setups"][setup]["typed"] | (_paper()["typed"][row] if row else {})
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", [f"{key}={value}" for key, value in typed.items()])
    needless = {"callbacks", "logger", "paths"}  # their values depend on the folder of a run
    known = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in needless])
    known.data.dataset.data_dir = None
    return dict(leaves(OmegaConf.to_container(known, resolve=True)))


def _accuracies(found: list[Setting]) -> Iterator[Comparison]:
    for table, row, printed, setting, others in _rows("accuracies", found):
        quantity = f"accuracy after {table['rounds']} rounds, %"
        runs = of_each_seed(setting.runs)
        complete = [value for run in runs if (value := _accuracy_at(run, table["rounds"])) is not None]
        tested = [run for run in runs if run.last("test/acc") is not None and _goes_on(run, table["rounds"])]
        values, note = complete, ""
        if tested and not complete:
            values = [100 * (run.last("test/acc") or 0.0) for run in tested]
            *fewer, most = sorted({len(run.rows) for run in tested})
            note = f"so far, after {' and '.join([*map(str, fewer), counted(most, 'round')])}"
        if values:
            notes = "; ".join(filter(None, [others, note]))
            yield Comparison(
                table["source"], row, setting.label, quantity, printed, Estimate.of(values), notes, table["rounds"]
            )


def _costs(found: list[Setting]) -> Iterator[Comparison]:
    for table, row, printed, setting, others in _rows("costs", found):
        costs = [_gibibytes(run, table["target"]) for run in of_each_seed(setting.runs)]
        reached = [cost for cost in costs if cost is not None]
        note = "" if len(reached) == len(costs) else f"reached by {len(reached)} of {len(costs)} seeds"
        notes = "; ".join(filter(None, [others, note]))
        measured = Estimate.of(reached) if reached else None
        quantity = f"GiB to {100 * table['target']:g} %"
        yield Comparison(table["source"], row, setting.label, quantity, printed, measured, notes, None, table["target"])


def _rows(kind: str, found: list[Setting]) -> Iterator[tuple[dict[str, Any], str, float, Setting, str]]:
    """Yields table, row name, printed number, a setting recognised as that row, and a note on how it differs."""
    paper = _paper()
    for table in paper[kind]:
        for row, printed in table["values"].items():
            wanted = paper["usual"] | paper["rows"][row]
            for setting in found:
                if all(is_row(run, wanted) and is_of(run, table["setup"]) for run in setting.runs):
                    others = dict.fromkeys(key for run in setting.runs for key in differing(run, table["setup"], row))
                    note = f"another set-up: {', '.join(others)}" if others else ""
                    yield table, f"{table['setup']}, {row}", printed, setting, note


def is_row(run: Run, wanted: dict[str, Any]) -> bool:
    """Whether a run has a row's values; a group is compared by its class."""
    classes = {
        name: str(run.config.get(f"{name}._target_")).rpartition(".")[2] for name in ("factorization", "algorithm")
    }
    return bool(run.config) and all((run.config | classes).get(key) == value for key, value in wanted.items())


def is_of(run: Run, setup: str) -> bool:
    """Whether a run belongs to a set-up: by its tag, unless it is older than tags, and by its size."""
    tagged = "factors.gamma" in run.config
    if tagged and run.config.get("paper.column") != _paper()["setups"][setup]["column"]:
        return False
    return all(run.config.get(key) == composed(setup).get(key) for key in SIZE)


@cache
def _paper() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())


def _accuracy_at(run: Run, rounds: int) -> float | None:
    return next((100 * row["test/acc"] for row in run.rows if row["round"] == rounds and "test/acc" in row), None)


def _goes_on(run: Run, rounds: int) -> bool:
    """Whether a run may still reach a round."""
    return run.state != "finished" or run.config.get("federation.num_rounds", rounds) >= rounds


def _gibibytes(run: Run, target: float) -> float | None:
    cost = cost_to_target(run.rows, target, speed_mbps=10)
    return cost.num_bytes / GIBIBYTE if cost else None
