"""Networks by name. Each is a `Classifier`: pixels in 0..1 to logits, with its own input scaling inside."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

PIXEL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB
PIXEL_STD = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """Scaling, `features` (an embedding for each image) and `head` (one linear layer)."""

    def __init__(self, features: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(n_features, n_classes)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float `[B, 3, H, W]` in 0..1 to logits `[B, K]`."""
        return self.head(self.features((pixels - self.pixel_mean) / self.pixel_std))


def build(name: str, n_classes: int) -> Classifier:
    """A fresh network; its weights come from torch's global generator."""
    return NETWORKS[name](n_classes)


def cnn(n_classes: int) -> Classifier:
    """The butterfly system's network: four convolutions, each with ReLU and 2x2 max pooling, then the global average."""
    layers: list[nn.Module] = []
    channels = (3, 32, 64, 128, 256)
    for n_in, n_out, kernel in zip(channels, channels[1:], (5, 5, 3, 5), strict=False):
        layers += [nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*layers, *global_average()), channels[-1], n_classes)


def fieldnet(n_classes: int) -> Classifier:
    """fieldguide's residual network for training from scratch on few images: 3.4 M parameters at 50 classes.

    Basic residual blocks (He et al. 2016, arXiv:1512.03385) with average-pooled shortcuts (He et al. 2019,
    arXiv:1812.01187), behind a stem of stride 2.
    """
    widths, depths = (48, 96, 192, 384), (1, 1, 2, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    n_in = widths[0]
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            layers.append(ResidualBlock(n_in, width, stride=2 if block == 0 and width != widths[0] else 1))
            n_in = width
    return Classifier(nn.Sequential(*layers, *global_average()), n_in, n_classes)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added; it begins as the identity (last scale at zero)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, n_in, H, W]` to `[B, n_out, ceil(H / stride), ceil(W / stride)]`."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def global_average() -> list[nn.Module]:
    """`[B, C, H, W]` to `[B, C]`."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


NETWORKS: dict[str, Callable[[int], Classifier]] = {"fieldnet": fieldnet, "cnn": cnn}
