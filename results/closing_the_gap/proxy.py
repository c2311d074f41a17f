"""The proxies of this folder, trained centrally: vgg_small on CIFAR-10 at 16 x 16 pixels, an LSTM on Shakespeare.

`python results/closing_the_gap/proxy.py` runs what `runs.csv` lacks, seed by seed, and appends one row for each tested
round. `DATA_DIR` holds `cifar-10-batches-py` and `shakespeare`. Names on the command line choose among `IDEAS`;
`--table` prints the table of the README instead.
"""

import csv
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from scipy import stats

from fedpara.app.build import build
from fedpara.app.composition import compose
from fedpara.data import cifar10
from fedpara.data.examples import DataSet, Examples

HERE = Path(__file__).parent
RUNS = HERE / "runs.csv"
SEEDS = (0, 1, 2)
COLUMNS = ("idea", "seed", "round", "train_loss", "test_loss", "test_acc", "parameters", "seconds", "commit")
CENTRAL = ["trainer=cpu", "trainer.max_epochs=1", "federation.clients_per_round=1", "executor.matmul_precision=medium"]
VGG = [
    "experiment=cifar10_two_cores", *CENTRAL, "executor.whole_epochs=true",
    "data.dataset._target_=__main__.half_size", "data.transform.padding=2", "data.max_train=4000", "data.max_test=4000",
    "federation.num_clients=1", "federation.num_rounds=12", "federation.lr_decay=0.93", "federation.eval_every=3",
]  # fmt: skip
LSTM = [  # one of four clients a round: 600 steps
    "experiment=shakespeare_two_cores", *CENTRAL, "executor.whole_epochs=true",
    "partition=iid", "~partition.min_examples", "data.max_train=9600", "data.max_test=2000",
    "federation.num_clients=4", "federation.num_rounds=4", "federation.lr_decay=1", "federation.eval_every=2",
]  # fmt: skip
MOMENTUM = ["+model.optimizer.momentum=0.9", "model.optimizer.lr=0.02"]
IDEAS = {
    "dense": [*VGG, "factorization=dense"],
    "fedpara": VGG,
    "momentum": [*VGG, *MOMENTUM],
    "dense, momentum": [*VGG, "factorization=dense", *MOMENTUM],
    "rate x 3": [*VGG, "model.optimizer.lr=0.3"],
    "step 0.5": [*VGG, "factorization.step=0.5"],
    "step 1.0": [*VGG, "factorization.step=1.0"],
    "budget 8.98 %": [*VGG, "factorization.budget=0.08981"],
    "budget 12 %": [*VGG, "factorization.budget=0.12"],
    "cosine": [*VGG, "federation.lr_schedule=cosine", "federation.lr_decay=1"],
    "LSTM dense": [*LSTM, "factorization=dense"],
    "LSTM fedpara": LSTM,
    "LSTM step 1.0": [*LSTM, "factorization.step=1.0"],
    "Frobenius decay 0.002": [*VGG, "factorization.frobenius_decay=0.002"],
    "W1 (W2 + 1)": [*VGG, "factorization=pfedpara", "factorization.gamma=0.1"],
    "budget 12 %, step 0.5, momentum": [*VGG, "factorization.budget=0.12", "factorization.step=0.5", *MOMENTUM],
    "gamma 1.0": [*VGG, "factorization.gamma=1.0"],
}


def half_size(data_dir: str) -> DataSet:
    """CIFAR-10 with each square of four pixels as their mean: 16 x 16."""
    whole = cifar10(data_dir)
    return replace(whole, train=_halved(whole.train), test=_halved(whole.test))


def _halved(part: Examples) -> Examples:
    images = [torch.nn.functional.avg_pool2d(some.float(), 2).round().byte() for some in part.inputs.split(5000)]
    return Examples(torch.cat(images), part.labels)


def run(idea: str, seed: int) -> list[tuple[object, ...]]:
    """The rows of one run."""
    start, commit = time.perf_counter(), _commit()
    experiment, federation = build(compose([*IDEAS[idea], f"seed={seed}"]))
    experiment.datamodule.setup()
    experiment.executor.prepare()
    rows: list[tuple[object, ...]] = []
    while federation.round < federation.num_rounds:
        record = federation.run_round()
        if record.metrics:
            scores = f"{record.train_loss:.4f}", *(f"{record.metrics[f'test/{name}']:.4f}" for name in ("loss", "acc"))
            spent = round(time.perf_counter() - start)
            rows.append((idea, seed, record.round, *scores, experiment.parameters["factorized"], spent, commit))
    return rows


def table() -> None:
    """Last rounds as Markdown: differences to plain FedPara, paired by seed, with 95 % t intervals."""
    with RUNS.open() as file:
        rows = {(row["idea"], int(row["seed"])): row for row in csv.DictReader(file)}  # the last round's stays
    print(
        "| idea | parameters | seeds | train loss | test acc. (%) | difference in train loss | in test acc. (points) |"
    )
    print("|---|---|---|---|---|---|---|")
    for idea in dict.fromkeys(idea for idea, _ in rows):
        plain = "LSTM fedpara" if idea.startswith("LSTM") else "fedpara"
        own = [seed for seed in SEEDS if (idea, seed) in rows]
        cells = [f"{float(rows[idea, own[0]]['parameters']):,.0f}", ", ".join(map(str, own))]
        for column, factor, digits in (("train_loss", 1, 3), ("test_acc", 100, 1)):
            cells.append(f"{factor * fmean(float(rows[idea, seed][column]) for seed in own):.{digits}f}")
        for column, factor, digits in (("train_loss", 1, 3), ("test_acc", 100, 1)):
            paired = [
                factor * (float(rows[idea, seed][column]) - float(rows[plain, seed][column]))
                for seed in own
                if (plain, seed) in rows
            ]
            cells.append("" if idea == plain else f"{fmean(paired):+.{digits}f}{_half_width(paired, digits)}")
        print(f"| {idea} | {' | '.join(cells)} |")


def _half_width(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return ""
    return f" ± {stats.t.ppf(0.975, len(values) - 1) * stats.sem(values):.{digits}f}"


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout[:7]


def main(names: list[str]) -> None:
    """Run what is missing."""
    torch.set_num_threads(1)
    done = set()
    if RUNS.exists():
        with RUNS.open() as file:
            done = {(row["idea"], int(row["seed"])) for row in csv.DictReader(file)}
    else:
        RUNS.write_text(",".join(COLUMNS) + "\n")
    for seed in SEEDS:
        for idea in names or IDEAS:
            if (idea, seed) not in done:
                rows = run(idea, seed)
                with RUNS.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows(rows)
                print(*rows[-1], flush=True)


if __name__ == "__main__":
    table() if sys.argv[1:] == ["--table"] else main(sys.argv[1:])
