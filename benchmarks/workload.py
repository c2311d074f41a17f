"""The workload that every variant of a benchmark computes: data, network, cohorts and batches, in plain torch.

The bare loop, this project's executors and, in their own environments, other simulators read it. It uses only parts of
the package that do not need Lightning, so that no variant pays for another one's imports.
"""

import importlib.util
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
        return inputs.to(self.dtype), (inputs.flatten(1) @ teacher).argmax(1)

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
        order = torch.randperm(self.num_examples, generator=generator)
        for indices in (client * self.num_examples + order).split(self.batch_size):
            yield inputs[indices], labels[indices]


WORKLOADS = {
    "tiny": Workload({"stages": [[8], [16]], "hidden": [67]}),  # 3,259 parameters: mostly overhead
    "cnn": Workload({"stages": [[32, 32], [64, 64], [128, 128]], "hidden": [664, 654]}),  # 815,016 parameters
    "vgg16": Workload(  # the paper's network and batch size
        {"stages": [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3], "hidden": [512, 512]},
        num_clients=8, clients_per_round=2, num_examples=128, batch_size=64,
    ),
}  # fmt: skip
WORKLOADS |= {f"{name}_float64": replace(workload, dtype=torch.float64) for name, workload in WORKLOADS.items()}
