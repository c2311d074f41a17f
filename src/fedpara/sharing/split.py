"""Which tensors travel and which stay with the client: one declared split of a model's names."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from pydantic import Field, validate_call
from torch.optim import Optimizer

from fedpara.state import Parts, State, only


class Split:
    """Shared and personal names: disjoint, and together every parameter and buffer.

    What travels may be cut into pieces: a tensor, or each branch of a stack. `catch_up` sends only the pieces that a
    client lacks; a split may also train and send back only some of them in a round (`Rotating`).

    Args:
        names: every name of the model's state.
        personal: fnmatch patterns of the names that never leave the client.
        tied: further names of tensors that have several, each with the one in `names`, as `first_names` gives them.
        personal_rate: the learning rate of what is personal, as a multiple of the optimizer's.
        stacks: names of the tensors whose first dimension is the branch of a factorisation.

    Raises:
        ValueError: a pattern matches no name, or only some of the names of one tensor; or there is a rate for a
            personal part and no such part.

    Example:
        >>> split = Split(["body.weight", "head.weight", "head.bias"], personal=["head.*"])
        >>> split.shared, split.personal
        (['body.weight'], ['head.weight', 'head.bias'])
    """

    @validate_call
    def __init__(
        self,
        names: Iterable[str],
        personal: list[str] | None = None,
        tied: Mapping[str, str] | None = None,
        personal_rate: Annotated[float, Field(gt=0)] = 1.0,
        stacks: Iterable[str] = (),
    ) -> None:
        names, personal, tied, stacked = list(names), personal or [], tied or {}, set(stacks)
        for pattern in personal:
            if not any(fnmatchcase(name, pattern) for name in [*names, *tied]):
                hint = "; sharing=pfedpara needs factorization=pfedpara" if "parametrizations" in pattern else ""
                raise ValueError(f"personal={pattern!r}: matches no parameter or buffer of the model{hint}")
        self.personal = [name for name in names if any(fnmatchcase(name, pattern) for pattern in personal)]
        self.shared = [name for name in names if name not in set(self.personal)]
        self.stacks = [name for name in self.shared if name in stacked]
        self.personal_rate = personal_rate
        if personal_rate != 1 and not self.personal:
            raise ValueError(f"personal_rate={personal_rate}: must be 1 where nothing is personal")
        for name, first in tied.items():
            if any(fnmatchcase(name, pattern) for pattern in personal) != (first in self.personal):
                raise ValueError(f"personal={personal}: must match both of {first} and {name}, one tensor, or none")

    def shared_part(self, state: State) -> State:
        """The tensors that travel."""
        return only(self.shared, state)

    def personal_part(self, state: State) -> State:
        """The tensors that stay with the client."""
        return only(self.personal, state)

    def cut(self, shared: State) -> State:
        """What travels in pieces, which are views: `<name>`, or `<name>[0]` and `<name>[1]` of a stack."""
        pieces: State = {}
        for name, whole in shared.items():
            pieces |= {f"{name}[{i}]": part for i, part in enumerate(whole)} if name in self.stacks else {name: whole}
        return pieces

    def put(self, shared: State, pieces: State) -> State:
        """What travels, with some pieces replaced by new ones."""
        new = self.cut(shared) | pieces
        return {
            name: torch.stack([new[f"{name}[{i}]"] for i in range(len(whole))]) if name in self.stacks else new[name]
            for name, whole in shared.items()
        }

    def set_rates(self, module: Any) -> None:
        """Give the module the learning rates of what is personal, in place of those of another split.

        Raises:
            ValueError: it makes its own optimizer.
        """
        if hasattr(module, "personal_rates"):
            module.personal_rates = {} if self.personal_rate == 1 else dict.fromkeys(self.personal, self.personal_rate)
        elif self.personal_rate != 1:
            name = type(module).__name__
            raise ValueError(f"personal_rate={self.personal_rate}: must be 1, {name} makes its own optimizer")

    def require_steps(self, jacobian_correction: float) -> None:
        """Refuse FedPara's regulariser where it does not fit: its equation has one rate for all factors of a weight.

        Raises:
            ValueError: the message names the key and the allowed value.
        """
        if self.personal_rate == 1 or not jacobian_correction:
            return
        personal, shared = (
            {name.rpartition(".")[0] for name in names if ".parametrizations." in f".{name}"}
            for names in (self.personal, self.shared)
        )
        if split := sorted(personal & shared):
            raise ValueError(
                f"personal_rate={self.personal_rate:g}: must be 1 with factorization.jacobian_correction, whose "
                f"equation has one rate for all factors of {split[0].partition('.parametrizations.')[0]}"
            )

    def require(self, optimizer: Optimizer) -> None:
        """Refuse a local optimizer that does not fit the split; here every optimizer is fine.

        Raises:
            ValueError: the message names the optimizer's key and the allowed value.
        """

    def require_round(self, server: Parts, error_feedback: bool, private: bool) -> None:
        """Refuse an algorithm by what its server keeps, a link with error feedback, privacy; here all are fine.

        Raises:
            ValueError: the message names what does not fit, and what does.
        """

    def started(self, shared: State, round_index: int) -> State:
        """What travels as a client starts from it, and what a round adds to the model: nothing."""
        return shared

    def movable(self, shared: State) -> State:
        """All that some round trains and sends back, by the names in which it does."""
        return shared

    def moving(self, shared: State, round_index: int) -> State:
        """The part of what travels that a round trains and sends back: all of it."""
        return shared

    def sent(self, state: State, round_index: int) -> State:
        """The part of a trained model that a client sends back, by the names of `moving`."""
        return self.moving(self.shared_part(state), round_index)

    def moved(self, shared: State, moving: State, round_index: int) -> State:
        """What travels after a round that gave its `moving` part these values."""
        return moving

    def trained(self, round_index: int) -> State:
        """Factors of the gradients by name, which broadcast: 1 where a round trains, 0 where it does not; none: 1."""
        return {}
