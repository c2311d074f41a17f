"""The Gaussian mechanism on the mean of a round's updates (DP-FedAvg: McMahan et al., ICLR 2018, Algorithm 1).

Each client's update is clipped, clients weigh alike, and the denominator is the planned size of the cohort, whoever
fails. The algorithm gets nothing but the noisy mean, so whatever it computes from that is private too.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from math import exp, inf, isinf, sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, validate_call

from fedpara.algorithms.base import Upload
from fedpara.communication import Codec
from fedpara.privacy.accounting import Spent, calibrated, epsilon
from fedpara.sampling import derive_seed
from fedpara.state import NARROW, Parts, PartsLayout, State, layout_of, only, weighted_mean

log = logging.getLogger(__name__)
Share = Annotated[float, Field(gt=0, lt=1)]


class ClientLevelPrivacy:
    """What is promised of a federation: its models hardly depend on any one client's data (epsilon, delta).

    Args:
        clip: largest norm of a client's update, C; `inf` clips nothing and allows no noise.
        noise_multiplier: z; the noise on the sum of a round's updates has the standard deviation z C in each value.
            None: the least that keeps all rounds within `target_epsilon`.
        target_epsilon: the run stops before a round that would exceed it. None: it never stops.
        delta: None: 1 / num_clients^1.1.
        noise: `server`: the server, which is trusted, adds it to the sum. `clients`: each client adds a share before
            it uploads, of which `min_clients` make up the whole.
        groups: what is clipped together: `all` values; each kind of `factor` (all x1, all x2, ..., all biases); each
            `tensor`. G groups have C / sqrt(G) each.
        quantile: the clip follows this quantile of the updates' norms (Andrew et al., NeurIPS 2021), and starts from
            `clip`; 0.5 there. None: it is fixed.
        clip_rate: learning rate of the clip's logarithm; 0.2 there.
        count_noise: standard deviation of the noise on the number of updates below the clip; None: a twentieth of a
            cohort, as there. It costs a part of z, so that the whole stays the same.
        secret_cohorts: whether nobody who sees the models knows which clients a round had. Cohorts follow from the
            experiment's seed, so it must be secret too. False: epsilon is that of a client in every round.
        client_metrics: whether clients' own figures, which no noise protects, are recorded (training loss, personal
            scores, clients.csv). They are then not to be shown to anybody.
        seed: None: the noise is drawn from the operating system's entropy, and no run can be repeated. A number, for
            tests: whoever knows it can subtract the noise.

    Raises:
        ValueError: neither noise nor target is given, or values do not go together.

    Example:
        >>> privacy = ClientLevelPrivacy(clip=1.0, noise_multiplier=0.0)
        >>> mean = privacy.start(["w"], num_clients=10, clients_per_round=2, min_clients=1, num_rounds=3)
        >>> uploads = [Upload({"model": {"w": torch.tensor([w])}}, num_examples=5) for w in (0.5, 4.0)]
        >>> [upload.parts["model"]["w"] for upload in mean.released(uploads, {"model": {"w": torch.zeros(1)}}, 0)]
        [tensor([0.7500]), tensor([0.7500])]
    """

    @validate_call
    def __init__(
        self,
        clip: PositiveFloat = 1.0,
        noise_multiplier: Annotated[float, Field(ge=0, lt=inf)] | None = None,
        target_epsilon: PositiveFloat | None = None,
        delta: Share | None = None,
        noise: Literal["server", "clients"] = "server",
        groups: Literal["all", "factor", "tensor"] = "all",
        quantile: Share | None = None,
        clip_rate: PositiveFloat = 0.2,
        count_noise: PositiveFloat | None = None,
        secret_cohorts: bool = True,
        client_metrics: bool = False,
        seed: Annotated[int, Field(ge=0)] | None = None,
    ) -> None:
        if noise_multiplier is None and target_epsilon is None:
            raise ValueError("noise_multiplier=None: must be given, or target_epsilon from which it follows")
        if isinf(clip) and (noise_multiplier != 0 or quantile is not None):
            raise ValueError("clip=inf: must be a number, unless noise_multiplier=0 and the clip is fixed")
        if quantile is not None and noise == "clients":
            raise ValueError("quantile: must be None with noise=clients, which cannot count the clipped updates")
        self.clip, self.noise_multiplier, self.noise, self.groups = clip, noise_multiplier, noise, groups
        self.target_epsilon, self.delta, self.secret_cohorts = target_epsilon, delta, secret_cohorts
        self.quantile, self.clip_rate, self.count_noise = quantile, clip_rate, count_noise
        self.client_metrics, self.seed = client_metrics, seed

    def start(
        self, names: Sequence[str], num_clients: int, clients_per_round: int, min_clients: int, num_rounds: int
    ) -> "PrivateMean":
        """The mechanism of one federation.

        Args:
            names: the trained values that travel.
        """
        if num_clients == 1 and self.delta is None:
            raise ValueError("privacy.delta=null: must be given with one client, N^-1.1 would be 1 and promise nothing")
        if self.seed is not None:
            log.warning("privacy.seed=%d: for tests alone, whoever knows it can subtract the noise", self.seed)
        return PrivateMean(self, list(names), num_clients, clients_per_round, min_clients, num_rounds)


class PrivacyState(BaseModel):
    """What a resumed federation goes on from: the clip of the next round, and the rounds that were released."""

    model_config = ConfigDict(ser_json_inf_nan="constants")
    clip: float
    spent: list[Spent] = []


@dataclass
class PrivateMean:
    """The mechanism of one federation, and its account.

    Args:
        terms: what is promised.
        names: the trained values that travel. The others that travel do not change.
        num_clients, clients_per_round, min_clients, num_rounds: of the federation.
    """

    terms: ClientLevelPrivacy
    names: list[str]
    num_clients: int
    clients_per_round: int
    min_clients: int
    num_rounds: int

    def __post_init__(self) -> None:
        self.state = PrivacyState(clip=self.terms.clip)
        self.unclipped: float | None = None

    def require(self, upload: PartsLayout, remembers: bool, up_codec: Codec, buffers: Iterable[str]) -> None:
        """Refuse a federation for which the promise would not hold.

        Args:
            upload: the layout of a client's message.
            remembers: whether clients remember a state that they compute from their uploads.
            buffers: names of the network's buffers, such as means of a batch norm.

        Raises:
            ValueError: one line.
        """
        if others := upload.keys() - {"model"}:
            raise ValueError(
                f"privacy clips and noises the model alone, but the algorithm also uploads its {', '.join(others)}; "
                "take another algorithm, such as fedavg or feddyn"
            )
        model = upload["model"]
        if narrow := next((name for name, spec in model.items() if spec.dtype in NARROW), None):
            raise ValueError(
                f"privacy needs values of float32 or float64, and {narrow} is {model[narrow].dtype}: rounding moves "
                "clipped updates and their mean by more than the clip"
            )
        if not self.names:
            raise ValueError("privacy has nothing to protect: no trained value travels")
        if shared := sorted(set(buffers) & upload["model"].keys()):
            raise ValueError(
                f"privacy cannot cover {shared[0]}, a statistic of clients' data that noise would spoil; "
                "keep it with the clients (sharing=fedbn), or take a network without batch norms"
            )
        if remembers and self.terms.quantile is not None:
            raise ValueError("privacy.quantile: must be null with an algorithm whose clients remember their uploads")
        if remembers and self.terms.noise == "clients":
            raise ValueError(
                "privacy.noise=clients: must be server with an algorithm whose clients remember their uploads, "
                "because the next one would tell a client's own noise"
            )
        if self.terms.noise == "clients" and not _is_exact(up_codec):
            raise ValueError(
                "privacy.noise=clients: needs uploads that are not rounded (link=fp32): "
                "the sum of rounded uploads tells more than the rounded sum"
            )

    @cached_property
    def groups(self) -> list[list[str]]:
        """The names that are clipped together."""
        by_group: dict[str, list[str]] = {}
        for name in self.names:
            key = {"all": "", "factor": name.rpartition(".")[2], "tensor": name}[self.terms.groups]
            by_group.setdefault(key, []).append(name)
        return list(by_group.values())

    @property
    def delta(self) -> float:
        """The probability for which epsilon need not hold."""
        return self.terms.delta or self.num_clients**-1.1

    @property
    def noise_multiplier(self) -> float:
        """z: as given; else that of the rounds so far, so that a longer run cannot change it; else the calibrated."""
        if self.terms.noise_multiplier is not None:
            return self.terms.noise_multiplier
        return self.state.spent[-1].noise_multiplier if self.state.spent else self._calibrated

    @cached_property
    def _calibrated(self) -> float:
        assert self.terms.target_epsilon is not None
        return calibrated(self._rounds(self.num_rounds, 0.0), self.terms.target_epsilon, self.delta)

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of updates below the clip."""
        return self.terms.count_noise or self.clients_per_round / 20

    @property
    def update_multiplier(self) -> float:
        """The part of z that is left for the updates, z_D = (z^-2 - (2 s)^-2)^-1/2 (Andrew et al. 2021, Theorem 1).

        There it is for a client that is added. It is the same for one that is replaced: that moves the updates' sum
        by 2 C rather than C, and the count by 1 rather than 1/2.
        """
        z = self.noise_multiplier
        if self.terms.quantile is None or not z:
            return z
        if z >= 2 * self.count_noise:
            raise ValueError(f"count_noise={self.count_noise:g}: must be above {z / 2:g}, half the noise multiplier")
        return float((z**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    @property
    def epsilon(self) -> float:
        """Spent so far, at `delta`."""
        return epsilon(self.state.spent, self.delta)

    def exhausted(self, rounds: int = 1) -> str | None:
        """Why no further rounds are allowed; None if they are.

        Args:
            rounds: how many.
        """
        target = self.terms.target_epsilon
        if target is None:
            return None
        then = epsilon([*self.state.spent, self._rounds(rounds)], self.delta)
        return f"privacy.target_epsilon={target:g}: another round would exceed it" if then > target else None

    def resume(self, state: PrivacyState | None, rounds: int) -> None:
        """Go on from a checkpoint.

        Args:
            state: None: its rounds had no privacy, which nothing can mend.
            rounds: how many it has.
        """
        self.state = state or PrivacyState(clip=self.terms.clip, spent=[self._rounds(rounds, 0.0)] if rounds else [])

    def uploaded(self, parts: Parts, received: Parts, round_index: int, client: int) -> Parts:
        """The client's half: its message, clipped if it can know the clip, with its share of the noise."""
        if self.terms.quantile is not None:
            return parts
        model, _ = self._clipped(parts["model"], received["model"])
        if self.terms.noise == "clients":
            model = self._noisy(model, self.noise_multiplier / sqrt(self.min_clients), round_index, client)
        return parts | {"model": model}

    def released(self, uploads: Iterable[Upload], received: Parts, round_index: int) -> Iterable[Upload]:
        """The server's half: the private mean, as the upload of each planned client. The round counts as spent.

        A client that failed counts as one that changed nothing: a smaller denominator would raise the sensitivity.
        """
        self._spend()
        origin, at_server = received["model"], self.terms.noise == "server"
        below: list[bool] = []

        def models() -> Iterator[tuple[State, float]]:
            for upload in uploads:  # clipped again, because a codec may have made it longer
                model, unclipped = upload.parts["model"], True
                if at_server:
                    model, unclipped = self._clipped(model, origin)
                below.append(unclipped)
                yield model, 1
            yield from repeat((origin, 1), self.clients_per_round - len(below))

        mean = weighted_mean(models())
        if at_server:
            mean = self._noisy(mean, self.update_multiplier / self.clients_per_round, round_index, 0)
        if self.terms.quantile is not None:
            self._adapt(below, round_index)
        return repeat(Upload({"model": mean}, 1), self.clients_per_round)

    def figures(self) -> dict[str, float]:
        """The account after a round: columns of metrics.csv."""
        return {
            "privacy/epsilon": self.epsilon,
            "privacy/clip": self.state.clip,
            "privacy/noise_multiplier": self.noise_multiplier,
            **({} if self.unclipped is None else {"privacy/unclipped": self.unclipped}),
        }

    def promise(self) -> str:
        """The promise in words.

        Raises:
            ImportError: dp-accounting is not installed.
            ValueError: the noise on the count is too small.
        """
        cohorts, target = "secret" if self.terms.secret_cohorts else "known", self.terms.target_epsilon
        left = self._rounds(max(0, self.num_rounds - self.rounds))
        planned = epsilon([*self.state.spent, left], self.delta)
        return (
            f"privacy: epsilon {planned:.4g} at delta {self.delta:.3g} after {self.num_rounds} rounds, if one client's "
            f"data are replaced; {cohorts} cohorts of {self.clients_per_round} of {self.num_clients} without "
            f"replacement; {'clip' if self.terms.quantile is None else 'at first clip'} {self.state.clip:g}, noise "
            f"multiplier {self.update_multiplier:.4g} at the {self.terms.noise}"
            f"{f'; it stops within {target:g}' if target and planned > target else ''}"
        )

    @property
    def rounds(self) -> int:
        """Rounds that were released."""
        return sum(one.rounds for one in self.state.spent)

    def _rounds(self, number: int, noise_multiplier: float | None = None) -> Spent:
        return Spent(
            noise_multiplier=self.noise_multiplier if noise_multiplier is None else noise_multiplier,
            num_clients=self.num_clients,
            clients_per_round=self.clients_per_round,
            secret_cohorts=self.terms.secret_cohorts,
            rounds=number,
        )

    def _spend(self) -> None:
        """Count a round before anything of it is released."""
        spent, new = self.state.spent, self._rounds(1)
        if spent and spent[-1].of(1) == new:
            spent[-1] = new.of(spent[-1].rounds + 1)
        else:
            spent.append(new)

    def _clipped(self, model: State, origin: State) -> tuple[State, bool]:
        present = [[name for name in group if name in model] for group in self.groups]  # of a part that moves
        trained, unclipped = clipped(model, origin, [group for group in present if group], self.state.clip)
        return {name: trained.get(name, origin[name]) for name in model}, unclipped

    def _noisy(self, model: State, clips: float, round_index: int, client: int) -> State:
        """The model with Gaussian noise on its trained values, of a standard deviation of so many clips."""
        if not clips:
            return model
        std = clips * self.state.clip
        draw = self._generator(round_index, client, "noise")
        sent = [name for name in self.names if name in model]
        noise = {name: torch.from_numpy(draw.standard_normal(model[name].shape, np.float32)) for name in sent}
        return model | {name: (model[name] + std * one).to(model[name].dtype) for name, one in noise.items()}

    def _adapt(self, below: Sequence[bool], round_index: int) -> None:
        """C <- C exp(-rate (share below C - quantile)), with noise on the share (Andrew et al. 2021, Algorithm 1).

        A client that failed counts as the quantile, which moves nothing.
        """
        quantile = self.terms.quantile
        assert quantile is not None
        noise = self.count_noise if self.noise_multiplier else 0.0
        drawn = float(self._generator(round_index, 0, "count").standard_normal())
        count = sum(below) + (self.clients_per_round - len(below)) * quantile + noise * drawn
        self.unclipped = count / self.clients_per_round
        self.state.clip *= exp(-self.terms.clip_rate * (self.unclipped - quantile))

    def _generator(self, round_index: int, client: int, purpose: str) -> np.random.Generator:
        """Not torch's: its CPU generator takes 32 bits of a seed, which can all be tried."""
        seed = self.terms.seed
        return np.random.default_rng(
            None if seed is None else derive_seed(seed, round_index, client, f"privacy {purpose}")
        )


def clipped(model: State, origin: State, groups: Sequence[Sequence[str]], clip: float) -> tuple[State, bool]:
    """A model drawn towards another until each group's difference has at most the norm clip / sqrt(groups).

    Returns:
        The groups' tensors; and whether none had to be changed. Those that need not be are the same objects.
    """
    limit, result, unclipped = clip / sqrt(max(1, len(groups))), dict[str, torch.Tensor](), True
    for names in groups:
        own = only(names, model)
        norm = _distance(own, origin)
        if norm > limit:
            unclipped = False
            # rounding to float32 may leave a norm just above the limit: then a little shorter, at worst no difference
            for shrink in (1.0, 1 - 1e-6, 1 - 1e-4, 0.99, 0.9):
                scale = shrink * limit / norm
                own = {name: origin[name] + scale * (model[name] - origin[name]) for name in names}
                if _distance(own, origin) <= limit:
                    break
            else:
                own = only(names, origin)
        result |= own
    return result, unclipped


def _distance(model: State, origin: State) -> float:
    """The norm of the difference, in float64."""
    return sqrt(sum(float((x.double() - origin[name].double()).square().sum()) for name, x in model.items()))


def _is_exact(codec: Codec) -> bool:
    """Whether a codec gives back what it was given."""
    probe = {"x": torch.linspace(-1, 1, 97) ** 3}
    return not codec.of_updates and torch.equal(codec.decode(codec.encode(probe), layout_of(probe))["x"], probe["x"])
