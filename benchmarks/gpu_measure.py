"""Parts of benchmarks/gpu_proof.py that measure: `python benchmarks/gpu_measure.py steps tiny 120 steps.json`."""

import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np
import torch
from torch import Tensor

import ours
from environments import is_at_hand
from fedpara.data import FederatedDataModule, Natural, cifar10
from fedpara.execution import ClientFailure, ClientTask, LocalTraining, SerialExecutor, VectorizedExecutor
from fedpara.models import ClassificationModule
from fedpara.nn import Hadamard, factorize
from gpu_programs import Results, failures, main
from rounds import Variant
from steps import VARIANTS, notebook
from workload import CIFAR10, NUM_CLASSES, WORKLOADS, simple_cnn

WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "eager": (SerialExecutor, {"whole_epochs": False}),
    "captured": (SerialExecutor, {"whole_epochs": True}),
    "folded": (VectorizedExecutor, {"chunk_size": 16, "capture": False}),
    "folded, captured": (VectorizedExecutor, {"chunk_size": 16, "capture": True}),
}
STEPS = {  # by `tiny`: the network of the paper with as many steps a client as in its CIFAR-10 run, and a small one
    False: replace(WORKLOADS["vgg16"], num_clients=16, num_examples=512, num_epochs=10),
    True: replace(WORKLOADS["tiny"], num_clients=2, num_examples=16, batch_size=8, num_epochs=1),
}
WARNED = BufferingHandler(1000)  # holds the package's warnings: steps that are not captured, clients trained one by one
CELL_S = 1.0  # seconds for which the steps of one way are counted
RIVALS = ("whole_epochs", "vectorized", "pfl")  # variants of benchmarks/rounds.py


