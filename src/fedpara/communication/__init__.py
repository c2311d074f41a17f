"""The wire: packets, codecs, links. Bytes are counted on what was encoded."""

from fedpara.communication.codecs import Cast, Codec, StochasticUniform
from fedpara.communication.link import Link
from fedpara.communication.packet import Packet

__all__ = ["Cast", "Codec", "Link", "Packet", "StochasticUniform"]
