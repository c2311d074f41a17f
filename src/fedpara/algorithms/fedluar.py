"""FedLUAR (Kim, Kang and Lee, NeurIPS 2025, arXiv 2503.11146, Algorithms 1 and 2): layers whose update is recycled.

Every round draws the layers that the next round's clients do not send; small s_l = |D_l| / |x_l| are more likely. For
these the server takes the step of the round before again. The paper counts uploads. A broadcast here is the whole
model and one byte a layer, which says what to send; it is counted.
"""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, validate_call

from fedpara.algorithms.base import FedAvg, Upload
from fedpara.sampling import derive_seed
from fedpara.state import Parts, State, combine, difference, only, stepped, zeros_like

TINY = 1e-6  # added to both norms of a ratio; the authors' code adds it to |x|


class FedLUAR(FedAvg):
    """FedAvg in which some layers are not sent, and take their last mean update again.

    A layer is a trained tensor of two dimensions or more, so X of both branches of FedPara is one, and Y and T
    likewise. All other tensors are
    always sent, as in the authors' code. A layer that was recycled keeps its s.

    Args:
        recycled: share of the layers that are recycled in each round but the first, rounded down.
        seed: of the draws.

    Example:
        >>> algorithm = FedLUAR(recycled=0.5).bound(["a", "b"], num_clients=2)
        >>> server = algorithm.start({"a": torch.ones(1, 2), "b": torch.ones(1, 2)})
        >>> upload = Upload({"model": {"a": torch.full((1, 2), 1.5), "b": torch.full((1, 2), 9.0)}}, num_examples=1)
        >>> server = algorithm.aggregate(server, algorithm.broadcast(server), [upload])
        >>> sum(int(flag) for flag in server["recycled"].values())
        1
    """

    @validate_call
    def __init__(
        self, recycled: Annotated[float, Field(ge=0, lt=1)] = 0.5, seed: Annotated[int, Field(ge=0)] = 0
    ) -> None:
        self.recycled, self.seed = recycled, seed

    def start(self, model: State) -> Parts:
        """No layer is recycled in the first round."""
        layers = {name: tensor for name, tensor in only(self.trainable, model).items() if tensor.dim() > 1}
        flags = {name: torch.zeros((), dtype=torch.uint8) for name in layers}
        ratios = {name: torch.zeros((), dtype=torch.float64) for name in layers}
        draws = {"number": torch.zeros((), dtype=torch.int64)}
        return super().start(model) | {
            "update": zeros_like(layers), "recycled": flags, "ratio": ratios, "draws": draws,
        }  # fmt: skip

    def broadcast(self, server: Parts) -> Parts:
        """The model, and which layers are recycled."""
        return only(["model", "recycled"], server)

    def sent(self, received: Parts) -> State:
        """The received values of what clients send back: all but the layers that are recycled."""
        recycled = received["recycled"]
        return {name: x for name, x in received["model"].items() if name not in recycled or not recycled[name]}

    def upload(self, received: Parts, model: State, learning_rate_sum: float, memory: State) -> Parts:
        """The trained model without the layers that are recycled."""
        return {"model": only(self.sent(received), model)}

    def aggregate(self, server: Parts, received: Parts, uploads: Iterable[Upload]) -> Parts:
        """The mean of what was sent; x_l <- x_l + D_l of the last round for the others; then the next draw."""
        mean = self.mean(uploads)
        fresh = difference(mean, received["model"], [name for name in server["update"] if name in mean])
        recycled = {name: update for name, update in server["update"].items() if name not in mean}
        ratio = {name: (d.norm() + TINY) / (received["model"][name].norm() + TINY) for name, d in fresh.items()}
        ratio = server["ratio"] | {name: value.double() for name, value in ratio.items()}
        return {
            "model": combine(server["model"] | stepped(server["model"], received["model"], mean), 1, recycled),
            "update": only(server["update"], fresh | recycled),
            "recycled": self._drawn(ratio, int(server["draws"]["number"])),
            "ratio": ratio,
            "draws": {"number": server["draws"]["number"] + 1},
        }

    def _drawn(self, ratio: State, number: int) -> State:
        """Flags of the layers of the next round, drawn without replacement with p_l = (1 / s_l) / sum(1 / s_l)."""
        flags = {name: torch.zeros((), dtype=torch.uint8) for name in ratio}
        if count := int(self.recycled * len(ratio) + 1e-9):  # 0.58 * 50 is 28.999999999999996
            generator = torch.Generator().manual_seed(derive_seed(self.seed, number, 0, "recycled layers"))
            weights = 1 / torch.stack([*ratio.values()])
            for index in weights.multinomial(count, generator=generator).tolist():
                flags[list(ratio)[index]].fill_(1)
        return flags
