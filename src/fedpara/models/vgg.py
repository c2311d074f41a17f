"""VGG with GroupNorm (Simonyan and Zisserman 2015; Wu and He 2018) as FedPara uses it (ICLR 2022, section 3.1).

It is torchvision's VGG16-BN with GroupNorm in place of BatchNorm and the last layers 512-512-classes. The paper does
not give the number of groups; its third-party reproduction (Flower) and Hsieh et al. 2020 use 2.
"""

from typing import Annotated

from pydantic import Field, validate_call
from torch import Tensor, nn

Positive = Annotated[int, Field(ge=1)]


class VGG(nn.Module):
    """Stages of 3x3 convolutions, GroupNorm and ReLU, each with max pooling at its end; then a classifier.

    Layers have the names of Simonyan and Zisserman: `features.conv3_2` is the second convolution of the third stage.

    Convolutions start at He's scale. Hidden fully connected layers start at PyTorch's own, because no norm follows
    them: at He's scale and learning rate 0.1 the first steps throw VGG16 to chance accuracy, and it stays there.

    Args:
        stages: output channels of the convolutions, stage by stage; each stage halves height and width.
        hidden: widths of the hidden fully connected layers.
        num_classes: number of logits.
        in_channels: 3 for colour images, 1 for grey.
        groups: groups of each GroupNorm; must divide every width of `stages`.
        dropout: probability in the classifier; the paper does not give it, torchvision's VGG has 0.5.

    Example:
        >>> import torch
        >>> VGG([[8, 8], [16]], hidden=[32], num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    @validate_call
    def __init__(
        self,
        stages: Annotated[list[Annotated[list[Positive], Field(min_length=1)]], Field(min_length=1)],
        hidden: list[Positive],
        num_classes: Positive,
        in_channels: Positive = 3,
        groups: Positive = 2,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        super().__init__()
        wrong = [width for stage in stages for width in stage if width % groups]
        if wrong:
            raise ValueError(f"groups={groups}: must divide every width in stages, but does not divide {wrong[0]}")
        self.features = nn.Sequential()
        channels = in_channels
        for stage, widths in enumerate(stages, 1):
            for number, width in enumerate(widths, 1):
                self.features.add_module(f"conv{stage}_{number}", nn.Conv2d(channels, width, 3, padding=1))
                self.features.add_module(f"norm{stage}_{number}", nn.GroupNorm(groups, width))
                self.features.add_module(f"relu{stage}_{number}", nn.ReLU(inplace=True))
                channels = width
            self.features.add_module(f"pool{stage}", nn.MaxPool2d(2))
        self.features.add_module("mean", nn.AdaptiveAvgPool2d(1))
        self.features.add_module("flat", nn.Flatten())
        head: list[nn.Module] = []
        for width in hidden:
            head += [nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            channels = width
        last = nn.Linear(channels, num_classes)
        self.classifier = nn.Sequential(*head, last)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # He et al. 2015, fan in
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(last.weight, 0, 0.01)  # as torchvision: logits near 0, so that the first loss is log(classes)
        nn.init.zeros_(last.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        return self.classifier(self.features(images))
