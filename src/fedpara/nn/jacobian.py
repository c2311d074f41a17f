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
    G'_i = J * d_i * (d_j * z_j - 2 W * z_i)             the change of G_i, where tanh'' = -2 tanh tanh'
                                                         (for the identity J * z_j),

so that (H v)_X = G' Y + G v_Y and (H v)_Y = G'^T X + G^T v_X. A core T makes X the rows X T, whose own gradient goes on
to X and T by the product rule. A frozen factor takes no step and gets no correction: its q is p, and its v is 0.

A training step has W, s_i, J and g already, and `Watch` takes them from it. Nine products of stacks of factors are left
(Z at q: 1, v: 2, z: 2, H v: 4) beside the three of the step. W is worked through in blocks of rows that fit in a
processor's cache; autograd's double backward pass moves some thirty arrays of W's size through memory instead.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fedpara.nn.factorizations import ONE, Composition, Factorization, Factors, Hadamard, rows_of, times

BLOCK = 2**17  # values of W in a block of rows


def jacobian_penalty(factorization: Factorization, factors: Factors, jacobian: Tensor, learning_rate: float) -> Tensor:
    """1/2 || W' - (W - eta J_W) ||^2: how far one SGD step on the factors lands from the step on W itself.

    W' is composed of the factors after their own step, whose gradients follow from J_W by the chain rule (the
    vector-Jacobian product of the composition), whatever that is: Proposition 1 or 3, with or without tanh.

    Args:
        factors: by name, as `factorization.named_parameters()` gives them; those that require gradients take the step.
        jacobian: J_W, the gradient of the loss by W, in W's shape, taken as constant.
        learning_rate: eta of the step, without momentum or weight decay.

    Returns:
        A scalar, differentiable in the factors that take the step.
    """
    weight = factorization.refold(factorization.compose(factors))
    trained = _trained(factors)
    gradients = torch.autograd.grad(weight, list(trained.values()), jacobian, create_graph=True)
    after = {n: f - learning_rate * g for (n, f), g in zip(trained.items(), gradients, strict=True)}
    stepped = factorization.refold(factorization.compose(factors | after))
    return 0.5 * (stepped - (weight - learning_rate * jacobian)).square().sum()


def jacobian_correction(factorization: Factorization, jacobian: Tensor, learning_rate: float) -> Factors:
    """The gradient of `jacobian_penalty` by each trained factor, to be added lambda times to the factor's gradient.

    It is computed in closed form (Note [Closed form]) where that is known, else by autograd.
    """
    named = factorization.named_parameters()
    leaves = {name: factor.detach().requires_grad_(factor.requires_grad) for name, factor in named}
    trained = _trained(leaves)
    if not trained:
        return {}
    with torch.enable_grad():
        if not _has_closed_form(factorization):
            penalty = jacobian_penalty(factorization, leaves, jacobian, learning_rate)
            return dict(zip(trained, torch.autograd.grad(penalty, list(trained.values())), strict=True))
        composition = factorization.composition(leaves)
    jacobian = _unfolded(factorization, jacobian)
    inputs = trained | _trained({"rows": composition.rows})
    taken = torch.autograd.grad(composition.product, list(inputs.values()), jacobian)
    passed = _Pass(composition, jacobian, dict(zip(inputs, taken, strict=True)))
    return _closed_form(leaves, passed, learning_rate, factorization.nonlinearity is not None)


