"""How close a round of unequal clients comes to the best packing: `python benchmarks/packing.py executor=processes`.

It takes the arguments of `src/train.py` and trains a small convolutional network on Dirichlet clients. A round is
compared with max(its longest client, all of its clients / workers): no packing can be faster than that, and the best
one may be slower.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from fedpara.federation import Federation, FederationCallback, Report
from fedpara.record import RoundRecord

WORK = [
    "model=vgg_small", "partition=dirichlet", "partition.alpha=0.3", "federation.num_clients=40",
    "federation.clients_per_round=16", "federation.num_rounds=11", "federation.eval_every=1000", "trainer=cpu",
    "trainer.max_epochs=2", "logger=none", "callbacks.partition_picture=null",
    "+callbacks.packing._target_=packing.Packing",
]  # fmt: skip


class Packing(FederationCallback):
    """Prints a line of JSON per round: its clients' examples, the number of workers, the bound and the time taken."""

    def __init__(self) -> None:
        self.clients: list[tuple[int, float]] = []

    def on_client_end(self, federation: Federation, report: Report) -> None:
        """Note the client."""
        self.clients.append((report.num_examples, report.seconds))

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Print the round."""
        sizes, seconds = zip(*self.clients, strict=True)
        workers = federation.clients.workers
        best = max(*seconds, sum(seconds) / workers)
        row = {"sizes": sizes, "workers": workers, "best": best, "took": record.train_seconds}
        print(json.dumps(row), flush=True)
        self.clients = []


def main(arguments: list[str]) -> None:
    """Train and print the rounds, except the first, in which the workers start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "src/train.py"), *WORK, *arguments, f"hydra.run.dir={folder}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"sizes"')][1:]
    print("| round | clients | examples of the largest, the smallest | workers | best, s | took, s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for number, row in enumerate(rows, 2):
        print(
            f"| {number} | {len(row['sizes'])} | {max(row['sizes'])}, {min(row['sizes'])} | {row['workers']} "
            f"| {row['best']:.3f} | {row['took']:.3f} | {row['took'] / row['best']:.2f} |"
        )
    print(f"median ratio {statistics.median(row['took'] / row['best'] for row in rows):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
