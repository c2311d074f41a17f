"""Jacobian correction, the optional regulariser of FedPara (ICLR 2022, appendix B, equation 9).

Note [Closed form]
~~~~~~~~~~~~~~~~~~
Let W = f(p) be composed of the factors p, J the gradient of the loss by W, g = Df(p)^T J the factors' own gradients,
q = p - eta g the factors after their step, and E = f(q) - (f(p) - eta J) the error of that step. The penalty is
1/2 |E|^2, and since dq/dp = 1 - eta H with the symmetric H = d g/d p, its gradient by p is

    v - eta H v - Df(p)^T E        with v = Df(q)^T E.

H v is the change of g when p moves along v. For W = s(Z_1) * s(Z_2), Z_i = X_i Y_i^T (`*` elementwise, j the other
branch, s_i = s(Z_i), d_i = s'(Z_i)), all of it follows from three products of one shape,

    G_i  = J * d_i * s_j                                 the gradient by Z_i,      g_X = G Y,  g_Y = G^T X,
    z_i  = v_X Y^T + X v_Y^T                             the change of Z_i along v,
    G'_i = J * (s''(Z_i) * s_j * z_i + d_i * d_j * z_j)  the change of G_i, where tanh'' = -2 tanh tanh',

so that (H v)_X = G' Y + G v_Y and (H v)_Y = G'^T X + G^T v_X. A core T makes X the rows X T, whose own gradient goes on
to X and T by the product rule. W is worked through in blocks of rows that fit in a processor's cache: autograd's double
backward pass moves some thirty arrays of W's size through memory instead.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fedpara.nn.factorizations import ONE, Factorization, Factors, Hadamard, rows_of, times

BLOCK = 2**17  # values of W in a block of rows

Field = Callable[[slice, Tensor], Tensor]  # rows of W, and both branches there: (..., 2, b, n) to (..., b, n)


def jacobian_penalty(factorization: Factorization, factors: Factors, jacobian: Tensor, learning_rate: float) -> Tensor:
    """1/2 || W' - (W - eta J_W) ||^2: how far one SGD step on the factors lands from the step on W itself.

    W' is composed of the factors after their own step, whose gradients follow from J_W by the chain rule (the
    vector-Jacobian product of the composition), whatever that is: Proposition 1 or 3, with or without tanh.

    Args:
        factors: by name, as `factorization.named_parameters()` gives them; they must require gradients.
        jacobian: J_W, the gradient of the loss by W, in W's shape, taken as constant.
        learning_rate: eta of the step, without momentum or weight decay.

    Returns:
        A scalar, differentiable in `factors`.
    """
    weight = factorization.refold(factorization.compose(factors))
    gradients = torch.autograd.grad(weight, list(factors.values()), jacobian, create_graph=True)
    after = {n: f - learning_rate * g for (n, f), g in zip(factors.items(), gradients, strict=True)}
    stepped = factorization.refold(factorization.compose(after))
    return 0.5 * (stepped - (weight - learning_rate * jacobian)).square().sum()


def jacobian_correction(factorization: Factorization, jacobian: Tensor, learning_rate: float) -> Factors:
    """The gradient of `jacobian_penalty` by each factor, to be added lambda times to the factor's gradient.

    It is computed in closed form (Note [Closed form]) where that is known, else by autograd.
    """
    factors = {name: factor.detach() for name, factor in factorization.named_parameters()}
    if isinstance(factorization, Hadamard) and factorization.nonlinearity in (None, torch.tanh):
        return _closed_form(factorization, factors, jacobian, learning_rate)
    leaves = {name: factor.requires_grad_() for name, factor in factors.items()}
    with torch.enable_grad():
        penalty = jacobian_penalty(factorization, leaves, jacobian, learning_rate)
    return dict(zip(leaves, torch.autograd.grad(penalty, list(leaves.values())), strict=True))


class _Point:
    """A value of the factors of both branches, at which the composition and its derivative are taken.

    Args:
        factors: x (..., 2, O, R), y (..., 2, n, R) and, with a core, t.
        tanh: whether s is tanh, else the identity.
    """

    def __init__(self, factors: Factors, tanh: bool) -> None:
        self.x, self.y, self.t = factors["x"], factors["y"], factors.get("t")
        self.rows, self.tanh = rows_of(self.x, self.t), tanh

    def blocks(self) -> Iterator[slice]:
        """Slices of the rows of W."""
        size = max(1, BLOCK // self.y.shape[-2])
        yield from (slice(start, start + size) for start in range(0, self.rows.shape[-2], size))

    def branches(self, rows: slice) -> Tensor:
        """s(Z) of both branches in some rows of W."""
        z = times(self.rows[..., rows, :], self.y.mT)
        if not self.tanh:
            return z
        return torch.sub(ONE, z.mul_(-2).sigmoid_(), alpha=2) if z.is_cpu else z.tanh_()  # as TanhProduct

    def derivative(self, s: Tensor, field: Tensor) -> Tensor:
        """`field` times s', of the same shape as s."""
        return torch.ops.aten.tanh_backward(field, s) if self.tanh else field

    def pull(self, field: Field) -> tuple[Tensor, Tensor]:
        """Df(p)^T of a field in W's shape: the gradients of the rows and of y."""
        of_rows, of_y = torch.empty_like(self.rows), torch.zeros_like(self.y)
        for rows in self.blocks():
            s = self.branches(rows)
            gradient = self.derivative(s, s.flip(-3).mul_(field(rows, s).unsqueeze(-3)))
            of_rows[..., rows, :] = times(gradient, self.y)
            of_y.add_(times(gradient.mT, self.rows[..., rows, :]))
        return of_rows, of_y

    def on_factors(self, of_rows: Tensor, of_y: Tensor) -> Factors:
        """Gradients of the factors from those of the rows and of y."""
        if self.t is None:
            return {"x": of_rows, "y": of_y}
        folded = of_rows.reshape(*self.x.shape[:-1], -1)
        return {"x": times(folded, self.t.mT), "y": of_y, "t": times(self.x.mT, folded)}


