"""Other ways to the same numbers, which several test files compare with."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn as nn

from dreamquant import Images, Model
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.trace import Pair, Watch, pair

FACTS = ((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def twelve_images(classes: int = 10, seed: int = 3) -> Images:
    """Noise, with labels that repeat."""
    pixels = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Images(pixels, torch.arange(12) % classes)


def inputs_of_batch_norm(model: Model, pixels: torch.Tensor) -> list[tuple[nn.BatchNorm2d, torch.Tensor]]:
    """Every BatchNorm and what it is given, by hooks, which the package itself does not use."""
    seen: list[tuple[nn.BatchNorm2d, torch.Tensor]] = []
    handles = [
        m.register_forward_hook(lambda m, i, o: seen.append((m, i[0]))) for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model.net(pixels)
    for handle in handles:
        handle.remove()
    return seen


def record(bn: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The recorded mean and the variance that is divided by."""
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean, bn.running_var + bn.eps


def pair_of(model: Model, images: Images, needs: frozenset[str], bits: str = "w3a3") -> Pair:
    """Teacher and a calibrated student, whose convolutions and linear layers take gradients."""
    student = convert(model, scheme_of(bits))
    with student.observing(LpSearch()), torch.no_grad():
        student.net(images.pixels)
    for layer in student.layers().values():
        layer.weight.requires_grad_()
    images = replace(images, pixels=images.pixels.clone().requires_grad_("pixels" in needs))
    return pair(Watch(model, needs)(images), Watch(model, needs - {"bn"}, student.net)(images))
