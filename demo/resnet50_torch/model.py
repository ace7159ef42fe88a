"""The network of `resnet50` as a torch module, its tensors named as in the ONNX file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn


def module(depths: Sequence[int] = (3, 4, 6, 3), *, classes: int = 1000, width: int = 64) -> nn.Module:
    """Make the network, without its weights; the arguments are those of `demo.resnet50.build`."""
    parts = OrderedDict[str, nn.Module]()
    parts["stem"] = convolution(3, width, 7, stride=2)
    parts["rectify"] = nn.ReLU()
    parts["shrink"] = nn.MaxPool2d(3, stride=2, padding=1)
    channels = width
    for stage, depth in enumerate(depths):
        blocks = OrderedDict[str, nn.Module]()
        for index in range(depth):
            blocks[f"block{index + 1}"] = Block(channels, width << stage, stride=2 if stage and not index else 1)
            channels = 4 * width << stage
        parts[f"stage{stage + 1}"] = nn.Sequential(blocks)
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["features"] = nn.Flatten()
    parts["classes"] = nn.Linear(channels, classes)
    return Network(parts)


class Network(nn.Sequential):
    """One part after the other."""

    def forward(self, image: Tensor) -> Tensor:
        """Turn `image`, floats [N, 3, height, width], into scores [N, classes]."""
        for part in self:
            image = part(image)
        return image


class Block(nn.Module):
    """A bottleneck: 1x1, 3x3 and 1x1, added to what passes by it."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = convolution(channels, width, 1)
        self.spatial = convolution(width, width, 3, stride)
        self.expand = convolution(width, 4 * width, 1)
        self.project = convolution(channels, 4 * width, 1, stride) if channels != 4 * width else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Turn floats [N, channels, height, width] into [N, 4 * width, …], the sides divided by the stride."""
        hidden = self.spatial(self.reduce(image).relu()).relu()
        out: Tensor = (self.expand(hidden) + self.project(image)).relu()
        return out


def convolution(channels: int, out: int, side: int, stride: int = 1) -> nn.Module:
    """Make a convolution with the bias that batch normalisation folds into."""
    return nn.Conv2d(channels, out, side, stride, side // 2)
