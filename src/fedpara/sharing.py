"""Which tensors travel and which stay with the client: one declared split of a model's names."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field, validate_call

from fedpara.state import State


class Split:
    """Shared and personal names: disjoint, and together every parameter and buffer.

    Args:
        names: every name of the model's state.
        personal: fnmatch patterns of the names that never leave the client.
        tied: further names of tensors that have several, each with the one in `names`, as `first_names` gives them.
        personal_rate: the learning rate of what is personal, as a multiple of the optimizer's.

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
    ) -> None:
        names, personal, tied = list(names), personal or [], tied or {}
        for pattern in personal:
            if not any(fnmatchcase(name, pattern) for name in [*names, *tied]):
                hint = "; sharing=pfedpara needs factorization=pfedpara" if "parametrizations" in pattern else ""
                raise ValueError(f"personal={pattern!r}: matches no parameter or buffer of the model{hint}")
        self.personal = [name for name in names if any(fnmatchcase(name, pattern) for pattern in personal)]
        self.shared = [name for name in names if name not in set(self.personal)]
        self.personal_rate = personal_rate
        if personal_rate != 1 and not self.personal:
            raise ValueError(f"personal_rate={personal_rate}: must be 1 where nothing is personal")
        for name, first in tied.items():
            if any(fnmatchcase(name, pattern) for pattern in personal) != (first in self.personal):
                raise ValueError(f"personal={personal}: must match both of {first} and {name}, one tensor, or none")

    def shared_part(self, state: State) -> State:
        """The tensors that travel."""
        return {name: state[name] for name in self.shared}

    def personal_part(self, state: State) -> State:
        """The tensors that stay with the client."""
        return {name: state[name] for name in self.personal}