class Watch:
    """Takes what a weight's correction needs from the training step itself, so that nothing is computed twice.

    Args:
        factorization: the weight's; several backward passes before a correction add up.
    """

    def __init__(self, factorization: Factorization) -> None:
        self.factorization = factorization
        self.clear()
        self._handle = factorization.register_forward_hook(self._weigh)
        if _has_closed_form(factorization):
            factorization.observe = self._observe

    def __getstate__(self) -> dict[str, Any]:
        """Copy without the backward passes so far, whose graph cannot be copied."""
        return vars(self) | {"_composition": None, "_jacobian": None, "_gradients": {}, "_passes": Counter()}

    def clear(self) -> None:
        """Forget the backward passes so far."""
        self._composition: Composition | None = None
        self._jacobian: Tensor | None = None
        self._gradients: Factors = {}  # of the factors and of "rows"
        self._passes: Counter[str] = Counter()  # how many backward passes each gradient has, and the Jacobian

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()
        if _has_closed_form(self.factorization):
            self.factorization.observe = None
        self.clear()

    def correction(self, learning_rate: float, scale: float = 1.0) -> Factors:
        """As `jacobian_correction`; empty if no backward pass reached the weight.

        Args:
            learning_rate: eta.
            scale: by how much the loss was multiplied in the backward passes.
        """
        if self._jacobian is None:
            return {}
        jacobian, gradients = self._jacobian, dict(self._gradients)
        if scale != 1:
            jacobian, gradients = jacobian / scale, {name: gradient / scale for name, gradient in gradients.items()}
        made, composition = self.factorization, self._composition
        if (
            composition is None
            or not _has_closed_form(made)
            or not self._is_complete(_trained(made.factors | {"rows": composition.rows}))
        ):
            return jacobian_correction(made, jacobian, learning_rate)
        passed = _Pass(composition, _unfolded(made, jacobian), gradients)
        return _closed_form(made.factors, passed, learning_rate, made.nonlinearity is not None)

    def _is_complete(self, needed: Iterable[str]) -> bool:
        """Whether each backward pass gave these gradients; not if it was compiled, or there is no closed form."""
        return all(self._passes[name] == self._passes["weight"] for name in needed)

    def _observe(self, factors: Factors, composition: Composition) -> None:
        if not composition.product.requires_grad:  # of other factors, by `torch.func.functional_call`
            return
        self._composition = composition
        for name, tensor in _trained(factors | {"rows": composition.rows}).items():
            tensor.register_hook(partial(self._add_gradient, name))

    def _weigh(self, factorization: Factorization, _: object, weight: Tensor) -> None:
        if weight.requires_grad:
            weight.register_hook(self._add_jacobian)

    def _add_jacobian(self, jacobian: Tensor) -> None:
        self._passes["weight"] += 1
        self._jacobian = jacobian if self._jacobian is None else self._jacobian + jacobian

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        self._passes[name] += 1
        # a copy, because the parameter's `grad` may get the same memory
        self._gradients[name] = self._gradients[name] + gradient if name in self._gradients else gradient.clone()


def _trained(factors: Factors) -> Factors:
    return {name: factor for name, factor in factors.items() if factor.requires_grad}


def _has_closed_form(factorization: Factorization) -> TypeGuard[Hadamard]:
    return isinstance(factorization, Hadamard) and factorization.nonlinearity in (None, torch.tanh)


@dataclass(frozen=True)
class _Pass:
    """The backward pass of a step: J in W's unfolding, and the gradients of the trained factors, g, and of "rows"."""

    composition: Composition
    jacobian: Tensor
    gradients: Factors


@torch.no_grad()
def _closed_form(p: Factors, passed: _Pass, eta: float, tanh: bool) -> Factors:
    """Note [Closed form], its names and its order."""
    eta_j, trained = eta * passed.jacobian, _trained(p)
    q = p | {name: factor - eta * passed.gradients[name] for name, factor in trained.items()}
    error, v_rows, v_y = _of_error(q, passed.composition.product, eta_j, tanh)
    v = _on_factors(q, v_rows, v_y)
    v |= {name: torch.zeros_like(factor) for name, factor in p.items() if name not in trained}
    t = p.get("t")
    along = v["x"] if t is None else times(v["x"], t).view_as(v_rows) + rows_of(p["x"], v["t"])
    taken = _on_factors(p, *_second_order(passed.composition, p["y"], (eta_j, error), along, v["y"], tanh))
    if t is not None and "rows" in passed.gradients:  # the rows X T are a product themselves
        folded = eta * passed.gradients["rows"].reshape(*p["x"].shape[:-1], -1)
        taken["x"] += times(folded, v["t"].mT)
        taken["t"] += times(v["x"].mT, folded)
    return {name: v[name] - taken[name] for name in trained}


