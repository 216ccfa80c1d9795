"""Rounding that is learned (AdaRound, GENIE-M), and activations of which only a part is quantized (QDrop).

Rules beside those of `quantizer.py`, for a step that rebuilds a network piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.quant.quantizer import Quantizer, Rule, Stepped

ABOVE, BELOW = 1.1, -0.1  # the sigmoid is stretched to these and clipped to [0, 1], so that both ends are reached


class SoftRounding(Rule):
    """Each weight lies between its two neighbours on the grid: step * (floor(w / first step) + h), h in [0, 1].

    h is AdaRound's rectified sigmoid of a learned `logit` (Nagel et al. 2020, Eq. 23), and starts where the weight is
    unchanged. The floor is a constant, so the step may be learned as well (GENIE-M, Jeon et al. 2023). The grid must
    stand still: made for a quantizer that is fixed, and for the weight it quantizes.
    """

    whole: Tensor

    def __init__(self, q: Quantizer, weight: Tensor) -> None:
        super().__init__()
        steps = weight.detach() / q.scale.detach()
        self.register_buffer("whole", steps.floor())
        self.logit = nn.Parameter(-torch.log((ABOVE - BELOW) / (steps - self.whole - BELOW) - 1))

    def soft(self) -> Tensor:
        """h: how far up every weight is between its two neighbours, in [0, 1]."""
        return (torch.sigmoid(self.logit) * (ABOVE - BELOW) + BELOW).clamp(0, 1)

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        return self._weight(q, self.soft())

    def hard(self, q: Quantizer) -> Tensor:
        """The weight on the grid: every one up or down, whichever is nearer now."""
        return self._weight(q, (self.logit >= 0).to(self.logit))

    def _weight(self, q: Quantizer, up: Tensor) -> Tensor:
        return q.scale * (self.whole + up).clamp(q.format.low - q.zero, q.format.high - q.zero)


class Dropping(Rule):
    """QDrop (Wei et al. 2022): each element passes in float with probability `share`, drawn anew every time; the steps are
    learned as in `LearnedStep`.
    """

    learns = True

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        return Stepped.apply(x, q.scale, q.zero, q.format, drawn(x, self.share) if self.share else None)


@dataclass(frozen=True)
class DropSome:
    """A `share` of the elements passes in float, and steps are learned; see `Dropping`."""

    share: float = 0.5

    def on(self, q: Quantizer) -> Rule:
        return Dropping(self.share)


def drawn(like: Tensor, share: float) -> Tensor:
    """Independent ones with probability `share` and zeros else, of the shape, type and layout of `like`.

    From 16 random bits each: a third of the time of `torch.rand`, which is a large part of a small convolution's.
    """
    mask = torch.empty_like(like)
    bits = torch.empty(-(-mask.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None).view(torch.int16)
    below = round(share * 2**16) - 2**15
    return mask.copy_(bits[: mask.numel()].as_strided(mask.shape, mask.stride())).lt_(below)
