"""FedDyn (Acar et al., ICLR 2021, Algorithm 1): dynamic regularisation."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, validate_call

from fedpara.algorithms.base import Correction, FedAvg, Upload, uniform_mean
from fedpara.state import Layout, Parts, State, combine, difference, layout_of, only, zeros_like


class FedDyn(FedAvg):
    """Clients minimise L_k(w) - <g_k, w> + alpha/2 ||w - w^t||^2, whose stationary points agree with the global loss's.

    Args:
        alpha: weight of the regulariser; 0.1 in FedPara's Table 3.

    Example:
        >>> import torch
        >>> FedDyn(alpha=0.1).correction({"model": {}}, memory={"w": torch.ones(1)}).offset
        {'w': tensor([-1.])}
    """

    @validate_call
    def __init__(self, alpha: Annotated[float, Field(gt=0)] = 0.1) -> None:
        self.alpha = alpha

    def start(self, model: State) -> Parts:
        """h = 0."""
        server = super().start(model)
        return server | {"h": zeros_like(only(self.trainable, model))}

    def correction(self, received: Parts, memory: State) -> Correction:
        """-g_k + alpha (w - w^t)."""
        return Correction(self.alpha, received["model"], {name: -g for name, g in memory.items()})

    def remember(self, received: Parts, sent: Parts, memory: State) -> State:
        """g_k <- g_k - alpha (w_k - w^t)."""
        moved = self._moved(sent, received)
        return combine(memory or zeros_like(moved), -self.alpha, moved)

    def remembered(self, server: Parts) -> Layout:
        """g_k, of the shape of h."""
        return layout_of(server["h"])

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """h <- h - alpha / N sum(w_k - w^t), w <- mean(w_k) - h / alpha: clients have equal weights, as in the paper.

        So h is the mean of all clients' g_k; it also accumulates changes that a rounded w^t cannot show.
        """
        mean, num_received = uniform_mean(uploads)
        h = combine(server["h"], -self.alpha * num_received / self.num_clients, self._moved(mean, received))
        return {"model": combine(mean["model"], -1 / self.alpha, h), "h": h}

    def _moved(self, after: Parts, before: Parts) -> State:
        """w_k - w^t of the trained parameters."""
        return difference(after["model"], before["model"], self.trainable)
