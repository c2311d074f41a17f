"""Objects with which `src/train.py` runs a benchmark's workload: the data, and a callback that waits between rounds."""

import time
from typing import Any

import torch
from torch import Tensor

from fedpara.communication import Cast
from fedpara.data import DataSet, Examples
from fedpara.federation import Federation, FederationCallback, Report
from fedpara.models import VGG
from fedpara.record import RoundRecord
from pace import Pace
from workload import NUM_CLASSES, WORKLOADS


def data_set(workload: str) -> DataSet:
    """A workload's examples, stored as the network takes them; the owners are the clients (`partition=natural`)."""
    inputs, labels = WORKLOADS[workload].data
    owners = torch.arange(len(labels)) // WORKLOADS[workload].num_examples
    train = Examples(inputs, labels, owners)
    return DataSet("random", train, train[owners == 0], NUM_CLASSES, prepare=_as_stored)


def _as_stored(inputs: Tensor) -> Tensor:
    return inputs


class DoubleVGG(VGG):
    """The network in float64 with the same initial weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.double()


class Exact(Cast):
    """Sends float64, so that values arrive exactly as they were sent."""

    def __init__(self, dtype: str) -> None:
        self.dtype = torch.float64


class PaceCallback(FederationCallback):
    """Runs a round at each word of benchmarks/rounds.py, and stops the federation after the last."""

    def __init__(self) -> None:
        self.num_steps = 0

    def on_fit_start(self, federation: Federation) -> None:
        """Wait for the first round."""
        self.pace = Pace()
        self._wait(federation)

    def on_client_end(self, federation: Federation, report: Report) -> None:
        """Count the steps."""
        self.num_steps += report.num_steps

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Report the round, which is in metrics.csv by now, and wait for the next."""
        self.pace.round_done(self.num_steps)
        self.num_steps = 0
        self._wait(federation)

    def _wait(self, federation: Federation) -> None:
        if not self.pace.next_round(lambda: federation.server["model"]):
            federation.stop("the benchmark is done")


class Deadline(FederationCallback):
    """Stops the federation where a round as long as the last would end after `at`, in seconds since 1970."""

    def __init__(self, at: float) -> None:
        self.at = at

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Compare the clock."""
        if time.time() + record.seconds > self.at:
            federation.stop("the benchmark's time is up")


def overrides(name: str) -> list[str]:
    """The command line of `src/train.py` for a workload."""
    workload = WORKLOADS[name]
    exact = ["model.network._target_=ours.DoubleVGG"]
    exact += [f"link.{way}_codec._target_=ours.Exact" for way in ("up", "down")]
    return [
        *workload.arguments, "factorization=dense", "partition=natural", "logger=none",
        f"seed={workload.seed}",
        "data.dataset._target_=ours.data_set", f"+data.dataset.workload={name}",
        f"data.num_classes={NUM_CLASSES}", "data.in_channels=3", f"data.batch_size={workload.batch_size}",
        *(f"model.network.{key}={value}" for key, value in workload.network.items()),
        f"model.optimizer.lr={workload.learning_rate}",
        f"trainer.max_epochs={workload.num_epochs}",
        f"federation.num_clients={workload.num_clients}",
        f"federation.clients_per_round={workload.clients_per_round}",
        "federation.num_rounds=1000000", "federation.eval_every=1000000", "federation.lr_decay=1",
        "callbacks.checkpoint=null", "callbacks.partition_picture=null", "callbacks.progress=null",
        "+callbacks.pace._target_=ours.PaceCallback",
        *(exact if workload.dtype == torch.float64 else []),
    ]  # fmt: skip
