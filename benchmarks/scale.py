"""The cost of idle clients: `python benchmarks/scale.py [overrides of src/train.py]`.

It measures start-up, peak memory and seconds a round of `src/train.py` with 100 to 100,000 clients and one cohort, then
with growing cohorts. Network and examples are tiny, so that the overhead shows. Then it times commands that do not
train.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from fedpara.runs import METRICS, Run

if TYPE_CHECKING:
    from fedpara.data import DataSet

SIZES = [(100, 8), (10_000, 8), (100_000, 8), (10_000, 80), (10_000, 400)]  # clients in all, clients of a round
NUM_ROUNDS, EXAMPLES_PER_CLIENT = 8, 4
WORKLOAD = [
    "model=mlp", "model.network.widths=[16,8,2]", "factorization=dense", "trainer=cpu", "trainer.max_epochs=1",
    "data.dataset._target_=scale.data_set", "data.num_classes=2", "data.in_channels=1",
    f"federation.num_rounds={NUM_ROUNDS}", f"federation.eval_every={NUM_ROUNDS}", "logger=none",
]  # fmt: skip
UNTRAINED = {
    "--help": ["--help"],
    "an unknown choice": ["model=unknown"],
    "an unknown key": ["federation.num_round=3"],
    "a value out of range": ["federation.clients_per_round=0"],
}


def data_set(num_examples: int) -> "DataSet":
    """Grey 4x4 images; the label says whether the first pixel is bright."""
    import torch

    from fedpara.data import DataSet, Examples, Normalize

    pixels = torch.randint(256, (num_examples, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train = Examples(pixels, (pixels[:, 0, 0, 0] > 127).long(), torch.arange(num_examples) // EXAMPLES_PER_CLIENT)
    return DataSet("random", train, train[torch.arange(100)], 2, Normalize((0.5,), (0.25,)))


def measure(num_clients: int, cohort: int, overrides: list[str], folder: Path) -> tuple[float, float, float]:
    """Seconds to the start of the first round, peak resident memory in 10^6 bytes, median seconds of a later round."""
    sizes = [
        f"federation.num_clients={num_clients}", f"federation.clients_per_round={cohort}",
        f"+data.dataset.num_examples={EXAMPLES_PER_CLIENT * num_clients}", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "src/train.py"), *WORKLOAD, *sizes, *overrides]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (folder / METRICS).exists() and process.poll() is None:
        time.sleep(0.01)
    started = time.perf_counter() - start
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(1)  # the program has printed the reason
    rounds = [row["time/round_s"] for row in Run(folder).rows]
    return started, usage.ru_maxrss * 1024 / 1e6, statistics.median(rounds[1:-1])  # the last one includes a test


def seconds(arguments: list[str], repeats: int = 5) -> tuple[float, float]:
    """Median wall time and processor time of `src/train.py`, in seconds."""
    wall, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "src/train.py"), *arguments],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        usage = os.wait4(process.pid, 0)[2]
        wall.append(time.perf_counter() - start)
        processor.append(usage.ru_utime + usage.ru_stime)
    return statistics.median(wall), statistics.median(processor)


def main(overrides: list[str]) -> None:
    """Print two tables in GitHub's markdown."""
    print("| clients | a round | start-up, s | peak memory, MB | s a round |\n|---|---|---|---|---|")
    for num_clients, cohort in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            started, memory, median = measure(num_clients, cohort, overrides, Path(folder) / "run")
        print(f"| {num_clients:,} | {cohort} | {started:.1f} | {memory:.0f} | {median:.3f} |", flush=True)
    print("\n| python src/train.py with | s | processor s |\n|---|---|---|")
    for name, arguments in UNTRAINED.items():
        print("| {} | {:.2f} | {:.2f} |".format(name, *seconds(arguments)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
