"""Factorised weights as `torch.nn.utils.parametrize` parametrizations that own their factors.

FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022).
Each class composes the weight W of one layer; the layer (`nn.Linear`, `nn.Conv2d`, ...) keeps its class and its bias.

Any factor may have extra leading dimensions. The two branches of a Hadamard product are one stack, composed by the
same two batched products; so are the weights of many clients (`fedpara.execution.folding`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fedpara.nn.ranks import Shape
from fedpara.private.torch import own_parameters, transforming

Nonlinearity = Callable[[Tensor], Tensor]
Factors = dict[str, Tensor]
ONE = torch.tensor(1.0)
TINY = 1e-20  # added to a tanh before dividing by it


def product(x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """X Y^T, or T x1 X x2 Y as two matrix products (Propositions 1 and 3).

    The core is given as its unfolding, T[r, k R + s] = T[r, s, k], and so is W returned, W[o K + k, i] = W[o, i, k].
    Both lie like that in channels_last memory, which convolutions prefer, so nothing needs to be copied.

    Args:
        x: (..., O, R).
        y: (..., I, R).
        t: (..., R, K R) with K kernel positions; None: no core.

    Returns:
        (..., O, I), or (..., O K, I) with a core.
    """
    return times(rows_of(x, t), y.mT)


def rows_of(x: Tensor, t: Tensor | None) -> Tensor:
    """X, or X T with a core: the rows (..., O K, R) whose products with the rows of Y are the weight."""
    return x if t is None else times(x, t).view(*x.shape[:-2], -1, x.shape[-1])


def times(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product; a stack goes straight to `bmm`, without the views that `matmul` makes."""
    return torch.bmm(first, second) if first.dim() == 3 else first @ second


def first_columns(name: str, factor: Tensor, rank: int) -> Tensor:
    """The first `rank` columns of a factor x or y, or T[:rank, :rank] of a core's unfolding.

    Args:
        name: the factor's, which starts with x, y or t.
    """
    if name[0] != "t":
        return factor[..., :rank]
    return core_of(factor)[..., :rank, :, :rank].flatten(-2)


def core_of(unfolding: Tensor) -> Tensor:
    """A core as (..., R, K, R), a view of its unfolding (..., R, K R)."""
    return unfolding.unflatten(-1, (-1, unfolding.shape[-2]))


class Transformable(torch.autograd.Function):
    """A function that `torch.func` can transform, without the cost of that when nothing is transformed.

    If a function has a `setup_context`, torch binds its signature in every call: a sixth of a tiny training step.
    """

    @classmethod
    def apply(cls, *tensors: Tensor) -> Any:
        """The same as torch's own `apply`."""
        if transforming():
            return super().apply(*tensors)
        return super(torch.autograd.Function, cls).apply(*tensors)  # type: ignore[misc]  # C has it


