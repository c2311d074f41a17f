"""FedAvg (McMahan et al., AISTATS 2017, Algorithm 1), and the interface of every algorithm.

FedPara's Algorithm 1 is FedAvg on the factors: the factors are averaged, not the weights they compose.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fedpara.state import State, weighted_mean


@dataclass(frozen=True)
class Upload:
    """What the server received from one client.

    Attributes:
        state: the shared part of the client's model after local training.
        num_examples: training examples of the client, its weight in the mean.
    """

    state: State
    num_examples: int


class FedAvg:
    """Broadcast the global model, average the clients' models by their numbers of examples."""

    def broadcast(self, server: State) -> State:
        """What the server sends to each client of the round."""
        return server

    def aggregate(self, server: State, uploads: Iterable[Upload]) -> State:
        """The next global model, in one pass over the uploads."""
        return weighted_mean((upload.state, upload.num_examples) for upload in uploads)
