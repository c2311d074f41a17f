"""Run the grid of this folder's README in this process: `python results/robust_quickstart/run.py`.

Each run is `python src/train.py <SETTING> <the words of its cell> seed=<seed>`, without a run folder. `OUT` is the file
to which a finished run adds its rows; runs that are in it are left out.
"""

import csv
import logging
import os
from itertools import product
from pathlib import Path

from fedpara.app.build import build
from fedpara.app.composition import compose

OUT = Path(os.environ.get("OUT", Path(__file__).with_name("runs.csv")))
SETTING = [
    "experiment=quickstart", "model=mlp", "model.network.widths=[784,64,10]", "model.optimizer.lr=0.2", "logger=none",
    "data.batch_size=64", "executor=vectorized", "trainer=cpu", "federation.num_clients=10",
    "federation.clients_per_round=10", "federation.num_rounds=8", "federation.eval_every=4",
]  # fmt: skip
NETWORKS = {"dense": "factorization=dense", "fedpara": "factorization=fedpara"}
RULES = {
    "mean": "",
    "median": "aggregation=median",
    "trimmed_mean": "aggregation=trimmed_mean aggregation.attackers=2",
    "multi_krum": "aggregation=multi_krum aggregation.attackers=2",
    "geometric_median": "aggregation=geometric_median",
    "norm_bounding": "aggregation=norm_bounding aggregation.bound=0.5",
}
ATTACKS = {
    "none": "",
    "sign_flip 10": "faults=sign_flip faults.strength=10",
    "scaled_update 10": "faults=scaled_update",
    "label_flip": "faults=label_flip",
    "alie 1.5": "faults=alie faults.strength=1.5",
}
FIELDS = ["seed", "network", "attack", "rule", "round", "test_acc", "test_loss"]


def rows(seed: int, network: str, attack: str, rule: str) -> list[list[object]]:
    """The tests of one run; a run that ends early has an empty accuracy."""
    words = f"{NETWORKS[network]} {RULES[rule]} {ATTACKS[attack]} seed={seed}".split()
    experiment, federation = build(compose([*SETTING, *words]))
    experiment.datamodule.setup()
    experiment.executor.prepare()
    found: list[list[object]] = []
    try:
        while federation.round < federation.num_rounds:
            metrics = federation.run_round().metrics
            if metrics:
                found.append([seed, network, attack, rule, federation.round, metrics["test/acc"], metrics["test/loss"]])
    except FloatingPointError as error:
        logging.warning("%s", error)
        found.append([seed, network, attack, rule, federation.num_rounds, "", ""])
    return found


def main() -> None:
    """All cells of one seed, then those of the next."""
    done = set()
    if OUT.is_file():
        with OUT.open() as stream:
            done = {tuple(row[name] for name in FIELDS[:4]) for row in csv.DictReader(stream)}
    else:
        OUT.write_text(",".join(FIELDS) + "\n")
    for seed, attack, rule, network in product((0, 1, 2), ATTACKS, RULES, NETWORKS):
        if (str(seed), network, attack, rule) in done:
            continue
        found = rows(seed, network, attack, rule)
        with OUT.open("a") as stream:
            csv.writer(stream, lineterminator="\n").writerows(found)


if __name__ == "__main__":
    main()
