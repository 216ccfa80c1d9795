"""The small networks that ship with dreamquant, as plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class PadShortcut(nn.Module):
    """Shortcut of option A: every second pixel, zeros for the new channels (He et al. 2016, section 4.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels, self.channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = PadShortcut((outputs - inputs) // 2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images: three stages of `blocks` residual blocks (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int = 3, widths: tuple[int, int, int] = (16, 32, 64), channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], 1, blocks)
        self.layer2 = self._stage(widths[0], widths[1], 2, blocks)
        self.layer3 = self._stage(widths[1], widths[2], 2, blocks)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int, eps: float) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, eps=eps), nn.ReLU6()]


class DepthwiseNet(nn.Module):
    """A chain of depthwise and pointwise convolutions with ReLU6, as in MobileNet: BatchNorm eps 1e-3."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64, 96), channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        layers = _conv_bn(channels, widths[0], 3, 1, 1, 1e-3)
        for number, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += _conv_bn(inputs, inputs, 3, 2 if number < 3 else 1, inputs, 1e-3)
            layers += _conv_bn(inputs, outputs, 1, 1, 1, 1e-3)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
