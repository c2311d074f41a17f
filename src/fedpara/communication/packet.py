"""The bytes on the wire, without anything that the receiver already knows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packet:
    """An encoded state.

    Names and shapes are fixed by the model that both ends hold, so they do not travel; only `payload` does.

    Attributes:
        payload: 1-D uint8 tensor; its length is the number of bytes sent.
    """

    payload: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes on the wire."""
        return self.payload.numel()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2^bits, in uint8, with 8 / bits of them to a byte, the first in the lowest bits.

    Example:
        >>> packed(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.uint8), bits=1)
        tensor([13,  1], dtype=torch.uint8)
    """
    shifts = _shifts(bits, codes.device)
    padded = torch.nn.functional.pad(codes, [0, -len(codes) % len(shifts)]).view(-1, len(shifts))
    return (padded << shifts).sum(1, dtype=torch.uint8)


def unpacked(data: Tensor, bits: int, number: int) -> Tensor:
    """The first `number` codes of what `packed` gave."""
    return ((data[:, None] >> _shifts(bits, data.device)) & (2**bits - 1)).reshape(-1)[:number]


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(8 // bits, dtype=torch.uint8, device=device) * bits
