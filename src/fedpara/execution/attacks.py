"""Attackers: clients that send what is to harm the model. They are the same ones in every round.

- `sign_flip`: an update D becomes -s D (Li, Xu, Chen, Giannakis, Ling, AAAI 2019, with s = 1).
- `scaled_update`: D becomes s D, as in model replacement (Bagdasaryan et al., AISTATS 2020, Eq. 3).
- `label_flip`: a label y becomes C - 1 - y (Fang, Cao, Jia, Gong, USENIX Security 2020, section 4.1).
- `alie`: a little is enough (Baruch, Baruch, Goldberg, NeurIPS 2019, Algorithm 3): the mean of the attackers' own
  honest models minus z of their standard deviations, in each value. All of them send it; clients of different size
  (`fedpara.federation.tiers`) do so among those of their own.

All but `label_flip` train honestly first. Then they change the trained values that travel, and go on as honest clients
do: what an algorithm or a link makes of a trained model, it makes of this one.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Literal, get_args

import numpy as np
import torch

from fedpara.execution.base import Around, ClientFailure, ClientTask, Executor, LocalResult
from fedpara.sampling import derive_seed
from fedpara.state import State, combine, difference, only

log = logging.getLogger(__name__)
Attack = Literal["sign_flip", "scaled_update", "label_flip", "alie"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


class Attackers(Around):
    """An executor some of whose clients attack; which ones depends only on the data module's seed.

    Args:
        executor: trains the clients, and tests models.
        share: of all clients.
        attack: what they do.
        strength: s, which `scaled_update` must have and which is otherwise 1; for `alie` z, by default `alie_z`;
            `label_flip` has none.

    Attributes:
        clients: who they are.

    Raises:
        ValueError: the share is less than one client, the strength is missing or too much, or labels are not classes.
    """

    def __init__(self, executor: Executor, share: float, attack: Attack, strength: float | None) -> None:
        super().__init__(executor)
        self.attack, self.strength = attack, strength
        if attack == "scaled_update" and strength is None:
            raise ValueError("strength=None: must be given with attack=scaled_update")
        if attack == "label_flip" and strength is not None:
            raise ValueError(f"strength={strength}: must be None with attack=label_flip")
        data = executor.datamodule
        if attack == "label_flip" and data.num_classes is None:
            raise ValueError("attack=label_flip: needs labels that are classes, data.num_classes is None")
        if not (number := round(share * data.num_clients)):
            raise ValueError(f"attackers={share}: must be at least one of the {data.num_clients} clients, or 0")
        draw = np.random.default_rng(derive_seed(data.seed, 0, 0, "attackers"))
        self.clients = frozenset(draw.choice(data.num_clients, number, replace=False).tolist())
        if attack == "label_flip":
            data.flipped = self.clients
        log.info("attackers (%s): clients %s", attack, ", ".join(map(str, sorted(self.clients))))

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Yield the outcomes in the order of the tasks; with `alie` the attackers' come last, since they collude."""
        mine: dict[int, ClientTask] = {}
        number = 0

        def noted() -> Iterator[ClientTask]:
            nonlocal number
            for task in tasks:
                number += 1
                if task.client in self.clients:
                    mine[task.client] = task
                yield task

        colluding: list[LocalResult] = []
        for outcome in self.inner.run(noted()):
            if outcome.client not in mine or isinstance(outcome, ClientFailure) or self.attack == "label_flip":
                yield outcome
            elif self.attack == "alie":
                colluding.append(outcome)
            else:
                yield self._scaled(outcome, mine[outcome.client])
        z = alie_z(number, len(colluding)) if self.strength is None else self.strength
        for those in _by_size(colluding):
            sent = a_little([only(self._attacked(mine[result.client]), result.state) for result in those], z)
            yield from (replace(result, state=result.state | sent) for result in those)

    def _attacked(self, task: ClientTask) -> list[str]:
        """The trained values that travel."""
        return [name for name in self.trainable if name not in task.personal]

    def _scaled(self, result: LocalResult, task: ClientTask) -> LocalResult:
        """The result with an update s or -s times as long."""
        factor = (1.0 if self.strength is None else self.strength) * (-1 if self.attack == "sign_flip" else 1)
        names = self._attacked(task)
        update = difference(result.state, task.state, names)
        return replace(result, state=result.state | combine(only(names, task.state), factor, update))


def _by_size(results: Iterable[LocalResult]) -> Iterable[list[LocalResult]]:
    """The results in groups of one size: with tiers a value of one network has no counterpart in a smaller one."""
    groups: dict[tuple[torch.Size, ...], list[LocalResult]] = {}
    for result in results:
        groups.setdefault(tuple(tensor.shape for tensor in result.state.values()), []).append(result)
    return groups.values()


def alie_z(num_clients: int, num_attackers: int) -> float:
    """z with which enough honest clients are further out than the attackers, so that these pass for a majority.

    s = floor(n / 2 + 1) - m honest clients are needed: z is the quantile (n - m - s) / (n - m) of the standard normal
    distribution (Algorithm 3, lines 1 and 2). It is 0 where that is below a half, and a majority of attackers counts as
    the largest minority.

    Example:
        >>> round(alie_z(50, 24), 2)
        1.43
    """
    n, m = num_clients, min(num_attackers, (num_clients - 1) // 2)
    needed = n // 2 + 1 - m
    share = (n - m - needed) / (n - m)
    return max(0.0, NormalDist().inv_cdf(share)) if 0 < share < 1 else 0.0


def a_little(states: Sequence[State], z: float) -> State:
    """mean - z std of each value of the states; the deviation is that of these states, not an estimate for others."""
    together = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {name: x.mean(dim=0) - z * x.std(dim=0, correction=0) for name, x in together.items()}
