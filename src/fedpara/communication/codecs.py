"""Codecs: a state to a packet and back.

A codec is an object with `encode(state) -> Packet` and `decode(packet, like) -> State`, where `like` is any state of
the same names, shapes and types, which both ends hold.
"""

from typing import Literal, Protocol

import torch
from pydantic import validate_call

from fedpara.communication.packet import Packet
from fedpara.state import State


class Codec(Protocol):
    """State to packet and back."""

    def encode(self, state: State) -> Packet:
        """The bytes to send for `state`."""
        ...

    def decode(self, packet: Packet, like: State) -> State:
        """What the other end reads from the packet, in the names, shapes and types of `like`."""
        ...


class Cast:
    """Floating-point values sent in one type: float32 as is, float16 or bfloat16 at half the bytes (paper, Table 12).

    Integer buffers travel in their own type.

    Args:
        dtype: `float32`, `float16` or `bfloat16`.
    """

    @validate_call
    def __init__(self, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)

    def _wire_type(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype.is_floating_point else dtype

    def encode(self, state: State) -> Packet:
        """All values, tensor after tensor, in the order of the state."""
        parts = [t.to(self._wire_type(t.dtype)).reshape(-1).view(torch.uint8) for t in state.values()]
        return Packet(torch.cat(parts))

    def decode(self, packet: Packet, like: State) -> State:
        """The values in the types of `like`.

        Raises:
            ValueError: the packet has not the length that `like` asks for.
        """
        types = {name: self._wire_type(tensor.dtype) for name, tensor in like.items()}
        sizes = [tensor.numel() * types[name].itemsize for name, tensor in like.items()]
        if sum(sizes) != packet.num_bytes:
            raise ValueError(f"packet of {packet.num_bytes} bytes: the model needs {sum(sizes)}")
        parts = zip(like.items(), packet.payload.split(sizes), strict=True)
        # a copy of each part: views into one buffer need not be aligned for their type, and would keep it all alive
        return {n: part.clone().view(types[n]).reshape(t.shape).to(t.dtype) for (n, t), part in parts}
