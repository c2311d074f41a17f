"""ResNet18 for 32 x 32 images (He et al. 2016; first convolution 3 x 3 and no pooling after it): FedPara's Fig. 8.

With BatchNorm, as in the paper, the running means and variances are part of the state: they travel, are counted, and
are averaged like weights, by numbers of examples. `sharing=fedbn` keeps them and the affine parameters with the client.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, validate_call
from torch import Tensor, nn

Positive = Annotated[int, Field(ge=1)]


def _norm(kind: str, channels: int, groups: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(groups, channels)
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None  # only momentum=None reads this counter, so it need not be sent
    norm.register_load_state_dict_pre_hook(_forget_counter)
    return norm


def _forget_counter(norm: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
    """Torch adds the counter to a state without versions, such as a file's."""
    state.pop(f"{prefix}num_batches_tracked", None)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, outputs, groups)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("norm", _norm(norm, outputs, groups))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(images)))))
        return self.relu(inner + self.shortcut(images))


class ResNet(nn.Module):
    """Stages of basic blocks; each except the first halves height and width.

    Args:
        widths, blocks: channels and blocks of each stage; ResNet18 has (64, 128, 256, 512) and 2 blocks each.
        num_classes: number of logits.
        in_channels: 3 for colour images, 1 for grey.
        norm: `batch`, as in the paper, or `group`, which needs no statistics.
        groups: groups of each GroupNorm; must divide every width.
    """

    @validate_call
    def __init__(
        self,
        widths: Annotated[list[Positive], Field(min_length=1)],
        blocks: Annotated[list[Positive], Field(min_length=1)],
        num_classes: Positive,
        in_channels: Positive = 3,
        norm: Literal["batch", "group"] = "batch",
        groups: Positive = 2,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"blocks={blocks}: must be as many as widths ({len(widths)})")
        if norm == "group" and (wrong := [width for width in widths if width % groups]):
            raise ValueError(f"groups={groups}: must divide every width in widths, but does not divide {wrong[0]}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.norm1 = _norm(norm, widths[0], groups)
        self.relu = nn.ReLU(inplace=True)
        channels = widths[0]
        stages: list[nn.Module] = []
        for stage, (width, number) in enumerate(zip(widths, blocks, strict=True)):
            layers: list[nn.Module] = []
            for block in range(number):
                layers.append(BasicBlock(channels, width, 2 if stage and not block else 1, norm, groups))
                channels = width
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as torchvision

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        return self.output(self.pool(self.stages(self.relu(self.norm1(self.conv1(images))))))