def _closed_form(factorization: Hadamard, factors: Factors, jacobian: Tensor, eta: float) -> Factors:
    """Note [Closed form], its names and its order."""
    tanh = factorization.nonlinearity is not None
    j, p = _unfolded(factorization, jacobian), _Point(factors, tanh)
    s = p.rows.new_empty(*p.rows.shape[:-1], p.y.shape[-2])
    error = torch.empty_like(s[..., 0, :, :])

    def first(rows: slice, here: Tensor) -> Tensor:
        s[..., rows, :] = here
        return j[..., rows, :]

    g_rows, g_y = p.pull(first)
    g = p.on_factors(g_rows, g_y)
    q = _Point({name: factor - eta * g[name] for name, factor in factors.items()}, tanh)

    def second(rows: slice, there: Tensor) -> Tensor:
        block = torch.addcmul(eta * j[..., rows, :], *s[..., rows, :].unbind(-3), value=-1)
        error[..., rows, :] = block.addcmul_(*there.unbind(-3))
        return block

    v_rows, v_y = q.pull(second)
    v = q.on_factors(v_rows, v_y)
    along = v["x"] if p.t is None else times(v["x"], p.t).view_as(p.rows) + rows_of(p.x, v["t"])
    h_rows, h_y = _second_order(p, s, (eta * j, error), along, v_y)
    taken = p.on_factors(h_rows, h_y)
    if p.t is not None:  # the rows X T are a product themselves
        folded = eta * g_rows.reshape(*p.x.shape[:-1], -1)
        taken["x"] += times(folded, v["t"].mT)
        taken["t"] += times(v["x"].mT, folded)
    return {name: v[name] - taken[name] for name in factors}


def _second_order(
    p: _Point, s: Tensor, fields: tuple[Tensor, Tensor], along: Tensor, v_y: Tensor
) -> tuple[Tensor, ...]:
    """eta H v + Df(p)^T E, as gradients of the rows and of y.

    Args:
        s: both branches at p.
        fields: eta J and E.
        along: v of the rows.
    """
    of_rows, of_y = torch.empty_like(p.rows), torch.zeros_like(p.y)
    wide, wide_y = torch.cat([along, p.rows], -1), torch.cat([p.y, v_y], -1).mT
    for rows in p.blocks():
        here, z = s[..., rows, :], times(wide[..., rows, :], wide_y)
        j, error = (field[..., rows, :].unsqueeze(-3) for field in fields)
        other = here.flip(-3)
        change = p.derivative(here, z).flip(-3)  # d_j z_j
        if p.tanh:
            change.addcmul_(here * other, z, value=-2)
        change = p.derivative(here, change.mul_(j).addcmul_(error, other))
        gradient = p.derivative(here, other.mul_(j))
        of_rows[..., rows, :] = times(change, p.y) + times(gradient, v_y)
        of_y.add_(times(change.mT, p.rows[..., rows, :])).add_(times(gradient.mT, along[..., rows, :]))
    return of_rows, of_y


def _unfolded(factorization: Factorization, weight: Tensor) -> Tensor:
    """The inverse of `Factorization.refold`."""
    leading = weight.shape[: weight.dim() - len(factorization.shape)]
    if not factorization.tucker:
        return weight.reshape(*leading, factorization.shape[0], -1)
    return weight.movedim(len(leading) + 1, -1).reshape(*leading, -1, factorization.shape[1])
