"""The link between server and clients: encodes, counts and decodes, each way with its own codec."""

from dataclasses import dataclass

from fedpara.communication.codecs import Codec
from fedpara.state import State


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

    def __init__(self, up_codec: Codec, down_codec: Codec) -> None:
        self.up_codec, self.down_codec = up_codec, down_codec

    def down(self, message: State) -> Delivery:
        """Send the broadcast; encoded once, to be counted for each client that receives it."""
        return _deliver(self.down_codec, message)

    def up(self, message: State) -> Delivery:
        """Send one client's upload."""
        return _deliver(self.up_codec, message)


def _deliver(codec: Codec, message: State) -> Delivery:
    packet = codec.encode(message)
    return Delivery(codec.decode(packet, like=message), packet.num_bytes)