def _of_error(q: Factors, weight: Tensor, eta_j: Tensor, tanh: bool) -> tuple[Tensor, Tensor, Tensor]:
    """E, and v = Df(q)^T E as gradients of the rows and of y."""
    all_rows, y = rows_of(q["x"], q.get("t")), q["y"]
    error, of_rows, of_y = torch.empty_like(weight), torch.empty_like(all_rows), torch.zeros_like(y)
    for rows in _blocks(weight):
        s = times(all_rows[..., rows, :], y.mT)
        if tanh:
            exact = s.is_cpu and s.itemsize >= 4  # as TanhProduct
            s = torch.sub(ONE, s.mul_(-2).sigmoid_(), alpha=2) if exact else s.tanh_()
        block = error[..., rows, :]
        block.copy_(eta_j[..., rows, :]).sub_(weight[..., rows, :]).addcmul_(*s.unbind(-3))
        gradient = _times_derivative(s.flip(-3).mul_(block.unsqueeze(-3)), s, tanh)
        of_rows[..., rows, :] = times(gradient, y)
        of_y.add_(times(gradient.mT, all_rows[..., rows, :]))
    return error, of_rows, of_y


def _second_order(
    composition: Composition, y: Tensor, fields: tuple[Tensor, Tensor], along: Tensor, v_y: Tensor, tanh: bool
) -> tuple[Tensor, Tensor]:
    """eta H v + Df(p)^T E, as gradients of the rows and of y.

    Args:
        composition: at p, with y.
        fields: eta J and E.
        along: v of the rows.
        v_y: v of y.
        tanh: whether s is tanh, else the identity.
    """
    all_rows = composition.rows
    of_rows, of_y = torch.empty_like(all_rows), torch.zeros_like(y)
    wide, wide_y = torch.cat([along, all_rows], -1), torch.cat([y, v_y], -1).mT
    for rows in _blocks(composition.product):
        s, z = composition.branches(rows), times(wide[..., rows, :], wide_y)
        eta_j, error, weight = (f[..., rows, :].unsqueeze(-3) for f in (*fields, composition.product))
        other = s.flip(-3)
        change = (torch.ops.aten.tanh_backward(z, s) if tanh else z).flip(-3)  # d_j z_j
        if tanh:
            change.addcmul_(weight, z, value=-2)
        change = _times_derivative(change.mul_(eta_j).addcmul_(error, other), s, tanh)
        gradient = _times_derivative(other.mul_(eta_j), s, tanh)
        of_rows[..., rows, :] = times(change, y) + times(gradient, v_y)
        of_y.add_(times(change.mT, all_rows[..., rows, :])).add_(times(gradient.mT, along[..., rows, :]))
    return of_rows, of_y


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Slices of the rows of W's unfolding."""
    size = max(1, BLOCK // weight.shape[-1])
    yield from (slice(start, start + size) for start in range(0, weight.shape[-2], size))


def _times_derivative(field: Tensor, s: Tensor, tanh: bool) -> Tensor:
    """`field` times s', in its place."""
    return torch.ops.aten.tanh_backward.grad_input(field, s, grad_input=field) if tanh else field


def _on_factors(factors: Factors, of_rows: Tensor, of_y: Tensor) -> Factors:
    """Gradients of the factors from those of the rows and of y."""
    if "t" not in factors:
        return {"x": of_rows, "y": of_y}
    folded = of_rows.reshape(*factors["x"].shape[:-1], -1)
    return {"x": times(folded, factors["t"].mT), "y": of_y, "t": times(factors["x"].mT, folded)}


def _unfolded(factorization: Factorization, weight: Tensor) -> Tensor:
    """The inverse of `Factorization.refold`."""
    leading = weight.shape[: weight.dim() - len(factorization.shape)]
    if not factorization.tucker:
        return weight.reshape(*leading, factorization.shape[0], -1)
    return weight.movedim(len(leading) + 1, -1).reshape(*leading, -1, factorization.shape[1])
