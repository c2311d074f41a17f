"""Codecs, which turn a state into a packet and back.

A codec is an object with `encode(state, seed) -> Packet` and `decode(packet, layout) -> State`; both ends know the
layout of the message. A codec with `of_updates` gets the difference from the values that the other end already knows.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import validate_call
from torch import Tensor

from fedpara.communication.packet import Packet, packed, unpacked
from fedpara.state import Layout, State, TensorSpec, as_bytes


@runtime_checkable
class Codec(Protocol):
    """Turns a state into a packet and back.

    Attributes:
        of_updates: whether it encodes differences from values that the receiver knows, rather than the values.
    """

    of_updates: bool

    def encode(self, state: State, seed: int = 0) -> Packet:
        """The bytes to send for `state`; `seed` determines any random choice."""
        ...

    def decode(self, packet: Packet, layout: Layout) -> State:
        """The state that the other end reads from the packet."""
        ...


def _packet(parts: list[Tensor]) -> Packet:
    return Packet(torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8))


class Cast:
    """Floating-point values sent in one type: float32 as is, float16 or bfloat16 at half the bytes (paper, Table 12).

    Integer buffers travel in their own type.

    Args:
        dtype: `float32`, `float16` or `bfloat16`.

    Example:
        >>> Cast("float16").encode({"w": torch.ones(100)}).num_bytes
        200
    """

    of_updates = False

    @validate_call
    def __init__(self, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)

    def _wire_type(self, dtype: torch.dtype) -> torch.dtype:
        return self.dtype if dtype.is_floating_point else dtype

    def encode(self, state: State, seed: int = 0) -> Packet:
        """All values, tensor after tensor, in the order of the state."""
        return _packet([as_bytes(tensor.to(self._wire_type(tensor.dtype))) for tensor in state.values()])

    def decode(self, packet: Packet, layout: Layout) -> State:
        """The values in the types of the layout.

        Raises:
            ValueError: the packet has not the length that the layout asks for.
        """
        types = {name: self._wire_type(spec.dtype) for name, spec in layout.items()}
        sizes = [spec.numel() * types[name].itemsize for name, spec in layout.items()]
        if sum(sizes) != packet.num_bytes:
            raise ValueError(f"packet of {packet.num_bytes} bytes: the model needs {sum(sizes)}")
        parts = zip(layout.items(), packet.payload.split(sizes), strict=True)
        # a copy of each part: views into one buffer need not be aligned for their type, and would keep it all alive
        return {n: part.clone().view(types[n]).reshape(spec.shape).to(spec.dtype) for (n, spec), part in parts}


class StochasticUniform:
    """Updates in 8, 4 or 2 bits a value, packed: the low-precision quantiser of FedPAQ (Reisizadeh et al. 2020, ex. 1).

    Each tensor is divided by its largest absolute value and rounded at random to one of 2^(bits - 1) - 1 levels on
    either side of zero, up or down with the probabilities that leave its expectation alone. A tensor of n values takes
    4 bytes for its scale and ceil(n bits / 8) for the rest. Integer buffers travel in their own type.

    Args:
        bits: 8, 4 or 2 (which leaves -1, 0, 1).

    Example:
        >>> StochasticUniform(bits=4).encode({"w": torch.ones(100)}).num_bytes
        54
    """

    of_updates = True

    @validate_call
    def __init__(self, bits: Literal[8, 4, 2] = 8) -> None:
        self.bits = bits
        self.levels = 2 ** (bits - 1) - 1

    @property
    def contracts(self) -> bool:
        """Whether what error feedback keeps stays bounded; with 2 bits an error may be as large as the scale."""
        return self.bits > 2

    def encode(self, state: State, seed: int = 0) -> Packet:
        """Scale and packed codes, tensor after tensor."""
        generator = torch.Generator().manual_seed(seed)
        parts: list[Tensor] = []
        for tensor in state.values():
            if not tensor.dtype.is_floating_point:
                parts.append(as_bytes(tensor))
                continue
            values = tensor.reshape(-1).float()
            scale = values.abs().max() if values.numel() else values.new_zeros(())
            noise = torch.rand(values.shape, generator=generator).to(values.device)
            codes = (values / scale.clamp(min=torch.finfo(torch.float32).tiny) * self.levels + noise).floor()
            codes = codes.clamp(-self.levels, self.levels) + self.levels
            parts += [as_bytes(scale), packed(codes.to(torch.uint8), self.bits)]
        return _packet(parts)

    def decode(self, packet: Packet, layout: Layout) -> State:
        """The quantised values in the types of the layout.

        Raises:
            ValueError: the packet has not the length that the layout asks for.
        """
        sizes = [self._num_bytes(spec) for spec in layout.values()]
        if sum(sizes) != packet.num_bytes:
            raise ValueError(f"packet of {packet.num_bytes} bytes: the model needs {sum(sizes)}")
        decoded: State = {}
        for (name, spec), part in zip(layout.items(), packet.payload.split(sizes), strict=True):
            if spec.dtype.is_floating_point:
                scale = part[:4].clone().view(torch.float32)
                codes = unpacked(part[4:], self.bits, spec.numel()).float()
                values = (codes - self.levels) * (scale / self.levels)
            else:
                values = part.clone().view(spec.dtype)
            decoded[name] = values.reshape(spec.shape).to(spec.dtype)
        return decoded

    def _num_bytes(self, spec: TensorSpec) -> int:
        if not spec.dtype.is_floating_point:
            return spec.numel() * spec.dtype.itemsize
        return 4 + -(-spec.numel() * self.bits // 8)
