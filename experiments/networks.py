"""Networks whose weights come from elsewhere: factories for `file.py:function` with --weights."""

from __future__ import annotations

import torch.nn as nn

from dreamquant.zoo.networks import CifarResNet


def resnet20() -> nn.Module:
    """ResNet-20 of He et al. 2016, section 4.2, with option-A shortcuts: 0.27 M parameters."""
    return CifarResNet(blocks=3)


def resnet32() -> nn.Module:
    """ResNet-32 of the same family: 0.46 M parameters."""
    return CifarResNet(blocks=5)
