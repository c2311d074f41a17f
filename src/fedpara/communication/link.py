"""The link between server and clients: encodes, counts and decodes, each way with its own codec."""

from dataclasses import dataclass

from pydantic import validate_call

from fedpara.communication.codecs import Codec
from fedpara.communication.packet import Packet
from fedpara.state import State, combine


@dataclass(frozen=True)
class Delivery:
    """What arrived at the other end, and what it cost.

    Attributes:
        state: the decoded state.
        num_bytes: bytes on the wire, once per receiver.
    """

    state: State
    num_bytes: int


class Link:
    """Server to clients (`down`) and client to server (`up`); each end has its half, which knows nothing of the other.

    `known` are some of the message's names, which both ends hold already: a codec of updates sends the difference.
    `like` is any state of the message's names, shapes and types, in its order.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(self, up_codec: Codec, down_codec: Codec) -> None:
        self.up_codec, self.down_codec = up_codec, down_codec

    def encode_down(self, message: State, seed: int = 0) -> Packet:
        """The broadcast, encoded once, to be counted for each client that receives it."""
        return _encode(self.down_codec, message, {}, seed)

    def decode_down(self, packet: Packet, like: State) -> State:
        """What a client reads from the broadcast."""
        return _decode(self.down_codec, packet, like, {})

    def encode_up(self, message: State, known: State, seed: int = 0) -> Packet:
        """One client's upload."""
        return _encode(self.up_codec, message, known, seed)

    def decode_up(self, packet: Packet, like: State, known: State) -> State:
        """What the server reads from a client's upload."""
        return _decode(self.up_codec, packet, like, known)

    def down(self, message: State, seed: int = 0) -> Delivery:
        """There and read."""
        packet = self.encode_down(message, seed)
        return Delivery(self.decode_down(packet, message), packet.num_bytes)

    def up(self, message: State, known: State, seed: int = 0) -> Delivery:
        """There and read."""
        packet = self.encode_up(message, known, seed)
        return Delivery(self.decode_up(packet, message, known), packet.num_bytes)


def _encode(codec: Codec, message: State, known: State, seed: int) -> Packet:
    return codec.encode(combine(message, -1, _differing(known)) if codec.of_updates else message, seed)


def _decode(codec: Codec, packet: Packet, like: State, known: State) -> State:
    state = codec.decode(packet, like)
    return combine(state, 1, _differing(known)) if codec.of_updates else state


def _differing(known: State) -> State:
    """What a difference is taken of: counters travel whole."""
    return {name: tensor for name, tensor in known.items() if tensor.is_floating_point()}
