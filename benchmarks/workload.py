"""The workload that every variant of a benchmark computes: data, network, cohorts and batches, in plain torch.

The bare loop, this project's executors and, in their own environments, other simulators read it. It uses only parts of
the package that do not need Lightning, so that no variant pays for another one's imports.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpara.sampling import cohort, derive_seed, substream

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "fedpara"
NUM_CLASSES, SHAPE = 10, (3, 32, 32)
CIFAR10 = "BENCHMARK_CIFAR10"  # environment variable with the file that `SimpleCNN.data` reads


def _vgg() -> type[nn.Module]:
    """This project's VGG, without the rest of its package."""
    spec = importlib.util.spec_from_file_location("vgg", PACKAGE / "models" / "vgg.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VGG


@dataclass(frozen=True)
class Workload:
    """FedAvg over clients of equal size.

    Attributes:
        network: `stages` and `hidden` of a VGG.
        batch_size: must divide `num_examples`, the number of examples of a client.
        device: where the data lie.
        arguments: model and device for `src/train.py`.
        dtype: of inputs and weights. In float64 two ways of computing the same agree to about 1e-12; in float32
            rounding errors soon reach a hundredth of the change by training.
    """

    network: dict[str, Any]
    num_clients: int = 32
    clients_per_round: int = 8
    num_examples: int = 100
    batch_size: int = 20
    num_epochs: int = 2
    learning_rate: float = 0.01
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    arguments: tuple[str, ...] = ("model=vgg_small", "trainer=cpu")

    @property
    def num_steps(self) -> int:
        """Optimizer steps a round."""
        return self.clients_per_round * self.num_epochs * self.num_examples // self.batch_size

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Random inputs (N, 3, 32, 32) and labels (N,), a linear function of the inputs; sorted by client."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = torch.randn(self.num_clients * self.num_examples, *SHAPE, generator=generator)
        teacher = torch.randn(inputs[0].numel(), NUM_CLASSES, generator=generator)
        return inputs.to(self.device, self.dtype), (inputs.flatten(1) @ teacher).argmax(1).to(self.device)

    def build(self) -> nn.Module:
        """The network with its initial weights."""
        torch.manual_seed(self.seed)
        return _vgg()(**self.network, num_classes=NUM_CLASSES, dropout=0.0).to(self.dtype)

    def cohort(self, round_index: int) -> list[int]:
        """The clients of a round, as `Federation` draws them."""
        return cohort(self.seed, round_index, self.num_clients, self.clients_per_round)

    def batches(self, client: int, round_index: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A client's batches in one local epoch, in the order of `fedpara.data.EpochBatches`."""
        inputs, labels = self.data
        seed = derive_seed(self.seed, round_index, client, "local training")
        generator = torch.Generator().manual_seed(substream(seed, "batch order", epoch))
        order = torch.randperm(self.num_examples, generator=generator).to(self.device)
        for indices in (client * self.num_examples + order).split(self.batch_size):
            yield inputs[indices], labels[indices]


def simple_cnn() -> nn.Module:
    """The `simple_cnn` of pfl-research's benchmarks for 32x32 images: the layers and the initial weights of its source.

    https://github.com/apple/pfl-research/blob/0871a92/benchmarks/model/pytorch/cnn.py; 1,626,442 parameters.
    """
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, NUM_CLASSES),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return network


class SimpleCNN(Workload):
    """The CIFAR-10 IID benchmark of pfl-research (Granqvist et al. 2024).

    The numbers are those of benchmarks/image_classification/configs/baseline.yaml there, at commit 2c77da1; there is no
    augmentation. Its test after every tenth round is left out.
    """

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """The tensors in the file that the environment variable `BENCHMARK_CIFAR10` names, or random ones."""
        if CIFAR10 not in os.environ:
            return super().data
        inputs, labels = torch.load(os.environ[CIFAR10], weights_only=True)
        return inputs.to(self.device), labels.to(self.device)

    def build(self) -> nn.Module:
        """The network with its initial weights."""
        torch.manual_seed(self.seed)
        return simple_cnn()


PFL = SimpleCNN(
    network={}, num_clients=1000, clients_per_round=50, num_examples=50, batch_size=10, num_epochs=1, learning_rate=0.1,
    arguments=(  # pfl trains on a GPU if there is one, and PyTorch's convolutions are in TF32 there
        f"--config-dir={Path(__file__).parent / 'configs'}", "model=simple_cnn", "trainer=default",
        "executor.matmul_precision=high",
    ),
)  # fmt: skip
WORKLOADS = {
    "tiny": Workload({"stages": [[8], [16]], "hidden": [67]}),  # 3,259 parameters: mostly overhead
    "cnn": Workload({"stages": [[32, 32], [64, 64], [128, 128]], "hidden": [664, 654]}),  # 815,016 parameters
    "vgg16": Workload(  # the paper's network and batch size
        {"stages": [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3], "hidden": [512, 512]},
        num_clients=8, clients_per_round=2, num_examples=128, batch_size=64,
    ),
}  # fmt: skip
WORKLOADS |= {f"{name}_float64": replace(workload, dtype=torch.float64) for name, workload in WORKLOADS.items()}
WORKLOADS |= {"pfl": PFL, "pfl_tiny": replace(PFL, num_clients=8, clients_per_round=2, num_examples=20)}
