"""Jacobian correction, the optional regulariser of FedPara (ICLR 2022, appendix B, equation 9)."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp

from fedpara.nn.factorizations import Factorization

Factors = dict[str, Tensor]


def jacobian_penalty(factorization: Factorization, factors: Factors, jacobian: Tensor, learning_rate: float) -> Tensor:
    """1/2 || W' - (W - eta J_W) ||^2: how far one SGD step on the factors lands from the step on W itself.

    W' is composed of the factors after their own step, whose gradients follow from J_W by the chain rule (the
    vector-Jacobian product of the composition), whatever that is: Proposition 1 or 3, with or without tanh.

    Args:
        factors: the factors by name, as `factorization.named_parameters()` gives them.
        jacobian: J_W, the gradient of the loss by W, in W's shape, taken as constant.
        learning_rate: eta of the step, without momentum or weight decay.

    Returns:
        A scalar, differentiable in `factors`.
    """

    def compose(values: Factors) -> Tensor:
        return functional_call(factorization, values, ())

    weight, pull_back = vjp(compose, factors)  # type: ignore[misc]  # three values only with has_aux
    (gradients,) = pull_back(jacobian)
    stepped = compose({name: factor - learning_rate * gradients[name] for name, factor in factors.items()})
    return 0.5 * (stepped - (weight - learning_rate * jacobian)).square().sum()


def jacobian_correction(factorization: Factorization, jacobian: Tensor, learning_rate: float) -> Factors:
    """The gradient of `jacobian_penalty` by each factor, to be added lambda times to the factor's gradient."""
    factors = {name: factor.detach() for name, factor in factorization.named_parameters()}

    def penalty(values: Factors) -> Tensor:
        return jacobian_penalty(factorization, values, jacobian, learning_rate)

    with torch.enable_grad():
        return grad(penalty)(factors)
