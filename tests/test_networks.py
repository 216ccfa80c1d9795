"""Architectures that people bring: each is traced, converted, calibrated, frozen, and computes what the student computes."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dreamquant import load_model
from dreamquant.quant.freeze import freeze
from dreamquant.quant.ranges import MinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert

# network, side of its images here, layers that are quantized
NETWORKS = [
    ("torchvision:resnet18", 64, 21),
    ("torchvision:mobilenet_v2", 64, 53),
    ("torchvision:mobilenet_v3_small", 64, 54),
    ("torchvision:shufflenet_v2_x0_5", 64, 57),
    ("torchvision:densenet121", 64, 121),
    ("torchvision:vgg11_bn", 32, 11),
    ("torchvision:googlenet", 64, 58),
    ("torchvision:regnet_y_400mf", 64, 86),
    ("torchvision:efficientnet_b0", 64, 82),
    ("torchvision:convnext_tiny", 64, 59),
    ("torchvision:vit_b_16", 224, 50),
    ("timm:efficientnet_lite0", 64, 50),
    ("timm:resnet18", 64, 21),
    ("timm:deit_tiny_patch16_224", 224, 50),
    ("timm:swin_tiny_patch4_window7_224", 224, 53),
]


@pytest.mark.parametrize(("name", "side", "layers"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_every_layer_is_quantized_and_the_frozen_network_computes_the_same(name: str, side: int, layers: int) -> None:
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm and torchvision are not installed")
    torch.manual_seed(0)
    model = load_model(name, weights="random", shape=(3, side, side))
    x = torch.randn(2, 3, side, side)
    student = convert(model, scheme_of("w8a8"))
    with student.observing(MinMax()), torch.no_grad():
        student.net(x)
    assert len(student.layers()) == layers
    quantized = freeze(student, {})
    with torch.no_grad():
        assert torch.allclose(quantized(x), student.net(x), rtol=1e-4, atol=1e-6)
    assert not quantized.left_in_float
