"""The step between a round's uploads and the algorithm, and what the rules that keep all uploads have in common.

Clients weigh alike under every rule: a number of examples is a client's own word. Uploads with NaN or infinite values
never come here, the round leaves them out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import repeat
from typing import Self

import torch
from pydantic import PositiveFloat, validate_call
from torch import Tensor

from fedpara.algorithms.base import Upload
from fedpara.communication import Codec
from fedpara.errors import TooFewClients
from fedpara.state import Parts, PartsLayout, State, join, only

BLOCK = 2**20  # values of all uploads together that are worked on at once


class Rule(ABC):
    """How a round's uploads become others, of which the algorithm takes its mean.

    Attributes:
        trained: names of the trained values that travel; the others are statistics and counters.
    """

    trained: frozenset[str] = frozenset()

    def bound_to(self, trained: Iterable[str]) -> Self:
        """A copy for one federation; the original can serve other federations."""
        own = copy(self)
        own.trained = frozenset(trained)
        return own

    @property
    def name(self) -> str:
        """The rule's name in an error."""
        return type(self).__name__

    @abstractmethod
    def require(self, upload: PartsLayout, clients_per_round: int, up_codec: Codec) -> None:
        """Refuse a federation in which the rule would be wrong or take too much memory.

        Args:
            upload: the layout of a client's message.

        Raises:
            ValueError: one line.
        """

    @abstractmethod
    def replaced(self, uploads: Iterable[Upload], known: Parts) -> Iterable[Upload]:
        """As many uploads as came, in their place.

        Args:
            known: what of an upload is in the broadcast: its values there.

        Raises:
            TooFewClients: the rule does not hold for so few; the round is to change nothing.
        """


class Keeping(Rule):
    """A rule that needs all uploads of a round at once.

    The server keeps clients_per_round times the bytes of a decoded upload. It works on blocks of `BLOCK` values, so
    that it takes a few models beside. Each part of an upload (SCAFFOLD sends a model and a change of its control
    variate) is a vector of its own. What is not trained, such as the statistics of a batch norm, takes the
    coordinate-wise median; of an even number of counters the lower one.

    Args:
        memory_gb: the most that the kept uploads may take, in 10^9 bytes.
    """

    @validate_call
    def __init__(self, memory_gb: PositiveFloat = 4.0) -> None:
        self.memory_gb = memory_gb

    @property
    def least(self) -> int:
        """The fewest uploads for which the rule holds."""
        return 1

    @abstractmethod
    def center(self, states: Sequence[State]) -> State:
        """What the trained values of all uploads become."""

    def require(self, upload: PartsLayout, clients_per_round: int, up_codec: Codec) -> None:
        """Refuse cohorts that are too small for the rule or too large for `memory_gb`."""
        if clients_per_round < self.least:
            raise ValueError(f"clients_per_round={clients_per_round}: must be at least {self.least} for {self.name}")
        size = sum(spec.numel() * spec.dtype.itemsize for spec in join(upload).values())
        if (needed := clients_per_round * size / 1e9) > self.memory_gb:
            raise ValueError(
                f"aggregation.memory_gb={self.memory_gb:g}: must be at least {needed:.2g}, {self.name} keeps the "
                f"{clients_per_round} uploads of a round, {size / 1e6:.1f} MB each"
            )

    def replaced(self, uploads: Iterable[Upload], known: Parts) -> Iterable[Upload]:
        """The same upload for each client, so that every algorithm takes it as the mean, and counts right."""
        kept = [upload.parts for upload in uploads]
        if len(kept) < self.least:
            raise TooFewClients(f"{self.name} takes {self.least} uploads")
        parts = {part: self._of_part([one[part] for one in kept]) for part in kept[0]}
        return repeat(Upload(parts, 1), len(kept))

    def _of_part(self, states: Sequence[State]) -> State:
        trained = [name for name in states[0] if name in self.trained]
        found = self.center([only(trained, state) for state in states]) if trained else {}
        return {
            name: found[name] if name in found else reduced([state[name] for state in states], middle)
            for name in states[0]
        }


def blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """The values of n tensors of one shape side by side, (n, columns), a part of the columns at a time."""
    flat, width = [tensor.reshape(-1) for tensor in tensors], max(1, BLOCK // len(tensors))
    for start in range(0, flat[0].numel(), width):
        columns = slice(start, start + width)
        yield columns, torch.stack([one[columns] for one in flat])


def reduced(
    tensors: Sequence[Tensor], function: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None
) -> Tensor:
    """One tensor of n: `function` takes (n, columns) and gives (columns,); in the tensors' own type by default."""
    result = torch.empty(tensors[0].shape, dtype=dtype or tensors[0].dtype)
    flat = result.view(-1)
    for columns, block in blocks(tensors):
        flat[columns] = function(block).to(result.dtype)
    return result


def middle(block: Tensor) -> Tensor:
    """The median of each column, the mean of the middle two of an even number; of whole numbers the lower one."""
    ordered, last = block.sort(dim=0).values, len(block) - 1
    if not block.is_floating_point():
        return ordered[last // 2]
    return (ordered[last // 2].double() + ordered[(last + 1) // 2].double()) / 2


def distances_to(center: State, states: Sequence[State]) -> Tensor:
    """(n,) float64: the Euclidean distance of each state from one, over all its tensors."""
    total = torch.zeros(len(states), dtype=torch.float64)
    for name, tensor in center.items():
        flat = tensor.reshape(-1)
        for columns, block in blocks([state[name] for state in states]):
            total += (block.double() - flat[columns].double()).square().sum(dim=1)
    return total.sqrt()
