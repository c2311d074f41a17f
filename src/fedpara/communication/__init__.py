"""The wire: packets, codecs and links. Bytes are counted on the encoded messages."""

from fedpara.communication.codecs import Cast, Codec, StochasticUniform
from fedpara.communication.link import Link
from fedpara.communication.packet import Packet
from fedpara.communication.topk import TopK

__all__ = ["Cast", "Codec", "Link", "Packet", "StochasticUniform", "TopK"]
