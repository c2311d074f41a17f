"""Kill a node of a Ray cluster in the middle of a round, and compare the run's result with an undisturbed one.

    python tools/stress/lost_node.py      # SCAFFOLD, 8 clients a round; further arguments are those of src/train.py

The cluster has two one-core nodes on this machine. The second is killed while its actor trains, and replaced two rounds
later. The exit status is 1 if the model, or a figure of a round except its times, differs from executor=serial.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from fedpara.runs import CHECKPOINT
from helpers.runs import rows, rows_without_times
from nodes import two_nodes

WORDS = [
    "model=vgg_small", "algorithm=scaffold", "federation.num_clients=20", "federation.clients_per_round=8",
    "federation.num_rounds=20", "data.max_train=1000", "trainer=cpu", "trainer.max_epochs=2", "logger=none",
]  # fmt: skip


def disturb(cluster, folder):
    """Kill the second node in the fourth round, add another after the sixth."""
    wait_for(folder, 3)
    time.sleep(0.3)
    print("### node 2 is killed", flush=True)
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    wait_for(folder, 6)
    print("### another node joins", flush=True)
    cluster.add_node(num_cpus=1)


def wait_for(folder, number):
    while len(rows(folder)) < number:
        time.sleep(0.02)


def command(folder, *words):
    return [sys.executable, str(ROOT / "src/train.py"), *WORDS, *words, f"hydra.run.dir={folder}"]


def main(words):
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        whole, disturbed = Path(name, "whole"), Path(name, "disturbed")
        subprocess.run(command(whole, *words, "executor=serial"), check=True, stdout=subprocess.DEVNULL)
        with two_nodes() as cluster:
            run = subprocess.Popen(command(disturbed, *words, "executor=ray"))
            disturb(cluster, disturbed)
            run.wait()
        for row in rows(disturbed):
            times = (f"{key} {float(row[f'time/{key}_s']):.2f} s" for key in ("train", "busy", "idle"))
            print("round", row["round"], *times)
        states = [(folder / CHECKPOINT).read_bytes() for folder in (whole, disturbed)]
        print(f"accuracy undisturbed {rows(whole)[-1]['test/acc']}, disturbed {rows(disturbed)[-1]['test/acc']}")
        same = len({*states}) == 1, rows_without_times(whole) == rows_without_times(disturbed)
        print(f"checkpoint {'the same' if same[0] else 'DIFFERS'}, rounds {'the same' if same[1] else 'DIFFER'}")
        return int(not all(same))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
