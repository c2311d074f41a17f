"""Run the table of this folder's README, run after run in this process: `python results/frontier_quickstart/run.py`.

Each run is `python src/train.py <SETTING> <its words> seed=<seed> paths.output_dir=<folder>`. Finished runs are left as
they are. `OUT` is where the run folders go.
"""

import os
from contextlib import suppress
from itertools import product
from pathlib import Path

from fedpara.app.composition import compose
from fedpara.app.run import Launch, run

OUT = Path(os.environ.get("OUT", "logs/frontier_quickstart"))
SETTING = ["experiment=quickstart", "model=mlp", "logger=none", "callbacks.partition_picture=null"]
MUD = "factorization=mud factorization.ratio=0.25 federation.catch_up=true"
RUNS = {
    "dense": "factorization=dense",
    "fedpara": "",
    "fedpara rotating, catch-up": "sharing=rotating federation.catch_up=true",
    "fedpara fedpaq 8": "link=fedpaq",
    "fedpara top-k 0.1": "link=topk",
    "low rank": "factorization=low_rank",
    # FedMUD with the parameters of fedpara at gamma 0.1; of blocks with the nearest number below
    "fedmud, a 0.3": f"{MUD} factorization.a=0.3",
    "fedmud, a 0.175": f"{MUD} factorization.a=0.175",
    "fedmud without AAD": f"{MUD} factorization.a=0.3 factorization.aad=false",
    "fedmud blocks, a 1.2": f"{MUD} factorization.a=1.2 factorization.kronecker=true",
}

for seed, (name, words) in product((0, 1, 2), RUNS.items()):
    folder = OUT / f"{name.replace(',', '').replace(' ', '_')}-{seed}"
    if not (folder / "summary.json").is_file():
        typed = [*SETTING, *words.split(), f"seed={seed}", f"paths.output_dir={folder}"]
        with suppress(SystemExit):  # one that diverges says so in its log; the others go on
            run(compose(typed, folder), launch=Launch(typed))
