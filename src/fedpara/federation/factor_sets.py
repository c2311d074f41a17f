"""Broadcasts to clients that kept the model where factors are reset (`fedpara.sharing.resetting`, FedMUD).

A round changes each weight by an update that its mean factors give. So a client that holds the model of an earlier
round needs the factors of that round and of all later ones that counted, or the model, whichever is fewer bytes. What
is not factorised is sent as it is now. A client in its first round is sent the model.

A packet starts with the number of factor sets, and the number of the round of each, in 4 bytes; 0 is the whole model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fedpara.communication import Cast, Packet
from fedpara.federation.catch_up import CatchUp, Downlink
from fedpara.sharing import Resetting
from fedpara.state import Parts, State, layout_of, num_bytes, only

NUMBER_BYTES = 4
Value = TypeVar("Value")


@dataclass(frozen=True)
class FactorDownlink(Downlink):
    """Encodes and decodes a broadcast: the model, or the factors of some rounds and what is not factorised.

    Raises:
        ValueError: the link rounds, so that what a client takes up would not be what the server did.
    """

    split: Resetting

    def __post_init__(self) -> None:
        codec, types = self.link.down_codec, {spec.dtype for spec in self.split.factors.values()}
        if not isinstance(codec, Cast) or types != {codec.dtype}:
            raise ValueError(
                "catch_up=True: link.down_codec must be a Cast to float32 where factors are reset (factorization=mud), "
                "clients that take up rounded factors would hold other weights than those that are sent them now"
            )

    def start(self) -> "FactorCatchUp":
        """The server's note of its clients, at the start."""
        return FactorCatchUp(self)

    def encode_sets(self, message: Parts, sets: Mapping[int, State], seed: int) -> Packet:
        """The factors of some rounds, by their numbers from 1, and the rest of the model; without any, all of it."""
        if sets:
            others = {name: x for name, x in message["model"].items() if name not in self.split.weights}
            message = message | {"model": self.named(sets) | others}
        head = torch.tensor([len(sets), *sorted(sets)], dtype=torch.int32).view(torch.uint8)
        return Packet(torch.cat([head, self.link.encode_down(message, seed).payload]))

    def named(self, sets: Mapping[int, Mapping[str, Value]]) -> dict[str, Value]:
        """The factors of several rounds, or their layouts, under `<round>/<name>` in the order of the wire."""
        return {f"{number}/{name}": sets[number][name] for number in sorted(sets) for name in self.split.factors}

    def decode(self, packet: Packet, held: State) -> Parts:
        """The whole message, for a client that holds a model; in its first round it holds none, `{}`.

        Raises:
            ValueError: the packet belongs to another model, or has factors for a model that the client does not hold.
        """
        rounds, body = _rounds(packet.payload)
        if not rounds:
            return self.link.decode_down(body, self.layout)
        if not held:
            raise ValueError(f"packet with factors of {len(rounds)} rounds: a client that holds no model needs it all")
        sets = self.named(dict.fromkeys(rounds, self.split.factors))
        others = {name: spec for name, spec in self.layout["model"].items() if name not in self.split.weights}
        read = self.link.decode_down(body, dict(self.layout) | {"model": sets | others})
        model, now = held, only(others, read["model"])
        for number in rounds:
            own = {name: read["model"][f"{number}/{name}"] for name in self.split.factors}
            model = self.split.moved(model, own | now, number - 1)
        return read | {"model": only(self.layout["model"], model)}


@dataclass
class FactorCatchUp(CatchUp):
    """What the server knows of what its clients hold.

    Attributes:
        sets: the mean factors of the last rounds that counted, by round from 1: no more of them than are fewer bytes
            than the weights.
    """

    downlink: FactorDownlink
    sets: dict[int, State] = field(default_factory=dict)

    def packets(self, message: Parts, clients: Iterable[int], seed: int) -> Mapping[int, Packet]:
        """A packet for each client; those that took part last in the same round are sent the same one."""
        made: dict[int, Packet] = {}
        since = {client: self.last[client] if self.last.get(client) in self.sets else 0 for client in clients}
        for first in set(since.values()):
            sets = {number: own for number, own in self.sets.items() if first and number >= first}
            made[first] = self.downlink.encode_sets(message, sets, seed)
        return {client: made[first] for client, first in since.items()}

    def note(self, before: State, after: State, moving: State, round_number: int, clients: Iterable[int]) -> None:
        """A round counts: note its mean factors, and who took part."""
        split = self.downlink.split
        self.sets[round_number] = only(split.factors, moving)
        a_set = NUMBER_BYTES + num_bytes(self.sets[round_number])
        whole = num_bytes(only(split.weights, after))
        for number in sorted(self.sets)[: max(0, len(self.sets) - (whole - 1) // a_set)]:
            del self.sets[number]
        self.last |= dict.fromkeys(clients, round_number)

    def tensors(self) -> State:
        """The sets, by `<round>/<name>`."""
        return self.downlink.named(self.sets)

    def resume(self, changed: Mapping[str, int], last: Mapping[int, int], tensors: State) -> None:
        """Take what a checkpoint stored.

        Raises:
            ValueError: the tensors are not the factors of rounds of this model.
        """
        found: dict[int, State] = {}
        for name, tensor in tensors.items():
            before, _, own = name.partition("/")
            found.setdefault(int(before), {})[own] = tensor
        sets = dict(sorted(found.items()))
        for number, factors in sets.items():
            if layout_of(factors) != self.downlink.split.factors:
                raise ValueError(f"the factors of round {number} are of another model")
        self.sets, self.last = sets, dict(last)


def _rounds(payload: Tensor) -> tuple[list[int], Packet]:
    """The rounds of a packet's factors, and the rest of it."""
    size = NUMBER_BYTES
    if len(payload) >= size:
        size += NUMBER_BYTES * int(payload[:NUMBER_BYTES].clone().view(torch.int32))
    if not NUMBER_BYTES <= size <= len(payload):
        raise ValueError(f"packet of {len(payload)} bytes: does not hold the numbers of its rounds")
    rounds = payload[NUMBER_BYTES:size].clone().view(torch.int32).tolist()
    if sorted({*rounds}) != rounds or min(rounds, default=1) < 1:
        raise ValueError(f"packet with the factors of rounds {rounds}: must be numbers from 1, in order")
    return rounds, Packet(payload[size:])