class TanhProduct(Transformable):
    """tanh(X1 Y1^T) * tanh(X2 Y2^T), with as few operators, passes over W and copies of it as possible.

    On a CPU tanh z is computed as 1 - 2 sigmoid(-2z), in a third of the time of PyTorch's tanh and with an error of
    6e-8 a branch in float32. That is 7e-7 of W's root mean square at a dense layer's scale, against 3e-7 of PyTorch's,
    and relatively more of a smaller W. In half precision it would be four times as large as PyTorch's.

    A large W determines a step's peak memory, so its second tanh is not kept for the backward pass. It is recomputed as
    W divided by the first tanh, which is never 0. That costs three operators.

    Attributes:
        large: number of values from which on W counts as large.
    """

    large = 2**19

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """From (..., 2, m, R) and (..., 2, n, R) to (..., m, n), followed by the tensors for the backward pass."""
        if x.is_cpu and x.itemsize >= 4:
            tanh = times(x, -2 * y.mT).sigmoid_()
            torch.sub(ONE, tanh, alpha=2, out=tanh)
        else:
            tanh = times(x, y.mT).tanh_()
        first, second = tanh.unbind(-3)
        if first.numel() < TanhProduct.large or first.dim() > 2 or first.itemsize < 4:
            return first * second, tanh
        return second.mul_(first.add_(TINY)), tanh, first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        """Keep the factors and the tanh; the latter is not differentiated."""
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)

    @staticmethod
    def backward(ctx: Any, product: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        """The gradients of X and Y; they can be taken once."""
        differentiated = torch.is_grad_enabled() or transforming()
        gradient = TanhProductGradient.apply if differentiated else TanhProductGradient.forward
        return gradient(product, *ctx.saved_tensors)

    @staticmethod
    def vmap(
        info: Any, dimensions: tuple[int | None, ...], *factors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """A batch of factors has one more leading dimension."""
        outputs = TanhProduct.apply(*_in_front(info.batch_size, dimensions, factors))
        return outputs, (0,) * len(outputs)


class TanhProductGradient(Transformable):
    """The backward pass of `TanhProduct`; a function of its own because it works in place on its results."""

    @staticmethod
    def forward(product: Tensor, x: Tensor, y: Tensor, tanh: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of each branch's product is (1 - tanh^2) times the other's tanh; from it those of X and Y."""
        times_derivative = torch.ops.aten.tanh_backward.grad_input
        gradient = tanh.flip(-3)
        product = product if product.dim() == 2 else product.unsqueeze(-3)  # for both branches
        if kept:
            (first,) = kept
            to_first, to_second = gradient.unbind(-3)
            to_first.div_(first)
            times_derivative(to_second, to_first, grad_input=to_second)
            times_derivative(to_first, first, grad_input=to_first)
            gradient.mul_(product)
        else:
            gradient.mul_(product)
            times_derivative(gradient, tanh, grad_input=gradient)
        return times(gradient, y), times(gradient.mT, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        """Refuse: an in-place operation cannot be differentiated twice."""
        raise RuntimeError(
            "a tanh product can be differentiated only once; for higher derivatives use Hadamard.compose"
        )

    @staticmethod
    def vmap(
        info: Any, dimensions: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """A batch has one more leading dimension."""
        return TanhProductGradient.apply(*_in_front(info.batch_size, dimensions, tensors)), (0, 0)


@dataclass(frozen=True)
class Composition:
    """A weight of `Hadamard`, and what its backward pass keeps.

    Attributes:
        rows: X, or X T, of shape (..., 2, m, R).
        product: the weight's unfolding, s(W1) * s(W2), of shape (..., m, n).
        stack: s(W1) and s(W2), (..., 2, m, n); if `divided`, the product lies in the place of s(W2).
    """

    rows: Tensor
    product: Tensor
    stack: Tensor
    divided: bool = False

    def branches(self, rows: slice) -> Tensor:
        """s of both branches in some rows of W, (..., 2, b, n)."""
        if not self.divided:
            return self.stack[..., rows, :]
        first, product = self.stack[..., rows, :].unbind(-3)
        return torch.stack([first, product / first], -3)


def _in_front(size: int, dimensions: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor with its batch dimension first; a tensor without one is expanded."""
    pairs = zip(dimensions, tensors, strict=True)
    return [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for d, t in pairs]


class Factorization(nn.Module):
    """Base class: the factors of one weight; each branch is an X Y^T (or T x1 X x2 Y).

    Use it as `parametrize.register_parametrization(layer, "weight", factorization)`. The layer's own weight is dropped
    (`right_inverse` is empty), and the factors become its parameters, under names such as
    `conv1.parametrizations.weight.0.x`: (O, R), (I, R) and the core's unfolding (R, K R).

    Args:
        shape: shape (O, I, *kernel) of the weight W.
        rank: R.
        tucker: whether convolutions keep their kernel in a core (Proposition 3); otherwise W is O x (I K).
        stack: number of branches that share one stack of factors, of shape (stack, O, R) and so on; 0: no stack.
        names: endings of the factors' names, one for each branch or stack with factors of its own.

    Attributes:
        gradient_scale: factor of the gradients of all its factors, so of their learning rate, with SGD.
        branch_scale: factor of each branch; 1 unless `narrow` left out columns.
    """

    gradient_scale = 1.0
    branch_scale = 1.0

    def __init__(self, shape: Shape, rank: int, tucker: bool, stack: int = 0, names: tuple[str, ...] = ("",)) -> None:
        super().__init__()
        self.shape, self.rank, self.tucker = tuple(shape), rank, tucker
        leading = (stack,) if stack else ()
        columns = shape[1] if tucker else torch.Size(shape[1:]).numel()
        for name in names:
            self.register_parameter(f"x{name}", nn.Parameter(torch.empty(*leading, shape[0], rank)))
            self.register_parameter(f"y{name}", nn.Parameter(torch.empty(*leading, columns, rank)))
            if tucker:
                core = torch.empty(*leading, rank, torch.Size(shape[2:]).numel() * rank)
                self.register_parameter(f"t{name}", nn.Parameter(core))

    @property
    def factors(self) -> Factors:
        """The parameters by name, without `named_parameters`' walk over submodules; Y is scaled by `branch_scale`."""
        own: Factors = dict(own_parameters(self))  # type: ignore[arg-type]
        if self.branch_scale == 1:
            return own
        return {name: self.branch_scale * factor if name[0] == "y" else factor for name, factor in own.items()}

    @torch.no_grad()
    def narrow(self, rank: int) -> None:
        """Keep the first columns of X and Y and the core's part that belongs to them, in place (`nn/nested.py`)."""
        for name, factor in own_parameters(self).items():
            assert factor is not None
            kept = nn.Parameter(first_columns(name, factor, rank).clone(), factor.requires_grad)
            self.register_parameter(name, kept)
        self.branch_scale *= (self.rank / rank) ** (1.0 if self.tucker else 0.5)
        self.rank = rank

    def compose(self, factors: Factors) -> Tensor:
        """The formula: W's unfolding from the factors by name."""
        raise NotImplementedError

    def composed(self) -> Tensor:
        """W's unfolding from the module's own factors, computed in the fastest way."""
        return self.compose(self.factors)

    def forward(self) -> Tensor:
        """W in the precision of the factors, also under autocast: bf16 would change each weight by 0.4 %."""
        device = next(iter(own_parameters(self).values())).device  # type: ignore[union-attr]
        with torch.autocast(device.type, enabled=False):
            weight = self.refold(self.composed())
        if self.gradient_scale != 1 and weight.requires_grad:
            weight.register_hook(lambda gradient: self.gradient_scale * gradient)
        return weight

    def refold(self, unfolding: Tensor) -> Tensor:
        """W in its own shape, from its unfolding."""
        leading = unfolding.shape[:-2]
        if not self.tucker:
            return unfolding.view(*leading, *self.shape)
        outputs, inputs, *kernel = self.shape
        return unfolding.view(*leading, outputs, *kernel, inputs).movedim(-1, -1 - len(kernel))

    def branches(self) -> list[Factors]:
        """The factors of each branch as views of the parameters, by kind: x, y and, with a core, t."""
        raise NotImplementedError

    def branch_stds(self, target: float) -> list[float]:
        """Standard deviations of independent branches with which W has a standard deviation of about `target`."""
        branches = len(self.branches())
        return [target ** (1 / branches)] * branches

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Keep nothing of the dense weight; `parametrize` refuses to assign to a factorised weight."""
        return ()

    def extra_repr(self) -> str:
        """The part of `print(network)` that describes the factorisation."""
        return f"shape={self.shape}, rank={self.rank}, {'tucker' if self.tucker else 'matrix'}"


class LowRank(Factorization):
    """W = X Y^T, rank <= R; a convolution is T x1 X x2 Y (Tucker-2, Phan et al. 2020) or the reshaped matrix."""

    def compose(self, factors: Factors) -> Tensor:
        """W = X Y^T or T x1 X x2 Y."""
        return product(**factors)

    def branches(self) -> list[Factors]:
        """The only branch."""
        return [self.factors]


class Hadamard(Factorization):
    """W = s(W1) * s(W2), W_i = X_i Y_i^T (Proposition 1) or T_i x1 X_i x2 Y_i (Proposition 3): rank <= R^2 without s.

    X_1 and X_2 are one parameter x of shape (2, O, R), likewise the others: two batched products compose both branches.

    Args:
        nonlinearity: s, applied to both branches before the product (appendix B: tanh; `None` is the identity).

    Attributes:
        observe: called with each composition that is to be differentiated, and with its factors as views of the
            parameters, which get its own gradients alone; for the Jacobian correction.
    """

    observe: Callable[[Factors, Composition], None] | None = None

    def __init__(self, shape: Shape, rank: int, tucker: bool, nonlinearity: Nonlinearity | None = torch.tanh) -> None:
        super().__init__(shape, rank, tucker, stack=2)
        self.nonlinearity = nonlinearity

    def compose(self, factors: Factors) -> Tensor:
        """W = s(W1) * s(W2), elementwise."""
        stack = product(**factors)
        first, second = (stack if self.nonlinearity is None else self.nonlinearity(stack)).unbind(-3)
        return first * second

    def composed(self) -> Tensor:
        """As `compose`, but its gradient cannot be differentiated again; a compiler fuses the formula by itself."""
        if self.nonlinearity not in (None, torch.tanh) or torch.compiler.is_compiling():
            return super().composed()
        if not torch.is_grad_enabled():  # a kept W must not keep the tanh beside it in memory
            composition = self.composition(self.factors)
            return composition.product.clone() if composition.divided else composition.product
        if self.observe is None:
            return self.composition(self.factors).product
        factors = {name: factor.view_as(factor) for name, factor in self.factors.items()}
        composition = self.composition(factors)
        self.observe(factors, composition)
        return composition.product

    def composition(self, factors: Factors) -> Composition:
        """W from the factors by name, for the identity and tanh."""
        rows, y = rows_of(factors["x"], factors.get("t")), factors["y"]
        if self.nonlinearity is None:
            stack = times(rows, y.mT)
            first, second = stack.unbind(-3)
            return Composition(rows, first * second, stack)
        unfolding, tanh, *kept = TanhProduct.apply(rows, y)
        return Composition(rows, unfolding, tanh, bool(kept))

    def branches(self) -> list[Factors]:
        """X1, Y1, T1 and X2, Y2, T2."""
        return [{kind: stack[branch] for kind, stack in self.factors.items()} for branch in (0, 1)]


class PersonalHadamard(Factorization):
    """W = W1 * (W2 + 1) = W1 * W2 + W1 (pFedPara, section 2.3): W1 is shared, W2 is the client's own.

    There is no non-linearity, as in the paper; with W2 = 0 the weight is the global one. The factors x1, y1, t1 travel;
    the split in `configs/sharing/pfedpara.yaml` keeps x2, y2 and t2 with the client.
    """

    def __init__(self, shape: Shape, rank: int, tucker: bool) -> None:
        super().__init__(shape, rank, tucker, names=("1", "2"))

    def compose(self, factors: Factors) -> Tensor:
        """W = W1 * (W2 + 1), elementwise."""
        first, second = (product(**_of_branch(factors, number)) for number in "12")
        return first * (second + 1)

    def branches(self) -> list[Factors]:
        """The shared branch and the client's own."""
        return [_of_branch(self.factors, number) for number in "12"]

    def branch_stds(self, target: float) -> list[float]:
        """W2 has unit size: its gradient is W1 times that of W, so a smaller W2 would learn much slower than W1."""
        return [target / 2**0.5, 1.0]


def _of_branch(factors: Factors, number: str) -> Factors:
    """The factors among x1, x2, y1, ... with this number, by kind."""
    return {name[0]: factor for name, factor in factors.items() if name[1:] == number}
