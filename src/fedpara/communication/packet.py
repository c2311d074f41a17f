"""The bytes on the wire, without anything that the receiver already knows."""

from dataclasses import dataclass

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
