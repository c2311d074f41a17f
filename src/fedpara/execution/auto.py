"""The executor that our benchmark found fastest for a network on a machine (docs/results/speed.md)."""

import logging
import os
from collections.abc import Iterator
from functools import partial

import torch
from pydantic import validate_call

from fedpara.execution.base import Around, MakeExecutor
from fedpara.execution.processes import ProcessesExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.training import LocalTraining
from fedpara.execution.vectorized import VectorizedExecutor

log = logging.getLogger(__name__)
TOGETHER = 4  # clients in one computation: fewer gain little, and with more a round's last chunks leave workers idle


class AutoExecutor(Around):
    """The first executor in this list that the network and the trainer allow; it is chosen once there are data to try.

    On a GPU: whole epochs, with one process per GPU if there are several. On several cores: one worker process per
    core, which trains several clients in one computation if they fit into a processor's cache. On one core: several
    clients in one computation if they fit, else one client after the other.

    Args:
        training: how one client is trained.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(self, training: LocalTraining) -> None:
        super().__init__(SerialExecutor(training))

    def prepare(self) -> None:
        """Check the network as the serial executor does, then choose an executor."""
        self.inner.prepare()
        for make in self._candidates():
            try:
                candidate = make(self.training)
                candidate.prepare()
            except ValueError:  # choosing it explicitly reports why it cannot be used
                continue
            self.inner = candidate
            break
        within = f" of {type(self.inner.inner).__name__}" if isinstance(self.inner, ProcessesExecutor) else ""
        log.info("executor: %s%s", type(self.inner).__name__, within)

    def _candidates(self) -> Iterator[MakeExecutor]:
        cuda = self.device.type == "cuda"
        several = torch.cuda.device_count() > 1 if cuda else len(os.sched_getaffinity(0)) > 1
        if cuda:
            whole = partial(SerialExecutor, whole_epochs=True)
            yield from [partial(ProcessesExecutor, inner=whole)] if several else []
            yield whole
            return
        if self._together_pays():
            vectorized = partial(VectorizedExecutor, chunk_size=TOGETHER)
            yield partial(ProcessesExecutor, inner=vectorized, chunk=TOGETHER) if several else vectorized
        yield from [ProcessesExecutor] if several else []

    def _together_pays(self) -> bool:
        """Whether several clients can be trained together and fit into a processor's cache."""
        try:
            return VectorizedExecutor(self.training).affordable() >= TOGETHER
        except ValueError:
            return False
