"""The cost of FedPara in a training step, compared with the dense network: time, operators, memory.

`python benchmarks/steps.py models=vgg16,resnet18,char_lstm,layers repeats=9 threads=1 precision=medium out=steps.json`

Steps of all variants are interleaved; a ratio is the median of the ratios within a turn. `einsum` composes the weight
as the authors' notebook does. Time is CPU time with one thread, else wall time. Memory is the largest resident size
during two steps in a fresh process, minus the size before its network was built. Each tensor gets its own pages there,
because the layout of a heap can add up to a fifth by chance.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedpara.execution.local import JacobianCorrection
from fedpara.heap import keep_freed_memory
from fedpara.models import VGG, CharLSTM, ResNet
from fedpara.nn import Dense, FedPara, Hadamard, factorize

LAYERS = {f"conv {width}@{size}": (width, size) for width, size in [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]}
VARIANTS = {  # recipe; whether by einsum; lambda of the Jacobian correction
    "dense": (Dense(), False, 0.0),
    "einsum 0.1": (FedPara(gamma=0.1), True, 0.0),
    "fedpara 0.1": (FedPara(gamma=0.1), False, 0.0),
    "jacobian 0.1": (FedPara(gamma=0.1), False, 1.0),
    "einsum 0.4": (FedPara(gamma=0.4), True, 0.0),
    "fedpara 0.4": (FedPara(gamma=0.4), False, 0.0),
    "jacobian 0.4": (FedPara(gamma=0.4), False, 1.0),
}


def notebook(factorization: Hadamard) -> Tensor:
    """The weight by einsum and tanh, as in the authors' notebook."""
    x, y, t = (factorization.factors.get(kind) for kind in "xyt")
    assert x is not None
    assert y is not None
    if t is None:
        first, second = (torch.einsum("mr,nr->mn", a, b) for a, b in zip(x, y, strict=True))
        return (first.tanh() * second.tanh()).view(factorization.shape)
    rank, kernel = factorization.rank, factorization.shape[2:]
    cores = t.view(2, rank, -1, rank).transpose(2, 3).unflatten(-1, kernel)
    first, second = (torch.einsum("rskl,or,is->oikl", c, a, b) for c, a, b in zip(cores, x, y, strict=True))
    return first.tanh() * second.tanh()


def network_of(name: str) -> tuple[nn.Module, list[str], Tensor, Tensor]:
    """A dense network, the patterns of its layers that stay dense, and a batch of 64 with labels."""
    torch.manual_seed(0)
    labels = torch.randint(10, (64,))
    images = torch.randn(64, 3, 32, 32)
    if name == "vgg16":
        stages = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]
        return VGG(stages, [512, 512], 10, dropout=0.0), ["classifier.*"], images, labels
    if name == "resnet18":
        return ResNet([64, 128, 256, 512], [2, 2, 2, 2], 10), ["output"], images, labels
    if name == "char_lstm":
        return CharLSTM(80), ["output"], torch.randint(80, (64, 80)), labels
    width, size = LAYERS[name]
    layer = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return layer, [], torch.randn(64, width, size, size), labels


class Operators(TorchDispatchMode):
    """Counts the operators that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        self.count += 1
        return function(*args, **kwargs or {})


def step_of(name: str, variant: str) -> Callable[[], None]:
    """A function that does forward, backward and a step of fused SGD."""
    network, exclude, inputs, labels = network_of(name)
    recipe, by_einsum, strength = VARIANTS[variant]
    factorize(network, recipe, exclude)
    to: Any = network.to  # torch's stubs lack its memory_format
    to(memory_format=torch.channels_last)  # as the executors have it
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)

    correction = JacobianCorrection(strength)
    module: Any = network  # the callback needs a network and a precision plugin of Lightning's alone
    trainer: Any = SimpleNamespace(precision_plugin=None)
    if strength:
        correction.on_train_start(trainer, module)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        correction.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()

    def step_by_einsum() -> None:
        with mock.patch.object(Hadamard, "forward", notebook):
            step()

    return step_by_einsum if by_einsum else step


def measure(name: str, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """For each variant: median seconds, ratio to dense with its quartiles, and operators."""
    keep_freed_memory()  # as the executors do
    clock = time.process_time if threads == 1 else time.perf_counter
    steps = {variant: step_of(name, variant) for variant in VARIANTS}
    operators = {}
    for variant, step in steps.items():
        with Operators() as counter:
            step()
        operators[variant] = counter.count
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(repeats):
        for variant, step in steps.items():
            start = clock()
            step()
            seconds[variant].append(clock() - start)
    result = {}
    for variant, values in seconds.items():
        ratios = sorted(value / dense for value, dense in zip(values, seconds["dense"], strict=True))
        quartiles = statistics.quantiles(ratios, n=4)
        result[variant] = {
            "seconds": statistics.median(values), "ratio": quartiles[1], "lower": quartiles[0], "upper": quartiles[2],
            "operators": operators[variant],
        }  # fmt: skip
    return result


def peak_mb(name: str, variant: str) -> float:
    """Largest resident size during two steps in a fresh process, minus that before the network, in 10^6 bytes."""
    code = f"import steps; print(steps.peak_here({name!r}, {variant!r}))"
    environment = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)


def peak_here(name: str, variant: str) -> float:
    """The measurement that `peak_mb` starts in a fresh process."""

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))

    nn.Linear(8, 8)(torch.randn(2, 8)).sum().backward()
    before = status("VmRSS")
    step = step_of(name, variant)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    step()
    step()
    return status("VmHWM") - before


def main(arguments: list[str]) -> None:
    """Print a table for each model."""
    options = {"models": "vgg16,resnet18,char_lstm,layers", "repeats": "9", "threads": "1", "precision": "medium"}
    options |= dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(int(options["threads"]))
    torch.set_float32_matmul_precision(options["precision"])
    results: dict[str, Any] = {}
    models = [n for name in options["models"].split(",") for n in (LAYERS if name == "layers" else [name])]
    for name in models:
        results[name] = measure(name, int(options["repeats"]), int(options["threads"]))
        print(f"\n| {name} | ms a step | ratio to dense (quartiles) | operators | peak MB | peak to dense |")
        print("|---|---|---|---|---|---|")
        for variant, row in results[name].items():
            row["peak_mb"] = peak_mb(name, variant)
            more = row["peak_mb"] / results[name]["dense"]["peak_mb"]
            ratio = f"{row['ratio']:.2f} ({row['lower']:.2f}-{row['upper']:.2f})"
            line = f"{1e3 * row['seconds']:.1f} | {ratio} | {row['operators']} | {row['peak_mb']:.0f} | {more:.2f}"
            print(f"| {variant} | {line} |", flush=True)
    if "out" in options:
        Path(options["out"]).parent.mkdir(parents=True, exist_ok=True)
        Path(options["out"]).write_text(json.dumps({"options": options, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
