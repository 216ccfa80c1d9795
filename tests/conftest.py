"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from dreamquant.zoo import CifarResNet


@pytest.fixture
def tiny_net() -> nn.Module:
    """A residual network of seven convolutions for 3x16x16 images and ten classes: seeded, in eval mode, with statistics
    in BatchNorm that are not the initial ones."""
    torch.manual_seed(0)
    net = CifarResNet(blocks=1, widths=(8, 8, 16))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(20):
        net(torch.randn(64, 3, 16, 16) * 1.3 + 0.2)
    return net.eval()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data and third-party weights, where this machine has them."""
    folder = Path(os.environ.get("DREAMQUANT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.exists():
        pytest.skip("no real data here: set DREAMQUANT_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits that training did not see, as data to measure on."""
    from dreamquant.cli.demo import write_digits

    path = tmp_path_factory.mktemp("data") / "digits.npz"
    write_digits(path)
    return path
