"""What functions make of normal values: their means and variances."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def clipped(mean: Tensor, var: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of a normal value clipped to [low, high]; ReLU is (0, inf). Any shape."""
    given = mean.dtype
    if (mean.square() > 1e3 * var).any():  # far from zero the variance, a difference of squares, needs more digits
        mean, var = mean.double(), var.double()
    std = var.clamp_min(1e-12).sqrt()

    def at(end: float) -> tuple[Tensor, Tensor]:
        """cdf and pdf of the standard normal at the clip's end."""
        t = (end - mean) / std
        return 0.5 * (1 + torch.erf(t / 2**0.5)), torch.exp(-0.5 * t.square()) / math.sqrt(2 * math.pi)

    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    below, pdf_low = at(low) if low > -math.inf else (zero, zero)
    until, pdf_high = at(high) if high < math.inf else (one, zero)
    inside, bottom, top = until - below, low if low > -math.inf else 0.0, high if high < math.inf else 0.0
    first = bottom * below + top * (1 - until) + mean * inside + std * (pdf_low - pdf_high)
    second = bottom**2 * below + top**2 * (1 - until) + (mean**2 + std**2) * inside
    second = second + std * ((mean + bottom) * pdf_low - (mean + top) * pdf_high)
    return first.to(given), (second - first.square()).clamp_min(0).to(given)


def through(function: Callable[[Tensor], Tensor], mean: Tensor, var: Tensor, nodes: int = 33) -> tuple[Tensor, Tensor]:
    """Mean and variance of a function of a normal value, by sums over equally likely quantiles. Any shape."""
    std = var.clamp_min(0).sqrt()
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    values = quantiles(nodes)
    for z in (values / values.square().mean().sqrt()).tolist():  # so few quantiles alone lack some of the variance
        value = function(mean + z * std)
        first, second = first + value / nodes, second + value.square() / nodes
    return first, (second - first.square()).clamp_min(0)


def quantiles(count: int) -> Tensor:
    """Equally likely values of a standard normal. (count,)"""
    return math.sqrt(2) * torch.erfinv((2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1).float()
