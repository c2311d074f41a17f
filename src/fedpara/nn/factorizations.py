"""Factorised weights as `torch.nn.utils.parametrize` parametrizations that own their factors.

FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).
Each class composes the weight W of one layer; the layer (`nn.Linear`, `nn.Conv2d`, ...) keeps its class and its bias.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedpara.nn.ranks import Shape

Nonlinearity = Callable[[Tensor], Tensor]


def matrix_product(x: Tensor, y: Tensor, shape: Shape) -> Tensor:
    """X Y^T, reshaped to the weight's shape. x: (m, R), y: (n, R)."""
    return (x @ y.T).reshape(shape)


def tucker_product(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """T x1 X x2 Y as two matrix products (Proposition 3). x: (O, R), y: (I, R), t: (R, R, *K) -> (O, I, *K).

    With the core in channels_last memory nothing is copied, and W comes out in channels_last, as convolutions prefer.
    """
    out_features, rank = x.shape
    kernel = t.shape[2:]
    core = t.movedim(1, -1).reshape(rank, -1)
    columns = (x @ core).reshape(-1, rank) @ y.T
    return columns.view(out_features, *kernel, y.shape[0]).movedim(-1, 1)


class Factorization(nn.Module):
    """Base: the factors of one weight, in one or more branches X Y^T (or T x1 X x2 Y).

    Used with `parametrize.register_parametrization(layer, "weight", factorization)`: the layer's own weight is
    dropped (`right_inverse` is empty), and the factors become its parameters, under names such as
    `conv1.parametrizations.weight.0.x1`.
    """

    def __init__(self, shape: Shape, rank: int, tucker: bool, branches: tuple[str, ...]) -> None:
        super().__init__()
        self.shape, self.rank, self.tucker, self.branches = tuple(shape), rank, tucker, branches
        columns = shape[1] if tucker else torch.Size(shape[1:]).numel()
        for branch in branches:
            self.register_parameter(f"x{branch}", nn.Parameter(torch.empty(shape[0], rank)))
            self.register_parameter(f"y{branch}", nn.Parameter(torch.empty(columns, rank)))
            if tucker:
                core = torch.empty(rank, rank, *shape[2:])
                if core.dim() == 4:
                    core = core.to(memory_format=torch.channels_last)
                self.register_parameter(f"t{branch}", nn.Parameter(core))

    def product(self, branch: str) -> Tensor:
        """One branch of the composition, in the weight's shape."""
        x, y = getattr(self, f"x{branch}"), getattr(self, f"y{branch}")
        if self.tucker:
            return tucker_product(x, y, getattr(self, f"t{branch}"))
        return matrix_product(x, y, self.shape)

    def compose(self) -> Tensor:
        """W from the factors."""
        raise NotImplementedError

    def branch_stds(self, target: float) -> list[float]:
        """Standard deviations of independent branches that give W about the standard deviation `target`."""
        return [target ** (1 / len(self.branches))] * len(self.branches)

    def forward(self) -> Tensor:
        """W in the factors' precision, also under autocast: bf16 would cost 0.4 % of each weight."""
        with torch.autocast(getattr(self, f"x{self.branches[0]}").device.type, enabled=False):
            return self.compose()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """No tensor of the dense weight is kept; assigning to a factorised weight is an error of `parametrize`."""
        return ()

    def extra_repr(self) -> str:
        """What `print(network)` shows of the composition."""
        return f"shape={self.shape}, rank={self.rank}, {'tucker' if self.tucker else 'matrix'}"


class LowRank(Factorization):
    """W = X Y^T, rank <= R; for a convolution T x1 X x2 Y (Tucker-2, Phan et al. 2020) or the reshaped matrix."""

    def __init__(self, shape: Shape, rank: int, tucker: bool) -> None:
        super().__init__(shape, rank, tucker, branches=("",))

    def compose(self) -> Tensor:
        """W = X Y^T or T x1 X x2 Y."""
        return self.product("")


class Hadamard(Factorization):
    """W = s(W1) * s(W2), W_i = X_i Y_i^T (Proposition 1) or T_i x1 X_i x2 Y_i (Proposition 3): rank <= R^2.

    Args:
        nonlinearity: s, applied to both branches before the product (appendix B: tanh; `None` is the identity).
    """

    def __init__(self, shape: Shape, rank: int, tucker: bool, nonlinearity: Nonlinearity | None = torch.tanh) -> None:
        super().__init__(shape, rank, tucker, branches=("1", "2"))
        self.nonlinearity = nonlinearity

    def compose(self) -> Tensor:
        """W = s(W1) * s(W2), elementwise."""
        first, second = self.product("1"), self.product("2")
        if self.nonlinearity is None:
            return first * second
        return self.nonlinearity(first) * self.nonlinearity(second)


class PersonalHadamard(Factorization):
    """W = W1 * (W2 + 1) = W1 * W2 + W1 (pFedPara, section 2.3): W1 is everyone's, W2 is the client's own.

    No non-linearity, as in the paper; with W2 = 0 the weight is the global one. That x2, y2 and t2 stay with the client
    is said by the split, `configs/sharing/pfedpara.yaml`.
    """

    def __init__(self, shape: Shape, rank: int, tucker: bool) -> None:
        super().__init__(shape, rank, tucker, branches=("1", "2"))

    def compose(self) -> Tensor:
        """W = W1 * (W2 + 1), elementwise."""
        return self.product("1") * (self.product("2") + 1)

    def branch_stds(self, target: float) -> list[float]:
        """W2 of unit size: its gradient is W1 times W's, so that a smaller one would hardly learn beside W1."""
        return [target / 2**0.5, 1.0]
