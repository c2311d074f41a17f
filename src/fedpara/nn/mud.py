"""FedMUD: a round's update of each weight in factors (Li et al., ICML 2025, arXiv 2505.23176): MUD, AAD and BKD.

MUD, model update decomposition: in a round W = W_frozen + D, where D = U V^T is trained and W_frozen is not. After
the round W_frozen takes D up, and the factors are drawn anew from a seed that both ends know.

AAD, aggregation-aware decomposition: D = U~ V^T + U V~^T. U~ and V~ are drawn from U(-a, a) and not trained; U and V
are 0 at the start. D is linear in (U, V), so that the mean of the clients' factors gives the mean of their updates.
Without AAD both U (drawn) and V (0) are trained, and the mean of the factors does not.

BKD, block-wise Kronecker decomposition: D is cut from a row of k blocks A_i (x) B_i of s^4 values, A_i and B_i of
s x s. s = ceil((mn / k)^(1/4)) with k = ceil(ratio^2 mn / 4), so that 2 k s^2 is about ratio mn. The blocks stand side
by side and are not summed: a sum would have s^4 values, not mn. With s rounded up fewer blocks hold mn values, and
what is left of the k would be cut off whole; we do not make them. So a ratio other than 2 / s^2 gives fewer values.

We read the formulas in abstracts and in the authors' code (Leopold1423/fedmud-icml25, commit 284e36e), not in the
paper. Of a we could verify: 0.3 is the default of that code's command line, and its four scripts for BKD with AAD take
5.0 with a learning rate of 0.01. a sets the speed: by one SGD step with AAD, D moves by about 2 r a^2 / 3 times the
dense step for rank r, by 2 a^2 / 3 times for BKD. The code unfolds a convolution as (O K) x (I K), we as O x (I K K).
"""

import logging
from collections.abc import Iterator
from math import ceil, prod
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedpara.nn.factorizations import Factorization, Factors, product
from fedpara.nn.ranks import Shape
from fedpara.private.torch import own_buffers, own_parameters

log = logging.getLogger(__name__)
TRAINED, FIXED = ("u", "v"), ("fixed_u", "fixed_v")


class Update(Factorization):
    """D from the parameters u and v and, with AAD, from the buffers fixed_u and fixed_v, which are not trained.

    Args:
        shape: shape (O, I, *kernel) of the weight W.
        u, v: the shapes of U and V, or of A and B.
        aad: whether D = U~ V^T + U V~^T; otherwise D = U V^T.
        a: U~ and V~, or U without AAD, are drawn from U(-a, a).
    """

    def __init__(self, shape: Shape, u: Shape, v: Shape, aad: bool, a: float) -> None:
        super().__init__(shape, rank=u[-1], tucker=False, names=())
        self.aad, self.a = aad, a
        self._sides = (u, v)
        start = self.drawn(int(torch.randint(2**62, (), device="cpu")))
        for name in TRAINED:
            self.register_parameter(name, nn.Parameter(start.pop(name)))
        for name, fixed in start.items():
            self.register_buffer(name, fixed)

    @property
    def factors(self) -> Factors:
        """The parameters and the buffers by name."""
        return {**own_parameters(self), **own_buffers(self)}  # type: ignore[dict-item]

    def drawn(self, seed: int) -> Factors:
        """All factors at the start of a round, in float32 on the CPU; they compose 0."""
        generator = torch.Generator().manual_seed(seed)
        factors = {name: torch.zeros(side) for name, side in zip(TRAINED, self._sides, strict=True)}
        if self.aad:
            factors |= {name: torch.zeros(side) for name, side in zip(FIXED, self._sides, strict=True)}
        for name in FIXED if self.aad else TRAINED[:1]:
            factors[name].uniform_(-self.a, self.a, generator=generator)
        return factors

    def compose(self, factors: Factors) -> Tensor:
        """D's unfolding, (..., O, I K)."""
        u, v = (factors[name] for name in TRAINED)
        if not self.aad:
            return self.times(u, v)
        fixed_u, fixed_v = (factors[name] for name in FIXED)
        return self.times(fixed_u, v) + self.times(u, fixed_v)

    def times(self, u: Tensor, v: Tensor) -> Tensor:
        """The product of two factors, as D's unfolding."""
        raise NotImplementedError


