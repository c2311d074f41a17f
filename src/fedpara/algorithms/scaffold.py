"""SCAFFOLD (Karimireddy et al., ICML 2020, Algorithm 1, option II): stochastic controlled averaging."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, validate_call
from torch.optim import SGD, Optimizer

from fedpara.algorithms.base import Correction, FedAvg, Upload, uniform_mean
from fedpara.state import Layout, Parts, State, combine, difference, layout_of, only, zeros_like


class Scaffold(FedAvg):
    """Control variates c (server) and c_i (client) take the drift out of local steps; they travel beside the model.

    Args:
        server_lr: eta_g, the server's step; 1.0 in FedPara's Table 3.

    Example:
        >>> import torch
        >>> received, memory = {"model": {}, "control": {"w": torch.tensor([3.0])}}, {"w": torch.tensor([1.0])}
        >>> Scaffold().correction(received, memory).offset
        {'w': tensor([2.])}
    """

    @validate_call
    def __init__(self, server_lr: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.server_lr = server_lr

    def require(self, optimizer: Optimizer) -> None:
        """(x - y_i) / (K eta_l) is a mean of gradients after plain SGD at one rate only."""
        momentum = any(group.get("momentum") for group in optimizer.param_groups)
        if not isinstance(optimizer, SGD) or momentum:
            made = f"{type(optimizer).__name__}{' with momentum' if momentum else ''}"
            raise ValueError(
                f"{made} and SCAFFOLD, whose control variates are mean gradients of plain SGD; "
                "take torch.optim.SGD without momentum, or another algorithm such as feddyn"
            )
        shared = {group["lr"] for group in optimizer.param_groups if group.get("rate", 1) == 1}  # others are personal
        if len(shared) > 1:
            raise ValueError(
                f"parameter groups with the learning rates {', '.join(map(str, sorted(shared)))} and SCAFFOLD, whose "
                "control variates divide by one rate; take one for all, or another algorithm such as feddyn"
            )

    def start(self, model: State) -> Parts:
        """c = 0, for what is trained."""
        server = super().start(model)
        return server | {"control": zeros_like(only(self.trainable, model))}

    def broadcast(self, server: Parts) -> Parts:
        """(x, c)."""
        return server

    def correction(self, received: Parts, memory: State) -> Correction:
        """y_i <- y_i - eta_l (g_i(y_i) - c_i + c)."""
        return Correction(offset=combine(received["control"], -1, memory))

    def upload(self, received: Parts, model: State, learning_rate_sum: float, memory: State) -> Parts:
        """y_i and c_i+ - c_i = (x - y_i) / (K eta_l) - c, where K eta_l is the sum over applied steps."""
        control = received["control"]
        if not learning_rate_sum:
            return {"model": model, "control": zeros_like(control)}
        drift = {name: (received["model"][name] - model[name]) / learning_rate_sum for name in control}
        return {"model": model, "control": combine(drift, -1, control)}

    def remember(self, received: Parts, sent: Parts, memory: State) -> State:
        """c_i <- c_i+."""
        change = sent["control"]
        return combine(memory or zeros_like(change), 1, change)

    def remembered(self, server: Parts) -> Layout:
        """c_i, of the shape of c."""
        return layout_of(server["control"])

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """x <- x + eta_g / |S| sum(y_i - x), c <- c + 1 / N sum(c_i+ - c_i): clients weigh the same, as there.

        The x that is subtracted is the clients' own, as they received it. So c is the mean of all clients' c_i.
        """
        mean, num_received = uniform_mean(uploads)
        before = only(self.trainable, server["model"])
        step = difference(mean["model"], received["model"], self.trainable)
        return {
            "model": combine(mean["model"] | before, self.server_lr, step),
            "control": combine(server["control"], num_received / self.num_clients, mean["control"]),
        }
