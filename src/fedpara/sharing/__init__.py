"""Which tensors travel and which stay with the client, in every round or by turns."""

from fedpara.sharing.rotating import Rotating
from fedpara.sharing.split import Split

__all__ = ["Rotating", "Split"]
