"""The record of one round: what was learned, what was sent, how long it took."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpara.cost import SPEEDS_MBPS, megajoules, round_seconds

GIGABYTE = 1e9
FATES = ("succeeded", "dropped", "late", "diverged", "crashed", "out_of_memory")  # of a round's clients
COLUMNS = (  # of metrics.csv and W&B, in the order in which they are shown
    "round", "test/acc", "test/loss", "train/loss", "personal/acc_mean", "personal/acc_p10",
    "personal/trained_acc_mean", "personal/trained_acc_p10", "comm/up_bytes", "comm/down_bytes",
    "comm/total_bytes", "comm/total_gb", *(f"clients/{fate}" for fate in FATES),
    "time/round_s", "time/client_s", "time/train_s", "time/busy_s", "time/idle_s", "time/wait_s",
    *(f"cost/round_s_{speed}mbps" for speed in SPEEDS_MBPS), "cost/total_mj",
)  # fmt: skip


def objective(personal: bool) -> str:
    """The metric by which a run is judged.

    Args:
        personal: whether a part of the model stays with the clients. The global model has that part untrained, so that
            its accuracy says nothing; the mean over the clients' own models does.
    """
    return "personal/acc_mean" if personal else "test/acc"


@dataclass(frozen=True)
class RoundRecord:
    """Figures of one finished round.

    Attributes:
        round: rounds finished so far, from 1.
        train_loss: mean over the round's training examples, in nats; NaN where no client succeeded.
        metrics: evaluation by name (`test/acc` from 0 to 1, `test/loss` in nats); empty where the round was not tested.
        up_bytes, down_bytes: bytes from all clients of the round to the server and back.
        total_bytes: both ways, all rounds so far.
        num_clients: clients of the round.
        clients: their numbers by what became of them: `succeeded` and the kinds of failure.
        client_seconds: mean wall time of a client's local training.
        seconds: wall time of the round, evaluation included.
        train_seconds: wall time in which clients were trained and their uploads aggregated.
        busy_seconds: in which a worker trained a client that succeeded, summed over the workers.
        idle_seconds: what the workers had besides while clients were trained, summed over them.
        wait_seconds: in which the server waited for the next result, with nothing to aggregate.
        personal_accuracy: on each client's own test distribution, of the model it would start from: what the server has
            now and what the client keeps; empty where not measured.
        trained_accuracy: likewise of the models that the round's clients had just trained, before they were averaged.
    """

    round: int
    train_loss: float
    metrics: dict[str, float]
    up_bytes: int
    down_bytes: int
    total_bytes: int
    num_clients: int
    client_seconds: float
    seconds: float
    train_seconds: float = 0.0
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0
    wait_seconds: float = 0.0
    personal_accuracy: tuple[float, ...] = ()
    trained_accuracy: tuple[float, ...] = ()
    clients: Mapping[str, int] = field(default_factory=dict)

    def as_row(self) -> dict[str, float]:
        """The record under the names of `COLUMNS`; what was not measured is left out."""
        return {
            "round": self.round,
            **({} if math.isnan(self.train_loss) else {"train/loss": self.train_loss}),
            **self.metrics,
            **spread("personal/acc", self.personal_accuracy),
            **spread("personal/trained_acc", self.trained_accuracy),
            "comm/up_bytes": self.up_bytes,
            "comm/down_bytes": self.down_bytes,
            "comm/total_bytes": self.total_bytes,
            "comm/total_gb": self.total_bytes / GIGABYTE,
            **{f"clients/{name}": number for name, number in self.clients.items()},
            "time/round_s": self.seconds,
            "time/client_s": self.client_seconds,
            "time/train_s": self.train_seconds,
            "time/busy_s": self.busy_seconds,
            "time/idle_s": self.idle_seconds,
            "time/wait_s": self.wait_seconds,
            **self._cost(),
        }

    def _cost(self) -> dict[str, float]:
        """The round over links of the paper's three speeds, and the energy so far."""
        client_bytes = (self.up_bytes + self.down_bytes) / self.num_clients
        seconds = {
            f"cost/round_s_{speed}mbps": round_seconds(self.client_seconds, client_bytes, speed)
            for speed in SPEEDS_MBPS
        }
        return seconds | {"cost/total_mj": megajoules(self.total_bytes)}


def spread(name: str, accuracy: tuple[float, ...]) -> dict[str, float]:
    """Mean over clients, and the tenth percentile: how the worst off fare."""
    import numpy as np  # programs that only read a record's names start without it

    if not accuracy:
        return {}
    return {f"{name}_mean": float(np.mean(accuracy)), f"{name}_p10": float(np.percentile(accuracy, 10))}


def three_digits(value: float) -> str:
    """For people, without an exponent: `0.0599`, `24.0`, `12,345`."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def size(num_bytes: float) -> str:
    """Bytes for people, decimal: `20.3 GB`, `4.1 MB`."""
    return f"{num_bytes / GIGABYTE:.2f} GB" if num_bytes >= GIGABYTE else f"{num_bytes / 1e6:.2f} MB"
