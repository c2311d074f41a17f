"""Injected faults: clients fail as in a real federation, or attack, and do so alike in every run with the same seed."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, SkipValidation, validate_call

from fedpara.execution.attacks import ATTACKS, Attack, Attackers
from fedpara.execution.base import Around, ClientFailure, ClientTask, Executor, FailureKind, LocalResult
from fedpara.sampling import derive_seed
from fedpara.state import State

Share = Annotated[float, Field(ge=0, le=1)]
ERRORS: dict[FailureKind, Exception] = {
    "crashed": RuntimeError("injected"),
    "out_of_memory": MemoryError("injected"),
}


class FaultInjection(Around):
    """An executor with clients that fail; which ones fail depends only on (seed, round, client, attempt).

    A client that diverges trains and then returns a NaN and an infinity, which the server must find. The others do not
    train, because the server gets nothing from a client that never answers, answers after the deadline or dies.

    Args:
        executor: trains the clients that do not fail, and tests models.
        dropout, straggle, nan, crash, out_of_memory: shares of the clients that never answer, answer too late, return
            NaN, raise an exception, or run out of memory; their sum is at most 1.
        attackers: share of all clients that attack; the same ones in every round.
        attack, strength: what they do, and how strongly: see `Attackers`.

    Raises:
        ValueError: the sum of the shares is above 1, or the attack cannot be made.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        executor: Annotated[Executor, SkipValidation],
        dropout: Share = 0.0,
        straggle: Share = 0.0,
        nan: Share = 0.0,
        crash: Share = 0.0,
        out_of_memory: Share = 0.0,
        attackers: Share = 0.0,
        attack: Attack | None = None,
        strength: Annotated[float, Field(gt=0, le=1e38)] | None = None,
    ) -> None:
        if attackers and not attack:
            raise ValueError(f"attack=None: must be one of {', '.join(ATTACKS)} with attackers={attackers}")
        super().__init__(Attackers(executor, attackers, attack, strength) if attackers and attack else executor)
        self.shares: dict[FailureKind, float] = {
            "dropped": dropout, "late": straggle, "diverged": nan, "crashed": crash, "out_of_memory": out_of_memory,
        }  # fmt: skip
        if (total := sum(self.shares.values())) > 1 + 1e-9:
            raise ValueError(
                f"dropout={dropout}: the shares of all faults must sum to at most 1, they sum to {total:g}"
            )

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Yield the results of the clients that do not fail, in the order of the tasks, then the failures."""
        fates: dict[int, FailureKind] = {}

        def training() -> Iterator[ClientTask]:
            for task in tasks:
                if fate := self.fate(task):
                    fates[task.client] = fate
                if fate in (None, "diverged"):
                    yield task

        for outcome in self.inner.run(training()):
            if isinstance(outcome, LocalResult) and outcome.client in fates:
                outcome = replace(outcome, state=_injured(outcome.state))
            yield outcome
        yield from (
            ClientFailure(client, kind, ERRORS.get(kind), outside=True)
            for client, kind in fates.items()
            if kind != "diverged"
        )

    def fate(self, task: ClientTask) -> FailureKind | None:
        """The failure of the task, or None; the task's own seed is a function of (seed, round, client)."""
        draw = np.random.default_rng(derive_seed(task.seed, task.attempt, task.client, "fault")).random()
        for kind, share in self.shares.items():
            if draw < share:
                return kind
            draw -= share
        return None


def _injured(state: State) -> State:
    """The state with a NaN first and an infinity last in its first floating-point tensor."""
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    tensor = state[name].clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[-1], tensor.view(-1)[0] = float("inf"), float("nan")
    return state | {name: tensor}
