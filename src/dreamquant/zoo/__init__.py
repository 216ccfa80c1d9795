"""Networks that ship in the package: `zoo:NAME`. Each was trained by training/train_zoo.py; NAME.json holds its accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn

from dreamquant.zoo.networks import CifarResNet, DepthwiseNet

# airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck -> 0 vehicle, 1 animal
SUPERCLASS_OF_CIFAR10 = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Entry:
    """One network of the zoo: how to build it, and the facts of its input."""

    build: Callable[[], nn.Module]
    about: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int


def _resnet_digits() -> nn.Module:
    return CifarResNet(blocks=1, widths=(16, 32, 64), channels=1)


def _tiny_raw() -> nn.Module:
    return CifarResNet(blocks=1, widths=(8, 16, 32))


ENTRIES = {
    "resnet-digits": Entry(_resnet_digits, "8x8 handwritten digits, three residual blocks", (1, 8, 8), (0.3,), (0.37,), 10),
    "resnet20-cifar10": Entry(CifarResNet, "CIFAR-10, the ResNet-20 of the papers", (3, 32, 32), CIFAR_MEAN, CIFAR_STD, 10),
    "depthwise-animals": Entry(DepthwiseNet, "animal or vehicle, depthwise, BatchNorm eps 1e-3", (3, 32, 32), CIFAR_MEAN, CIFAR_STD, 2),
    "tiny-raw-cifar10": Entry(_tiny_raw, "CIFAR-10, 20,000 parameters, inputs of 0..255", (3, 32, 32), (0.0,) * 3, (1 / 255,) * 3, 10),
}
