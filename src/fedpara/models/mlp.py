"""Fully connected network; 784-256-C is the personalisation net of FedPara (ICLR 2022, section 3.4)."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, validate_call
from torch import Tensor, nn

Positive = Annotated[int, Field(ge=1)]


class MLP(nn.Module):
    """ReLU layers of the given widths, without norm or dropout; images are flattened.

    Args:
        widths: input features, hidden widths and classes, such as `[784, 256, 62]`.

    Example:
        >>> import torch
        >>> MLP([784, 256, 62])(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 62])
    """

    @validate_call
    def __init__(self, widths: Annotated[list[Positive], Field(min_length=2)]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, ...) to logits (B, classes)."""
        return self.layers(images)