def steps(tiny: bool, end: float) -> Results:
    """Client steps a second and peak memory of each variant in each way, through this package's executors."""
    WORKLOADS["steps"] = workload = STEPS[tiny]
    read = partial(ours.data_set, "steps")
    data = FederatedDataModule(read, Natural(), workload.num_clients, NUM_CLASSES, 3, workload.batch_size)
    data.setup()
    WARNED.setLevel(logging.WARNING)
    logging.getLogger("fedpara").addHandler(WARNED)
    variants = [name for name in VARIANTS if not (name.startswith("jacobian") or (tiny and "0.4" in name))]
    rows: list[Results] = []
    for precision in ("bf16-mixed", "32-true"):
        for variant in variants:
            # the notebook's einsum takes the factors of one client
            for way in [way for way in WAYS if "einsum" not in variant or "folded" not in way]:
                row: Results = {"precision": precision, "variant": variant, "way": way}
                if time.monotonic() > end:
                    rows.append(row | {"note": "no time"})
                    continue
                try:
                    rows.append(row | measure(data, variant, way, precision, 0 if tiny else CELL_S))
                except Exception as error:
                    logging.exception("%s", row)
                    rows.append(row | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
    return {"rows": rows} | failures(rows)


def measure(data: FederatedDataModule, variant: str, way: str, precision: str, seconds: float) -> Results:
    """The steps of one variant in one way, and PyTorch's peak memory on the GPU, training examples included."""
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    WARNED.buffer.clear()
    patched: Any = mock.patch.object(Hadamard, "forward", notebook) if "einsum" in variant else nullcontext()
    with patched, counted_replays() as replays:
        executor = _executor(data, variant, way, precision)
        data.to(executor.device)
        executor.prepare()
        size = min(getattr(executor, "chunk_size", 1), data.num_clients)
        chunks = cycle(torch.arange(data.num_clients).split(size))
        _train(executor, next(chunks))  # captures
        replays.clear()
        start, num_steps = time.perf_counter(), 0
        while not num_steps or time.perf_counter() - start < seconds:
            num_steps += _train(executor, next(chunks))  # ends with copies to the host, so the GPU has finished
        taken = time.perf_counter() - start
    return {
        "steps_per_s": num_steps / taken, "steps": num_steps, "clients_at_once": size,
        "captured": "yes" if len(replays) * size >= num_steps else "partly" if replays else "no",
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
        "note": "; ".join({record.getMessage(): None for record in WARNED.buffer}),
    }  # fmt: skip


def _executor(data: FederatedDataModule, variant: str, way: str, precision: str) -> Any:
    network = WORKLOADS["steps"].build()
    factorize(network, VARIANTS[variant][0], ["classifier.*"])
    module = ClassificationModule(network, partial(torch.optim.SGD, lr=WORKLOADS["steps"].learning_rate), NUM_CLASSES)
    training = LocalTraining(module, data, max_epochs=WORKLOADS["steps"].num_epochs, precision=precision)
    make, options = WAYS[way]
    return make(training, **options)


def _train(executor: Any, clients: Tensor) -> int:
    """The number of steps of some clients."""
    state = executor.initial_state()
    outcomes = list(executor.run([ClientTask(client, state, 1.0, seed=client) for client in clients.tolist()]))
    for outcome in outcomes:
        if isinstance(outcome, ClientFailure):
            raise RuntimeError(outcome.reason)
    return sum(outcome.num_steps for outcome in outcomes)


@contextmanager
def counted_replays() -> Iterator[list[None]]:
    """A list that gets an item at each replay of a CUDA graph."""
    replay, replays = torch.cuda.CUDAGraph.replay, list[None]()

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(None)
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield replays


def pfl(tiny: bool, end: float) -> Results:
    """pfl-research's CIFAR-10 benchmark (`workload.SimpleCNN`): rounds of ours and of pfl, interleaved."""
    net = "pfl_tiny" if tiny else "pfl"
    rows: list[Results] = [{"variant": name, "rounds": []} for name in RIVALS]
    pairs: list[tuple[Results, Variant]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
        test = WORKLOADS[net].data if tiny else _cifar10(Path(folder))
        os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "1"  # pfl has no setting for it; ours: matmul_precision=high
        with ThreadPoolExecutor() as pool:
            make = partial(Variant, net=net, folder=Path(folder), threads="1" if tiny else "")
            chosen = [row for row in rows if row["variant"] != "pfl" or is_at_hand("pfl")]
            starting = [(row, pool.submit(make, row["variant"])) for row in chosen]
        for row, future in starting:
            try:
                pairs.append((row, future.result()))
                ending.callback(future.result().end)
            except RuntimeError as error:
                row["error"] = str(error)
        if not is_at_hand("pfl"):
            rows[-1]["note"] = "not installed; see docs/guides/gpu-proof.md"
        for _, variant in pairs:
            variant.round()  # captures
        while not all(row["rounds"] for row, _ in pairs) or (time.monotonic() < end and not tiny):
            for row, variant in pairs:
                row["rounds"].append(variant.round()[0])
        for row, variant in pairs:
            row |= {"round_s": statistics.median(row["rounds"]), "accuracy": _accuracy(variant.model(), *test)}
    return {"rows": rows} | failures(rows)


def _cifar10(folder: Path) -> tuple[Tensor, Tensor]:
    """Write the training examples, shuffled, for all processes; return those of the test."""
    data = cifar10(os.environ.get("DATA_DIR", str(ROOT / "data")))
    train = data.train[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))]
    os.environ[CIFAR10] = str(folder / "cifar10.pt")
    torch.save((data.prepare(train.inputs), train.labels), os.environ[CIFAR10])
    return data.prepare(data.test.inputs), data.test.labels


@torch.no_grad()
def _accuracy(model: dict[str, np.ndarray], inputs: Tensor, labels: Tensor) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = simple_cnn().eval().to(device)
    # pfl's module holds the network
    network.load_state_dict({name.removeprefix("network."): torch.from_numpy(a) for name, a in model.items()})
    found = torch.cat([network(part.to(device)).argmax(1).cpu() for part in inputs.split(500)])
    return float((found == labels).float().mean())


if __name__ == "__main__":
    main({"steps": steps, "pfl": pfl}, *sys.argv[1:])
