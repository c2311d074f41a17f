"""FedAvgM (Hsu et al. 2019, section 4.3): momentum at the server."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, validate_call

from fedpara.algorithms.base import FedAvg, Upload
from fedpara.state import Parts, State, combine, difference, only, zeros_like


class FedAvgM(FedAvg):
    """m <- beta m + D, x <- x + lr m, with D the mean update of the model that clients received.

    With beta = 0 and lr = 1 this is FedAvg, if the link does not round the broadcast.

    Args:
        momentum: beta, 0 to 1.
        server_lr: the server's step.
    """

    @validate_call
    def __init__(
        self, momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9, server_lr: Annotated[float, Field(gt=0)] = 1.0
    ) -> None:
        self.momentum, self.server_lr = momentum, server_lr

    def start(self, model: State) -> Parts:
        """m = 0."""
        server = super().start(model)
        return server | {"m": zeros_like(only(self.trainable, model))}

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """One step along the momentum; buffers take the mean."""
        mean = self.mean(uploads)
        before = only(self.trainable, server["model"])
        update = difference(mean, received["model"], self.trainable)
        m = combine(update, self.momentum, server["m"])
        return {"model": combine(mean | before, self.server_lr, m), "m": m}
