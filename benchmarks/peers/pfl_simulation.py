"""FedAvg in pfl-research (Granqvist et al. 2024), one process: `python pfl_simulation.py <workload>`."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import get_default_device
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from pace import Pace
from workload import WORKLOADS, Workload


class Module(nn.Module):
    """The workload's network with the loss and the metrics that pfl needs; it takes metrics in the first round only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(self.network(inputs), labels)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Cross-entropy as a metric."""
        return {"loss": Weighted.from_unweighted(self.loss(inputs, labels).item())}


class Ordered(Dataset):
    """A client's examples of one round in the workload's order, which differs between epochs."""

    def __init__(self, workload: Workload, client: int, round_index: int) -> None:
        inputs, labels = workload.data
        own = slice(client * workload.num_examples, (client + 1) * workload.num_examples)
        super().__init__((inputs[own], labels[own]), user_id=str(client))
        self.workload = workload
        self.epochs = (workload.batches(client, round_index, epoch) for epoch in count())

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches; pfl tests on all examples at once."""
        return next(self.epochs) if batch_size == self.workload.batch_size else super().iter(batch_size)


class PaceCallback(TrainingProcessCallback):
    """Makes pfl wait between rounds, and counts the steps of local optimizers."""

    def __init__(self) -> None:
        self.pace, self.num_steps = Pace(), 0

    def local_optimizer(self, parameters: Iterator[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """A client's optimizer, whose steps are counted."""
        optimizer = torch.optim.SGD(parameters, lr=lr)
        optimizer.register_step_post_hook(self._count)
        return optimizer

    def _count(self, *_: object) -> None:
        self.num_steps += 1

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Wait for the first round."""
        self.pace.next_round(model.pytorch_model.state_dict)
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Report the end of the round and wait for the next; stop after the last."""
        self.pace.round_done(self.num_steps)
        self.num_steps = 0
        return not self.pace.next_round(model.pytorch_model.state_dict), Metrics()


def main(name: str) -> None:
    """Train one round at each word of the driver."""
    workload, pace = replace(WORKLOADS[name], device=str(get_default_device())), PaceCallback()
    module = Module(workload.build())
    model = PyTorchModel(module, pace.local_optimizer, torch.optim.SGD(module.parameters(), lr=1.0))
    users = ((client, number) for number in count() for client in workload.cohort(number))
    data = FederatedDataset(lambda user: Ordered(workload, *user), lambda: next(users))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=1_000_000,
            evaluation_frequency=1_000_000,
            train_cohort_size=workload.clients_per_round,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=workload.batch_size,
            local_num_epochs=workload.num_epochs,
            local_learning_rate=workload.learning_rate,
        ),
        callbacks=[pace],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
