"""The record of one round: metrics, bytes and times."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpara.cost import SPEEDS_MBPS, cost_to_target, megajoules, round_seconds
from fedpara.metric import Metric

GIGABYTE = 1e9
FATES = ("succeeded", "dropped", "late", "diverged", "crashed", "out_of_memory")  # of a client in a round
ACCURACY = Metric()


def columns(headline: Metric = ACCURACY) -> tuple[str, ...]:
    """The columns of metrics.csv and W&B in their order; a module's further metrics follow its headline.

    Args:
        headline: the metric as a module logs it.
    """
    own, worst = headline.name, headline.worst_percentile
    tested = ["test/acc", "test/loss"] if headline == ACCURACY else [f"test/{own}"]
    return (
        "round", *tested, "train/loss", f"personal/{own}_mean", f"personal/{own}_p{worst}",
        f"personal/trained_{own}_mean", f"personal/trained_{own}_p{worst}", "comm/up_bytes", "comm/down_bytes",
        "comm/total_bytes", "comm/total_gb", *(f"clients/{fate}" for fate in FATES),
        "time/round_s", "time/client_s", "time/train_s", "time/busy_s", "time/idle_s", "time/wait_s",
        *(f"cost/round_s_{speed}mbps" for speed in SPEEDS_MBPS), "cost/total_mj",
    )  # fmt: skip


COLUMNS = columns()
PRIVACY_COLUMNS = ("privacy/epsilon", "privacy/clip", "privacy/noise_multiplier", "privacy/unclipped")  # where used
COSTS = ("rounds", "gb", *(f"minutes_{speed}mbps" for speed in SPEEDS_MBPS), "mj")  # of a target, in W&B's summary
CLIENT_COLUMNS = (
    "round", "client", "outcome", "examples", "steps", "train_loss", "seconds", "up_bytes", "down_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class RoundRecord:
    """Figures of one finished round.

    Attributes:
        round: number of the round, from 1.
        train_loss: mean loss over the round's training examples, in nats; NaN if no client succeeded, or if privacy
            does not allow it to be recorded.
        metrics: test metrics by name (for classification `test/acc` from 0 to 1, `test/loss` in nats); empty if the
            round was not tested.
        up_bytes, down_bytes: bytes from all clients of the round to the server, and back.
        total_bytes: bytes both ways in all rounds so far.
        num_clients: number of clients in the round.
        clients: number of clients by outcome: `succeeded` and the kinds of failure.
        client_seconds: mean wall time of a client's local training.
        seconds: wall time of the round, with tests.
        train_seconds: wall time of the training and aggregation.
        busy_seconds: time in which workers trained clients that succeeded, summed over the workers.
        idle_seconds: the workers' other time during the training, summed over the workers.
        wait_seconds: time in which the server waited for a result and had nothing to aggregate.
        personal_scores: scores on each client's own test distribution of the model from which it would start now; empty
            if they were not measured.
        trained_scores: the same for the models that the round's clients had just trained, before averaging.
        headline: the metric of these scores, as the module logs it.
        privacy: values of `PRIVACY_COLUMNS` after the round; empty without privacy.
        tiers: bytes by tier, of clients of different size; empty without tiers.
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
    personal_scores: tuple[float, ...] = ()
    trained_scores: tuple[float, ...] = ()
    clients: Mapping[str, int] = field(default_factory=dict)
    headline: Metric = ACCURACY
    privacy: Mapping[str, float] = field(default_factory=dict)
    tiers: Mapping[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, float]:
        """The record by the names of `columns`, without values that were not measured."""
        own, worst = self.headline.name, self.headline.worst_percentile
        return {
            "round": self.round,
            **({} if math.isnan(self.train_loss) else {"train/loss": self.train_loss}),
            **self.metrics,
            **spread(f"personal/{own}", self.personal_scores, worst),
            **spread(f"personal/trained_{own}", self.trained_scores, worst),
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
            **self.privacy,
            **self.tiers,
        }

    def _cost(self) -> dict[str, float]:
        """Seconds of the round over links of the paper's three speeds, and the energy so far."""
        client_bytes = (self.up_bytes + self.down_bytes) / self.num_clients
        seconds = {
            f"cost/round_s_{speed}mbps": round_seconds(self.client_seconds, client_bytes, speed)
            for speed in SPEEDS_MBPS
        }
        return seconds | {"cost/total_mj": megajoules(self.total_bytes)}


