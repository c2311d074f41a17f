"""FedAdagrad, FedAdam and FedYogi (Reddi et al., ICLR 2021, Algorithm 2): adaptive optimisers at the server."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import Tensor

from fedpara.algorithms.base import FedAvg, Upload
from fedpara.state import Parts, State, only, zeros_like

Share = Annotated[float, Field(ge=0, lt=1)]


class FedAdam(FedAvg):
    """m <- b1 m + (1 - b1) D, v <- b2 v + (1 - b2) D^2, x <- x + lr m / (sqrt(v) + tau), D the mean update.

    D is the update of the model that clients received. There is no bias correction, as in the paper; v starts at tau^2.
    Buffers take the mean.

    Args:
        server_lr: the server's step; 0.01 in FedPara's Table 3.
        beta1, beta2: 0.9 and 0.99 there.
        tau: degree of adaptivity; the paper has 1e-5 to 0.1.

    Example:
        >>> FedAdam(server_lr=0.01).second_moment(torch.tensor([1.0]), torch.tensor([2.0]))
        tensor([1.0100])
    """

    @validate_call
    def __init__(
        self,
        server_lr: Annotated[float, Field(gt=0)] = 0.01,
        beta1: Share = 0.9,
        beta2: Share = 0.99,
        tau: Annotated[float, Field(gt=0, le=1)] = 1e-3,
    ) -> None:
        self.server_lr, self.beta1, self.beta2, self.tau = server_lr, beta1, beta2, tau

    def start(self, model: State) -> Parts:
        """m = 0, v = tau^2."""
        server = super().start(model)
        m = zeros_like(only(self.trainable, model))
        return server | {"m": m, "v": {name: torch.full_like(x, self.tau**2) for name, x in m.items()}}

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """v after a round, from v and D^2."""
        return self.beta2 * v + (1 - self.beta2) * square

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """One step of the server's optimiser on the pseudo-gradient."""
        model = dict(self.mean(uploads))
        m, v = dict(server["m"]), dict(server["v"])
        for name in m:
            delta = model[name] - received["model"][name]
            m[name] = self.beta1 * m[name] + (1 - self.beta1) * delta
            v[name] = self.second_moment(v[name], delta.square())
            model[name] = server["model"][name] + self.server_lr * m[name] / (v[name].sqrt() + self.tau)
        return {"model": model, "m": m, "v": v}


class FedAdagrad(FedAdam):
    """v <- v + D^2; without momentum, as in the paper."""

    def __init__(self, server_lr: float = 0.01, beta1: float = 0.0, beta2: float = 0.99, tau: float = 1e-3) -> None:
        super().__init__(server_lr=server_lr, beta1=beta1, beta2=beta2, tau=tau)

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """v after a round, from v and D^2."""
        return v + square


class FedYogi(FedAdam):
    """v <- v - (1 - b2) D^2 sign(v - D^2)."""

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """v after a round, from v and D^2."""
        return v - (1 - self.beta2) * square * torch.sign(v - square)