class MatrixUpdate(Update):
    """D = U~ V^T + U V~^T, or U V^T, on O x (I K): U is (O, r), V is (I K, r)."""

    def __init__(self, shape: Shape, rank: int, aad: bool = True, a: float = 0.3) -> None:
        super().__init__(shape, (shape[0], rank), (prod(shape[1:]), rank), aad, a)

    def times(self, u: Tensor, v: Tensor) -> Tensor:
        """U V^T."""
        return product(u, v)


class KroneckerUpdate(Update):
    """D is cut from the blocks A~_i (x) B_i + A_i (x) B~_i, or A_i (x) B_i, whose A and B (u and v) are (k, s, s)."""

    def __init__(self, shape: Shape, blocks: int, side: int, aad: bool = True, a: float = 0.3) -> None:
        super().__init__(shape, (blocks, side, side), (blocks, side, side), aad, a)
        self.blocks = blocks

    def times(self, u: Tensor, v: Tensor) -> Tensor:
        """(A_i (x) B_i)[p s + q, m s + n] = A_i[p, m] B_i[q, n], row by row and block after block."""
        blocks = u[..., :, None, :, None] * v[..., None, :, None, :]
        values = blocks.flatten(-5)[..., : prod(self.shape)]
        return values.unflatten(-1, (self.shape[0], -1))

    def extra_repr(self) -> str:
        """The part of `print(network)` that describes the factors."""
        return f"shape={self.shape}, {self.blocks} blocks of {self.rank} x {self.rank}"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MUD:
    """The update of every layer's weight in factors; a federation takes it into the weight after each round.

    Args:
        ratio: parameters of a layer's factors as a share of its weight's, about; a layer with no fewer stays dense.
        aad: whether half of the factors is drawn and fixed, so that the mean over clients is exact.
        kronecker: whether D is made of Kronecker blocks (BKD), in place of a low-rank product.
        a: the factors that are drawn are from U(-a, a).

    Example:
        >>> MUD(ratio=0.1)("layer", torch.empty(256, 784))
        MatrixUpdate(shape=(256, 784), rank=20, matrix)
        >>> MUD(ratio=0.1, kronecker=True)("layer", torch.empty(256, 784))
        KroneckerUpdate(shape=(256, 784), 322 blocks of 5 x 5)
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    aad: bool = True
    kronecker: bool = False
    a: Annotated[float, Field(gt=0, le=1e38)] = 0.3

    def __call__(self, name: str, weight: Tensor) -> Update | None:
        """The factors of one layer; None, with a line in the log, if they are no fewer than the weight's values."""
        shape, number = tuple(weight.shape), weight.numel()
        made = self._make(shape) if number else None
        values = sum(factor.numel() for factor in made.parameters()) if made else 0
        if values >= number:
            log.info("%s stays dense: its factors would have %d values, its weight has %d", name, values, number)
            return None
        return made

    def _make(self, shape: Shape) -> Update:
        if self.kronecker:
            return KroneckerUpdate(shape, *kronecker_size(prod(shape), self.ratio), self.aad, self.a)
        rows, columns = shape[0], prod(shape[1:])
        return MatrixUpdate(shape, max(1, ceil(self.ratio * rows * columns / (rows + columns))), self.aad, self.a)


def kronecker_size(values: int, ratio: float) -> tuple[int, int]:
    """The number k of blocks and the side s of their factors, with which 2 k s^2 is about ratio times the values.

    Example:
        >>> kronecker_size(64 * 64, 0.125)
        (16, 4)
    """
    blocks = ceil(ratio**2 * values / 4)
    side = ceil((values / blocks) ** 0.25 - 1e-9)  # 256^(1/4) must be 4
    return ceil(values / side**4), side


def updates(network: nn.Module) -> Iterator[tuple[str, Update]]:
    """The factors of updates in a network, by the name of their module without its last part, `0`."""
    for name, module in network.named_modules():
        if isinstance(module, Update):
            yield name.removesuffix("0"), module
