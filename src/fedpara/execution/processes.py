"""Trains the clients of a round in parallel, in worker processes on this machine that keep their model."""

import os
from concurrent.futures import Future
from typing import Annotated

import torch
from pydantic import Field, SkipValidation, validate_call

from fedpara.execution.base import MakeExecutor
from fedpara.execution.dispatch import ParallelExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.training import LocalTraining
from fedpara.execution.transfer import ALIGNMENT, Place
from fedpara.execution.workers import Workers

Positive = Annotated[int, Field(ge=1)]


class ProcessesExecutor(ParallelExecutor[Future[Place | bytes]]):
    """Trains a round's clients in worker processes; tests models in this one.

    Results have the same bits as those of the inner executor with as many threads, whichever worker trained them.
    Workers start with the first tasks, read the examples from shared memory, and always end with this process. When one
    dies, all clients in training are trained again, one by one; a client whose worker dies twice more fails alone.

    Args:
        training, inner, threads, chunk: see `ParallelExecutor`.
        workers: number of processes; None: one per GPU, or as many as fit on the usable cores. No more start than
            there are tasks in a round. They share a GPU that the Trainer's `devices` name.

    Example:
        >>> from functools import partial
        >>> from fedpara.data import IID, FederatedDataModule, mnist_small
        >>> from fedpara.models import MLP, ClassificationModule
        >>> module = ClassificationModule(MLP([784, 10]), partial(torch.optim.SGD, lr=0.1), num_classes=10)
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> data.setup()
        >>> training = LocalTraining(module, data, max_epochs=1, accelerator="cpu")
        >>> executor = ProcessesExecutor(training, workers=4)  # in place of SerialExecutor(training)
        >>> executor.workers
        4
    """

    name = "processes"

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        training: LocalTraining,
        inner: Annotated[MakeExecutor, SkipValidation] = SerialExecutor,
        workers: Positive | None = None,
        threads: Positive = 1,
        chunk: Positive = 1,
    ) -> None:
        super().__init__(training, inner, threads, chunk)
        self.num_devices = torch.cuda.device_count() if self.device.type == "cuda" else 0
        gpus = min(1, self.num_devices) if training.names_a_device else self.num_devices
        self._workers = workers or gpus or max(1, len(os.sched_getaffinity(0)) // threads)

    @property
    def workers(self) -> int:
        """Number of processes."""
        return self._workers

    def _start(self) -> Workers:
        return Workers(
            self.make, self.training,
            number=self.workers, threads=self.threads, num_devices=self.num_devices, chunk=self.chunk,
            state_bytes=sum(tensor.nbytes + ALIGNMENT for tensor in self.initial_state().values()),
        )  # fmt: skip
