"""Jacobian correction, the optional regulariser of FedPara (ICLR 2022, appendix B, equation 9)."""

import torch
from torch import Tensor

from fedpara.nn.factorizations import Factorization, Factors


def jacobian_penalty(factorization: Factorization, factors: Factors, jacobian: Tensor, learning_rate: float) -> Tensor:
    """1/2 || W' - (W - eta J_W) ||^2: how far one SGD step on the factors lands from the step on W itself.

    W' is composed of the factors after their own step. Their gradients follow from J_W by the chain rule (the
    vector-Jacobian product of the composition), for Proposition 1 or 3, with or without tanh.

    Args:
        factors: by name, as `factorization.named_parameters()` gives them; they must require gradients.
        jacobian: J_W, the gradient of the loss with respect to W, in W's shape; a constant.
        learning_rate: eta of a step without momentum or weight decay.

    Returns:
        A scalar, differentiable in `factors`.
    """
    weight = factorization.refold(factorization.compose(factors))
    gradients = torch.autograd.grad(weight, list(factors.values()), jacobian, create_graph=True)
    after = {n: f - learning_rate * g for (n, f), g in zip(factors.items(), gradients, strict=True)}
    stepped = factorization.refold(factorization.compose(after))
    return 0.5 * (stepped - (weight - learning_rate * jacobian)).square().sum()


def jacobian_correction(factorization: Factorization, jacobian: Tensor, learning_rate: float) -> Factors:
    """The gradient of `jacobian_penalty` for each factor; add it, times lambda, to the factor's own gradient."""
    factors = {name: factor.detach().requires_grad_() for name, factor in factorization.named_parameters()}
    with torch.enable_grad():
        penalty = jacobian_penalty(factorization, factors, jacobian, learning_rate)
    return dict(zip(factors, torch.autograd.grad(penalty, list(factors.values())), strict=True))
