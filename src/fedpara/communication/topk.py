"""Top-k: only the largest values of an update travel, with their places.

Aji and Heafield (EMNLP 2017, arXiv 1704.05021) keep what was not sent and add it to the next update; Stich, Cordonnier
and Jaggi (NeurIPS 2018, arXiv 1809.07599, Algorithm 1) prove that this error feedback converges as SGD does. Here it is
a part of the link (`Link.error_feedback`), and a client's memory.
"""

import sys
from math import ceil
from typing import Annotated

import torch
from pydantic import Field, validate_call

from fedpara.communication.packet import Packet, packed, unpacked
from fedpara.state import Layout, State, as_bytes

INDEX_BYTES = VALUE_BYTES = 4
ROUNDING = 4 * sys.float_info.epsilon  # more than what a float's product with a whole number is off, relatively


class TopK:
    """The share of an update's values that are largest in absolute value, over all its tensors together.

    Of n floating-point values, k = ceil(share n) travel as float32, in their order, after their places: k numbers of 4
    bytes, or a bit for each of the n values, whichever is shorter. Integer buffers travel whole, in their own type.

    Args:
        share: of the values, above 0 and at most 1.

    Example:
        >>> TopK(share=0.1).encode({"w": torch.arange(100.0)}).num_bytes  # 10 values, and 100 bits
        53
    """

    of_updates = True
    zeroes = True  # what it leaves out is 0, so it cannot carry a broadcast of values

    @validate_call
    def __init__(self, share: Annotated[float, Field(gt=0, le=1)] = 0.1) -> None:
        self.share = share

    def encode(self, state: State, seed: int = 0) -> Packet:
        """Buffers, places, values; what is not finite counts as largest, so that the server sees it."""
        floats = [t.reshape(-1).float() for t in state.values() if t.dtype.is_floating_point]
        whole = [as_bytes(t) for t in state.values() if not t.dtype.is_floating_point]
        values = torch.cat(floats) if floats else torch.empty(0)
        number, _, as_bits = self._sizes(values.numel())
        places = values.abs().topk(number, sorted=False).indices.sort().values
        if as_bits:
            head = packed(torch.zeros_like(values, dtype=torch.uint8).index_fill_(0, places, 1), 1)
        else:
            head = as_bytes(places.int())
        return Packet(torch.cat([*whole, head, as_bytes(values[places])]))

    def decode(self, packet: Packet, layout: Layout) -> State:
        """The values that were sent, and zeros, in the types of the layout.

        Raises:
            ValueError: the packet has not the length that the layout asks for, or its places are not those of k values.
        """
        floats = {name: spec.numel() for name, spec in layout.items() if spec.dtype.is_floating_point}
        whole = {n: s.numel() * s.dtype.itemsize for n, s in layout.items() if not s.dtype.is_floating_point}
        total = sum(floats.values())
        number, size, as_bits = self._sizes(total)
        sizes = [*whole.values(), size, number * VALUE_BYTES]
        if sum(sizes) != packet.num_bytes:
            raise ValueError(f"packet of {packet.num_bytes} bytes: the model needs {sum(sizes)}")
        *buffers, head, sent = packet.payload.split(sizes)
        places = unpacked(head, 1, 8 * size).nonzero()[:, 0] if as_bits else head.clone().view(torch.int32).long()
        if len(places) != number or (number and not 0 <= int(places.min()) <= int(places.max()) < total):
            raise ValueError(f"packet with {len(places)} places: must be {number} among {total} values")
        values = torch.zeros(total, device=sent.device).index_copy_(0, places, sent.clone().view(torch.float32))
        found = dict(zip(floats, values.split([*floats.values()]), strict=True))
        found |= {name: part.clone().view(layout[name].dtype) for name, part in zip(whole, buffers, strict=True)}
        return {name: found[name].reshape(spec.shape).to(spec.dtype) for name, spec in layout.items()}

    def _sizes(self, total: int) -> tuple[int, int, bool]:
        """k, the bytes of the places, and whether these are bits."""
        number = ceil(self.share * total * (1 - ROUNDING))  # 0.07 * 100 is 7.000000000000001
        bits, indices = -(-total // 8), number * INDEX_BYTES
        return number, min(bits, indices), bits < indices
