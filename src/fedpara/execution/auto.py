"""The executor that the benchmark says is the quickest for a network on a machine (README, "Speed")."""

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pydantic import validate_call

from fedpara.data.datamodule import FederatedDataModule
from fedpara.execution.processes import ProcessesExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.vectorized import VectorizedExecutor
from fedpara.models.module import ClassificationModule

log = logging.getLogger(__name__)
TOGETHER = 4  # clients in one computation: fewer gain little, with more a round's last chunks leave workers idle


class AutoExecutor:
    """The first of these that the network and the trainer allow, chosen when there are data to try.

    On a GPU whole epochs, in a process each where there are several GPUs. On several cores a worker process for each,
    with several clients in one computation where a network is so small that they fit into a processor's cache. On one
    core those together, or one client after the other.

    Args:
        module, datamodule, trainer, jacobian_correction, matmul_precision: as of `SerialExecutor`.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        module: ClassificationModule,
        datamodule: FederatedDataModule,
        trainer: Any,
        jacobian_correction: Any = 0.0,
        matmul_precision: Any = "highest",
    ) -> None:
        options = {"jacobian_correction": jacobian_correction, "matmul_precision": matmul_precision}
        self._serial = partial(SerialExecutor, module, datamodule, trainer, **options)
        self._whole = partial(SerialExecutor, module, datamodule, trainer, whole_epochs=True, **options)
        self._vectorized = partial(VectorizedExecutor, module, datamodule, trainer, **options)
        self._processes = partial(ProcessesExecutor, module, datamodule, trainer, jacobian_correction)
        self._precision = {"matmul_precision": matmul_precision}  # of what workers hold
        self.chosen: Any = self._serial()

    def __getattr__(self, name: str) -> Any:
        """All is the chosen one's."""
        if name == "chosen":  # not there yet
            raise AttributeError(name)
        return getattr(self.chosen, name)

    def try_one_example(self) -> None:
        """As of the serial executor; and choose."""
        self.chosen.try_one_example()
        for candidate in self._candidates():
            try:
                candidate.try_one_example()
            except ValueError:  # it says why, to those who ask for it by name
                continue
            self.chosen = candidate
            break
        inner = f" of {type(self.chosen.here).__name__}" if isinstance(self.chosen, ProcessesExecutor) else ""
        log.info("executor: %s%s", type(self.chosen).__name__, inner)

    def _candidates(self) -> Iterator[Any]:
        cuda = self.chosen.device.type == "cuda"
        several = torch.cuda.device_count() > 1 if cuda else len(os.sched_getaffinity(0)) > 1
        if cuda:
            whole = partial(SerialExecutor, whole_epochs=True, **self._precision)
            yield from _allowed(partial(self._processes, inner=whole), several)
            yield from _allowed(self._whole)
            return
        for executor in _allowed(self._vectorized):
            fit = executor.affordable() >= TOGETHER
            vectorized = partial(VectorizedExecutor, chunk_size=TOGETHER, **self._precision)
            yield from _allowed(partial(self._processes, inner=vectorized, chunk=TOGETHER), several and fit)
            yield from _allowed(partial(self._vectorized, chunk_size=TOGETHER), not several and fit)
        yield from _allowed(partial(self._processes, inner=partial(SerialExecutor, **self._precision)), several)


def _allowed(make: Callable[[], Any], wanted: bool = True) -> Iterator[Any]:
    """The executor, where it is wanted and takes what it is given."""
    if wanted:
        try:
            yield make()
        except ValueError:
            return
