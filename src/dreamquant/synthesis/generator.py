"""Generators: latents -> images. Their last layer makes every batch of mean 0 and deviation 1 per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.model import Model


class Generator(Protocol):
    """Describes a network: latents (N, latent) -> (N, *model.shape)."""

    @property
    def latent(self) -> int: ...

    def on(self, model: Model) -> nn.Module: ...


@dataclass(frozen=True)
class Upsampling:
    """GENIE-D's small generator: a linear layer to a quarter of the side, then twice nearest upsampling and a 3x3 convolution.

    Sides that four does not divide are rounded up and met at the upsampling (ours). The fully connected layer holds
    nearly all weights: 103 million for images of 224, 2.1 million for 32.
    """

    latent: int = 256
    width: int = 128

    def on(self, model: Model) -> nn.Module:
        return _Upsampling(self, model.shape)


def _norm(channels: int, affine: bool = True) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=affine, track_running_stats=False)  # statistics of the batch, always


class _Upsampling(nn.Module):
    def __init__(self, part: Upsampling, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *side = shape
        self.sizes = [tuple(-(-length // shrink) for length in side) for shrink in (4, 2, 1)]
        self.width, half = part.width, max(1, part.width // 2)
        height, width = self.sizes[0]
        self.start, self.norm = nn.Linear(part.latent, self.width * height * width), _norm(self.width)
        self.middle, self.middle_norm = nn.Conv2d(self.width, half, 3, padding=1), _norm(half)
        self.last, self.last_norm = nn.Conv2d(half, channels, 3, padding=1), _norm(channels, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.norm(self.start(latents).view(len(latents), self.width, *self.sizes[0]))
        x = self.middle(F.interpolate(x, size=self.sizes[1]))
        x = F.leaky_relu(self.middle_norm(x), 0.2)
        return self.last_norm(torch.tanh(self.last(F.interpolate(x, size=self.sizes[2]))))
