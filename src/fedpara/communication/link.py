"""The link between server and clients: encodes, counts and decodes, each way with its own codec."""

from dataclasses import dataclass

from pydantic import validate_call

from fedpara.communication.codecs import Codec
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
    """Server to clients (`down`) and client to server (`up`)."""

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(self, up_codec: Codec, down_codec: Codec) -> None:
        self.up_codec, self.down_codec = up_codec, down_codec

    def down(self, message: State, seed: int = 0) -> Delivery:
        """Send the broadcast; encoded once, to be counted for each client that receives it."""
        return _deliver(self.down_codec, message, {}, seed)

    def up(self, message: State, known: State, seed: int = 0) -> Delivery:
        """Send one client's upload to a server that knows `known`, some of the message's names, as this client does."""
        return _deliver(self.up_codec, message, known, seed)


def _deliver(codec: Codec, message: State, known: State, seed: int) -> Delivery:
    if not codec.of_updates:
        packet = codec.encode(message, seed)
        return Delivery(codec.decode(packet, like=message), packet.num_bytes)
    known = {name: tensor for name, tensor in known.items() if tensor.is_floating_point()}
    packet = codec.encode(combine(message, -1, known), seed)
    return Delivery(combine(codec.decode(packet, like=message), 1, known), packet.num_bytes)
