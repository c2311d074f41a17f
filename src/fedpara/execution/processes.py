"""Clients of a round in parallel, in worker processes on this machine that keep their model."""

import os
from typing import Annotated, Any

import torch
from pydantic import Field, validate_call

from fedpara.data.datamodule import FederatedDataModule
from fedpara.execution.dispatch import ParallelExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.workers import Workers, size
from fedpara.models.module import ClassificationModule

Positive = Annotated[int, Field(ge=1)]


class ProcessesExecutor(ParallelExecutor):
    """Trains a round's clients in worker processes; tests models in this one.

    A result is the inner executor's in a process with as many threads, bit for bit, whichever worker trained it.
    Workers start with the first tasks, have the examples in shared memory, and end with this process, however it ends.
    When one dies, what was in training is trained again, one by one: two deaths more fail their own clients alone.

    Args:
        module, datamodule, trainer, jacobian_correction, inner, threads, chunk: see `ParallelExecutor`.
        workers: processes; None: one a GPU, or as many as the usable cores have room for. No more start than there
            are tasks in a round.
    """

    name, workers = "processes", 1

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        module: ClassificationModule,
        datamodule: FederatedDataModule,
        trainer: Any,
        jacobian_correction: Any = 0.0,
        inner: Any = SerialExecutor,
        workers: Positive | None = None,
        threads: Positive = 1,
        chunk: Positive = 1,
    ) -> None:
        super().__init__(module, datamodule, trainer, jacobian_correction, inner, threads, chunk)
        self.num_devices = torch.cuda.device_count() if self.here.device.type == "cuda" else 0
        self.workers = workers or self.num_devices or max(1, len(os.sched_getaffinity(0)) // threads)

    def _start(self) -> Workers:
        return Workers(
            self.make, self.here.module, self.here.datamodule, self.trainer,
            number=self.workers, threads=self.threads, num_devices=self.num_devices, chunk=self.chunk,
            state_bytes=size(list(self.here.initial_state().values())),
        )  # fmt: skip
