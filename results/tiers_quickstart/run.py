"""Run the table of this folder's README, run after run in this process: `python results/tiers_quickstart/run.py`.

Each run is `python src/train.py <SETTING> <its words> seed=<seed> paths.output_dir=<folder>`. Finished runs are left as
they are. `OUT` is where the run folders go; `runs.csv` there has every round of all of them.
"""

import csv
import os
from itertools import product
from pathlib import Path

from fedpara.app.composition import compose
from fedpara.app.run import Launch, run
from fedpara.runs import Run

OUT = Path(os.environ.get("OUT", "logs/tiers_quickstart"))
SETTING = ["experiment=quickstart", "model=mlp", "federation.num_rounds=15", "callbacks.partition_picture=null"]
SETTING += ["logger=none", "trainer=cpu"]
TIERS = "federation.tiers={phone:{share:0.5,gamma:0.1},server:{share:0.5,gamma:0.5}}"
RUNS = {
    "all gamma 0.1": "factorization.gamma=0.1",
    "all gamma 0.5": "factorization.gamma=0.5",
    "half and half": f"factorization.gamma=0.5 {TIERS}",
}
COLUMNS = ["test/acc", "test/acc_phone", "test/acc_server", "comm/up_bytes", "comm/down_bytes", "comm/total_bytes"]
COLUMNS += [f"comm/{way}_bytes_{tier}" for tier, way in product(("phone", "server"), ("up", "down"))]

rows = []
for seed, (name, words) in product((0, 1, 2), RUNS.items()):
    folder = OUT / f"{name.replace(' ', '_')}-{seed}"
    if not (folder / "summary.json").is_file():
        typed = [*SETTING, *words.split(), f"seed={seed}", f"paths.output_dir={folder}"]
        run(compose(typed, folder), launch=Launch(typed))
    rows += [[name, seed, int(row["round"]), *(row.get(key, "") for key in COLUMNS)] for row in Run(folder).rows]
with (OUT / "runs.csv").open("w", newline="") as stream:
    csv.writer(stream).writerows([["run", "seed", "round", *COLUMNS], *rows])
