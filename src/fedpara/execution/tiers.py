"""Clients of different size: an executor for each, and tasks go to the one whose network they fit."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch

from fedpara.execution.auto import AutoExecutor
from fedpara.execution.base import Around, ClientFailure, ClientTask, Executor, LocalResult, MakeExecutor
from fedpara.execution.dispatch import ParallelExecutor
from fedpara.execution.serial import SerialExecutor
from fedpara.execution.training import LocalTraining
from fedpara.nn import narrow
from fedpara.nn.nested import Ranks
from fedpara.state import State, tensors

Shapes = tuple[torch.Size, ...]


class TieredExecutor(Around):
    """An executor for each size of network: the whole one, and one for each tier with fewer columns (`nn/nested.py`).

    A client's network is really small: it has the parameters, gradients and products of its own rank. One process
    holds a network of each size. Sizes are told by the shapes of the states.

    Args:
        training: settings of one client's training, with the whole network.
        make: makes each executor.
        ranks: of the tiers, by factorised weight; equal ones share an executor.

    Raises:
        ValueError: there is a Jacobian correction, which is that of a weight without scale.
    """

    def __init__(self, training: LocalTraining, make: MakeExecutor, ranks: Sequence[Ranks]) -> None:
        if training.jacobian_correction:
            raise ValueError(
                f"jacobian_correction={training.jacobian_correction}: must be 0 with federation.tiers, "
                "whose small networks scale their weights"
            )
        small = [copy.deepcopy(training.module) for _ in ranks]  # before the first executor changes the module
        super().__init__(make(training))
        self._executors: dict[Shapes, Executor] = {_shapes(self.inner.initial_state()): self.inner}
        for module, own in zip(small, ranks, strict=True):
            shapes = _shapes(tensors(narrow(module.network, own)))
            if shapes not in self._executors:
                self._executors[shapes] = make(replace(training, module=module))

    def prepare(self) -> None:
        """Prepare every executor."""
        for executor in self._executors.values():
            executor.prepare()

    def rehearse(self) -> None:
        """Rehearse on every executor."""
        for executor in self._executors.values():
            executor.rehearse()

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Run the tasks in their order; neighbours of one size go to their executor together."""
        for shapes, group in groupby(tasks, lambda task: _shapes(task.state)):
            yield from self._executors[shapes].run(group)

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """Test the model on the network that it fits."""
        return self._executors[_shapes(state)].evaluate(state, client)

    def close(self) -> None:
        """Close every executor."""
        for executor in self._executors.values():
            executor.close()


def tiered(make: MakeExecutor, ranks: Sequence[Ranks]) -> MakeExecutor:
    """`make` with a network for each tier; if it starts workers, these have one of each size.

    Raises:
        ValueError: it would choose an executor for each size by itself, and start workers for each.
    """
    kind, given = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    if kind is AutoExecutor:
        raise ValueError("executor=auto: must be serial, processes, vectorized or ray with federation.tiers")
    if isinstance(kind, type) and issubclass(kind, ParallelExecutor):
        inner = given.get("inner", SerialExecutor)
        return partial(cast(Any, make), inner=partial(TieredExecutor, make=inner, ranks=ranks))
    return partial(TieredExecutor, make=make, ranks=ranks)


def _shapes(state: State) -> Shapes:
    return tuple(tensor.shape for tensor in state.values())
