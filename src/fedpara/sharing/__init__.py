"""Which tensors travel and which stay with the client, in every round or by turns, and factors of one round."""

from fedpara.sharing.resetting import Resetting, resetting
from fedpara.sharing.rotating import Rotating
from fedpara.sharing.split import Split

__all__ = ["Resetting", "Rotating", "Split", "resetting"]
