"""Rotating factors: a round trains and sends back one group of the factors, in turn; the others are frozen.

The scheme is that of alternating low-rank adapters, RoLoRA (Chen et al., NeurIPS 2025, arXiv 2502.01755) and LoRA-A^2
(Koo et al., ACL 2025, arXiv 2410.22815), for FedPara's two branches. Where W is linear in a group, the mean of the
clients' W is the W of the mean: that is so with `groups=factors` and without tanh, and for the low-rank baseline.

LoRA-A^2 counts uploads alone. A frozen factor is also no news to a client that kept it: `federation.catch_up` sends a
client only what it lacks, of all rounds that it missed, and counts it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, validate_call
from torch.optim import Optimizer

from fedpara.sharing.split import Split
from fedpara.state import Parts, State

FACTOR = re.compile(r"(?:^|\.)parametrizations\.\w+\.0\.([xyt])([12]?)$")
TURNS = ("", "1", "2", "x", "y", "t", "x1", "y1", "t1", "x2", "y2", "t2")  # groups in their order, by label
MOVES = ("weight_decay", "lambd")  # an optimizer's keys by which it changes parameters without a gradient


class Rotating(Split):
    """Trains and sends back one group of factors a round; everything that is no factor in every round.

    Args:
        names, personal, tied, personal_rate, stacks: those of `Split`; `fedpara.nn.stacked_factors` gives the stacks.
        groups: `cores`: X1, Y1 | X2, Y2 | T1, T2. `branches`: X1, Y1, T1 | X2, Y2, T2. `factors`: each of them alone.

    Attributes:
        turns: the pieces of each group.

    Raises:
        ValueError: what travels has fewer than two groups of factors, as in a dense network.

    Example:
        >>> layer = "0.parametrizations.weight.0."
        >>> split = Rotating(["0.bias", f"{layer}x", f"{layer}y"], stacks=[f"{layer}x", f"{layer}y"])
        >>> model = {"0.bias": torch.ones(3), f"{layer}x": torch.ones(2, 3, 1), f"{layer}y": torch.ones(2, 4, 1)}
        >>> [name.removeprefix(layer) for name in split.moving(model, round_index=1)]
        ['0.bias', 'x[1]', 'y[1]']
    """

    @validate_call
    def __init__(
        self,
        names: Iterable[str],
        personal: list[str] | None = None,
        tied: Mapping[str, str] | None = None,
        personal_rate: Annotated[float, Field(gt=0)] = 1.0,
        *,
        stacks: Iterable[str],
        groups: Literal["cores", "branches", "factors"] = "cores",
    ) -> None:
        super().__init__(names, personal, tied, personal_rate, stacks)
        turns: dict[str, set[str]] = {}
        for name in self.shared:
            if found := FACTOR.search(name):
                kind, number = found.groups()
                branches = [(f"{name}[{i}]", str(i + 1)) for i in (0, 1)] if name in self.stacks else [(name, number)]
                for piece, branch in branches:
                    label = {"cores": "t" if kind == "t" else branch, "branches": branch, "factors": kind + branch}
                    turns.setdefault(label[groups], set()).add(piece)
        if len(turns) < 2:
            raise ValueError(
                f"groups={groups}: must give two groups of factors that travel, and gives {len(turns)}; a dense "
                "network has no factors, a low-rank one has no branches"
            )
        self.turns = [turns[label] for label in TURNS if label in turns]
        self._factors = set().union(*self.turns)

    def require(self, optimizer: Optimizer) -> None:
        """What is frozen has a gradient of 0, with which an optimizer must not move it."""
        for key in MOVES:
            if value := next((group[key] for group in optimizer.param_groups if group.get(key)), 0):
                raise ValueError(f"{key}={value}: must be 0 with rotating factors, it would change the frozen ones")

    def require_steps(self, jacobian_correction: float) -> None:
        """The regulariser's step is that of all factors."""
        if jacobian_correction:
            raise ValueError(
                f"jacobian_correction={jacobian_correction}: must be 0 with rotating factors, "
                "it corrects a step of all factors"
            )

    def require_round(self, server: Parts, error_feedback: bool, private: bool) -> None:
        """What an algorithm keeps beside the model is not made for rounds that train a part of it."""
        if kept := sorted(server.keys() - {"model"}):
            raise ValueError(
                f"rotating factors and an algorithm whose server keeps {', '.join(kept)} beside the model: "
                "take algorithm=fedavg or fedprox"
            )

    def movable(self, shared: State) -> State:
        """All pieces."""
        return self.cut(shared)

    def moving(self, shared: State, round_index: int) -> State:
        """The pieces of the round's group, and all that are no factors."""
        moving = self._turn(round_index)
        return {
            piece: tensor for piece, tensor in self.cut(shared).items() if piece in moving or piece not in self._factors
        }

    def moved(self, shared: State, moving: State, round_index: int) -> State:
        """The same with the round's pieces replaced."""
        return self.put(shared, moving)

    def trained(self, round_index: int) -> State:
        """Of each factor: a number, or (2, 1, 1) for a stack of branches."""
        moving = self._turn(round_index)
        names = dict.fromkeys(piece.partition("[")[0] for piece in sorted(self._factors))
        return {name: self._factor(name, moving) for name in names}

    def _turn(self, round_index: int) -> set[str]:
        return self.turns[round_index % len(self.turns)]

    def _factor(self, name: str, moving: set[str]) -> torch.Tensor:
        if name in self.stacks:
            return torch.tensor([float(f"{name}[{i}]" in moving) for i in (0, 1)]).view(2, 1, 1)
        return torch.tensor(float(name in moving))
