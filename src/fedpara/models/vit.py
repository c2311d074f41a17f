"""Vision transformer (Dosovitskiy et al. 2021) in the plain form of Beyer et al. 2022, arXiv 2205.01580.

It has no class token: positions are fixed sines and cosines, and the classifier reads the mean over the patches. So it
takes images of any size.
"""

from typing import Annotated

import torch
from pydantic import Field, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

Positive = Annotated[int, Field(ge=1)]


class ViT(nn.Module):
    """Patches, blocks of attention and a fully connected network, each behind a LayerNorm, then a linear classifier.

    Each projection of the attention is a layer of its own, as LoRA (Hu et al. 2022) names them: `blocks.0.query`. The
    classifier starts at 0, so factors cannot start at its scale: exclude it from `factorize`.

    Args:
        patch: side of a square patch in pixels; images are cut to whole patches.
        width: features of a patch; a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: width inside the fully connected networks.
        num_classes: number of logits.
        in_channels: 3 for colour images, 1 for grey.

    Example:
        >>> ViT(patch=4, width=32, depth=2, heads=2, hidden=64, num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    @validate_call
    def __init__(
        self,
        patch: Positive,
        width: Positive,
        depth: Positive,
        heads: Positive,
        hidden: Positive,
        num_classes: Positive,
        in_channels: Positive = 3,
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise ValueError(f"width={width}: must be a multiple of 4 and of heads={heads}")
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.zeros_(self.classifier.weight)  # as Beyer et al.: the first loss is log(classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        features = self.patches(images)
        positions = sines(features.shape[-2], features.shape[-1], features.shape[-3], features.device)
        patches = features.flatten(-2).mT + positions.to(self.norm.weight.dtype)  # not autocast's type
        return self.classifier(self.norm(self.blocks(patches)).mean(-2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)) with one hidden layer and GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.hidden, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for layer in (self.query, self.key, self.value, self.output, self.hidden, self.back):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Features of the patches (B, patches, width) to new ones of the same shape."""
        normed = self.norm1(patches)
        query, key, value = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        patches = patches + self.output(mixed.transpose(-3, -2).flatten(-2))
        return patches + self.back(F.gelu(self.hidden(self.norm2(patches))))


def sines(height: int, width: int, features: int, device: torch.device | None = None) -> Tensor:
    """Positions (height * width, features) in two dimensions: sines and cosines of each side (Beyer et al. 2022).

    Frequencies fall from 1 to 1/10,000. A quarter of the features each is sin(x), cos(x), sin(y) and cos(y).
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, features // 4, device=device)
    y, x = (torch.arange(side, device=device)[:, None] * frequencies for side in (height, width))
    y, x = y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1).flatten(0, 1)
