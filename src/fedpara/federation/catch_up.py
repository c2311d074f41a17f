"""Broadcasts that depend on the client: each is sent the pieces of the model that changed since it last took part.

A client keeps the model that it received in its last round that counted. The server knows that round, and
for every piece the last round that changed it. The client lacks what changed in its own last round or later: that
round's mean was made from its upload, but it has not seen the mean. A client in its first round is sent everything.

A packet starts with a bit for each piece, which says whether it follows; the bits are counted like all other bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedpara.communication import Link, Packet
from fedpara.communication.packet import packed, unpacked
from fedpara.sharing import Split
from fedpara.state import Parts, PartsLayout, State, layout_of


@dataclass(frozen=True)
class Downlink:
    """Encodes and decodes a part of a broadcast: some pieces of the model, and all other parts.

    Raises:
        ValueError: the link encodes updates or draws at random, so that a piece would depend on the round.
    """

    link: Link
    split: Split
    layout: PartsLayout

    def __post_init__(self) -> None:
        if self.link.down_codec.of_updates:
            raise ValueError(
                f"catch_up=True: link.down_codec must be a Cast, not a {type(self.link.down_codec).__name__}, by which "
                "a client that kept a piece would have other values than one that is sent it now"
            )

    def start(self) -> "CatchUp":
        """The server's note of its clients, at the start."""
        return CatchUp(self)

    def encode(self, message: Parts, lacking: Sequence[bool], seed: int) -> Packet:
        """The bits, and the pieces for which they are set, in the order of `Split.cut`."""
        pieces = self.split.cut(message["model"])
        sent = {name: piece for (name, piece), lacks in zip(pieces.items(), lacking, strict=True) if lacks}
        body = self.link.encode_down(message | {"model": sent}, seed)
        flags = packed(torch.tensor(lacking, dtype=torch.uint8), 1)
        return Packet(torch.cat([flags, body.payload]))

    def decode(self, packet: Packet, held: State) -> Parts:
        """The whole message, for a client that holds a model; in its first round it holds none, `{}`.

        Raises:
            ValueError: the packet belongs to another model, or lacks pieces that the client does not hold.
        """
        shapes = {
            name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
            for name, spec in self.layout["model"].items()
        }
        pieces = self.split.cut(shapes)
        size = -(-len(pieces) // 8)
        lacking = unpacked(packet.payload[:size], 1, len(pieces)).tolist()
        sent = {name: piece for (name, piece), lacks in zip(pieces.items(), lacking, strict=True) if lacks}
        if not held and len(sent) < len(pieces):
            raise ValueError(f"packet with {len(sent)} of {len(pieces)} pieces: a client that holds no model needs all")
        parts = dict(self.layout) | {"model": layout_of(sent)}
        read = self.link.decode_down(Packet(packet.payload[size:]), parts)
        before = {name: held.get(name, shape) for name, shape in shapes.items()}  # a file has another order
        return read | {"model": self.split.put(before, read["model"])}


@dataclass
class CatchUp:
    """What the server knows of what its clients hold.

    Attributes:
        changed: by piece, the last round, from 1, that changed it; the others are as they were at the start.
        last: by client, its last round that counted.
    """

    downlink: Downlink
    changed: dict[str, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def packets(self, message: Parts, clients: Iterable[int], seed: int) -> Mapping[int, Packet]:
        """A packet for each client; those that lack the same pieces are sent the same one."""
        made: dict[tuple[bool, ...], Packet] = {}
        packets: dict[int, Packet] = {}
        names = list(self.downlink.split.cut(message["model"]))
        for client in clients:
            lacking = tuple(self.changed.get(name, 0) >= self.last.get(client, 0) for name in names)
            if lacking not in made:
                made[lacking] = self.downlink.encode(message, lacking, seed)
            packets[client] = made[lacking]
        return packets

    def note(self, before: State, after: State, moving: State, round_number: int, clients: Iterable[int]) -> None:
        """A round counts: note the pieces that it changed, and who took part.

        Args:
            before, after: the model before and after it.
            moving: what it trained, after it.
        """
        cut = self.downlink.split.cut
        old = cut(before)
        self.changed |= {name: round_number for name, piece in cut(after).items() if not torch.equal(piece, old[name])}
        self.last |= dict.fromkeys(clients, round_number)

    def tensors(self) -> State:
        """What a checkpoint stores of it as tensors: nothing."""
        return {}

    def resume(self, changed: Mapping[str, int], last: Mapping[int, int], tensors: State) -> None:
        """Take what a checkpoint stored.

        Raises:
            ValueError: the tensors are those of another model.
        """
        self.changed, self.last = dict(changed), dict(last)