@dataclass(frozen=True)
class ClientRecord:
    """Figures of one client of a round.

    Attributes:
        round: number of the round, from 1.
        client: index of the client.
        outcome: `succeeded`, or how its last attempt failed.
        up_bytes: bytes that it sent to the server, in all its attempts.
        down_bytes: bytes of the broadcast, which it was sent in each attempt.
        num_examples, num_steps, train_loss, seconds: those of its `Report`; None if it failed.
        tier: its tier, of clients of different size; None without tiers.
    """

    round: int
    client: int
    outcome: str
    up_bytes: int
    down_bytes: int
    num_examples: int | None = None
    num_steps: int | None = None
    train_loss: float | None = None
    seconds: float | None = None
    tier: str | None = None

    def as_row(self) -> tuple[int | float | str | None, ...]:
        """The record in the order of `CLIENT_COLUMNS`, and its tier if there are tiers."""
        return (
            self.round, self.client, self.outcome, self.num_examples, self.num_steps, self.train_loss, self.seconds,
            self.up_bytes, self.down_bytes, *([] if self.tier is None else [self.tier]),
        )  # fmt: skip


def spread(name: str, values: tuple[float, ...], worst: int) -> dict[str, float]:
    """The mean over clients, and a percentile that shows the worst clients.

    Args:
        worst: the percentile; the tenth if more is better.
    """
    import numpy as np  # programs that only read a record's names start without it

    if not values:
        return {}
    return {f"{name}_mean": float(np.mean(values)), f"{name}_p{worst}": float(np.percentile(values, worst))}


def sizes(parameters: Mapping[str, int]) -> dict[str, float]:
    """The sizes of a model for W&B's summary, `parameters/dense` and so on; empty if they are not known.

    Args:
        parameters: numbers of parameters, as in a run's summary: `dense`, `factorized`, `shared`, `personal`, and of
            some runs more. With `dense` and `shared` there is also `parameters/share_of_dense`.
    """
    named: dict[str, float] = {f"parameters/{name}": number for name, number in parameters.items()}
    if {"dense", "shared"} <= parameters.keys():
        named["parameters/share_of_dense"] = parameters["shared"] / parameters["dense"]
    return named


def target_group(target: float, metric: Metric) -> str:
    """The group of a target's costs in W&B's summary, in characters that a key may have: `to_80` for 80 %."""
    value = f"{100 * target:g}" if metric.is_share else f"{target:g}"
    return "to_" + re.sub(r"\W", "_", value)


def costs(rows: Sequence[Mapping[str, float]], target: float, metric: Metric) -> dict[str, float]:
    """The cost until a metric first reached a target for W&B's summary, by the names in `COSTS`; empty if it never did.

    Args:
        rows: all rounds from the first, with the columns of metrics.csv.
        metric: a column.

    Example:
        >>> rounds = {f"cost/round_s_{speed}mbps": 120.0 for speed in (2, 10, 50)}
        >>> found = costs([rounds | {"round": 1, "comm/total_bytes": 2e9, "test/acc": 0.9}], 0.8, Metric("test/acc"))
        >>> found["to_80/rounds"], found["to_80/gb"], found["to_80/minutes_10mbps"]
        (1, 2.0, 2.0)
    """
    found = [cost for speed in SPEEDS_MBPS if (cost := cost_to_target(rows, target, speed, metric))]
    if not found:
        return {}
    first = found[0]
    values = (first.rounds, first.num_bytes / GIGABYTE, *(cost.seconds / 60 for cost in found), first.megajoules)
    named = zip(COSTS, values, strict=True)
    return {f"{target_group(target, metric)}/{name}": value for name, value in named if not math.isnan(value)}


def three_digits(value: float) -> str:
    """A readable number without an exponent: `0.0599`, `24.0`, `12,345`."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def counted(number: int, noun: str) -> str:
    """A number of things: `1 round`, `2 rounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(num_bytes: float) -> str:
    """A readable number of bytes in decimal units: `20.3 GB`, `4.1 MB`."""
    return f"{num_bytes / GIGABYTE:.2f} GB" if num_bytes >= GIGABYTE else f"{num_bytes / 1e6:.2f} MB"
