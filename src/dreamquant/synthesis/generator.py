"""Generators: networks that make images. Their last layer makes every batch of mean 0 and deviation 1 per channel.

Where it is `affine`, it learns others. All normalise by the statistics of the batch, always, so that an image depends a
little on its companions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition


class Decoder(Protocol):
    """Describes a network: latents (N, latent) -> (N, *model.shape)."""

    @property
    def latent(self) -> int: ...

    def on(self, model: Model) -> nn.Module: ...


class Generator(Protocol):
    """Describes a network: Condition of N images -> (N, *model.shape). Made with torch's generator, on the CPU.

    One that decides itself which classes its images show returns (images, labels), labels without gradient.
    """

    def on(self, model: Model) -> nn.Module: ...


@dataclass(frozen=True)
class Upsampling:
    """GENIE-D's small generator of latents: a trunk with one convolution before the last.

    The fully connected layer holds nearly all weights: 103 million for images of 224, 2.1 million for 32.
    """

    latent: int = 256
    width: int = 128

    def on(self, model: Model) -> nn.Module:
        return Trunk(self.latent, (self.width, max(1, self.width // 2)), model.shape, lambda channels, eps: Norm(channels))


@dataclass(frozen=True)
class Multiplied:
    """GDFQ's generator for CIFAR: the class's embedding times the noise, into a trunk that knows of no class.

    `affine`: mean and deviation of the images are learned from 0 and 1 on (ours), not those of every batch.
    """

    latent: int = 100
    width: int = 128
    affine: bool = False

    def on(self, model: Model) -> nn.Module:
        trunk = Trunk(self.latent, gdfq_widths(self.width), model.shape, Norm, self.affine)
        return _Multiplied(nn.Embedding(model.classes, self.latent), trunk)


@dataclass(frozen=True)
class ClassNormed:
    """GDFQ's generator for ImageNet: noise into a trunk whose normalisations have scales and shifts for each class."""

    latent: int = 100
    width: int = 128
    affine: bool = False

    def on(self, model: Model) -> nn.Module:
        def norm(channels: int, eps: float) -> nn.Module:
            return ClassNorm(model.classes, channels, eps)

        return _ClassNormed(self.latent, Trunk(self.latent, gdfq_widths(self.width), model.shape, norm, self.affine))


@dataclass(frozen=True)
class BySide:
    """One generator for images whose longer side is at most `side` pixels, another for larger ones."""

    small: Generator = Multiplied()
    large: Generator = ClassNormed()
    side: int = 64

    def on(self, model: Model) -> nn.Module:
        return (self.small if max(model.shape[1:]) <= self.side else self.large).on(model)


def gdfq_widths(width: int) -> tuple[int, int, int]:
    """Channels of a trunk with two convolutions before the last: 128, 128 and 64 as published."""
    return width, width, max(1, width // 2)


def of_class(table: Tensor, labels: Tensor) -> Tensor:
    """The row of each label (N,), or the mixture of rows by shares (N, classes): (N, width)."""
    return F.embedding(labels, table) if labels.ndim == 1 else labels.to(table) @ table


def noise_for(condition: Condition, latent: int) -> Tensor:
    """The condition's noise, or N(0, 1): (N, latent), on the device of its labels."""
    return condition.noise if condition.noise is not None else torch.randn(len(condition), latent, device=condition.labels.device)


class Norm(nn.Module):
    """BatchNorm with the statistics of the batch, whatever the condition: (N, C, H, W) both."""

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class ClassNorm(nn.Module):
    """BatchNorm with a scale and a shift for every class; shares of classes mix them, `averaged` over a mixture's classes or not."""

    def __init__(self, classes: int, channels: int, eps: float = 1e-5, averaged: bool = False) -> None:
        super().__init__()
        self.averaged = averaged
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False, track_running_stats=False)
        self.scale, self.shift = nn.Parameter(torch.ones(classes, channels)), nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        scale, shift = (of_class(table, condition.labels)[:, :, None, None] for table in (self.scale, self.shift))
        if self.averaged and "slots" in condition.facts:
            scale, shift = (v / condition.facts["slots"].shape[1] for v in (scale, shift))
        return torch.addcmul(shift, self.norm(x), scale)


class Trunk(nn.Module):
    """A linear layer to a quarter of the side, then 3x3 convolutions at a half and at the whole, nearest upsampling between.

    `widths`: channels after the linear layer and after each convolution but the last. `norm` makes the normalisation of
    so many channels with such an eps, called with the tensor and the condition; 0.8 is GDFQ's (its code means the
    momentum, and sets eps, which the images show). Sides that four does not divide are rounded up and met at the
    upsampling (ours).
    """

    def __init__(
        self,
        latent: int,
        widths: tuple[int, ...],
        shape: tuple[int, int, int],
        norm: Callable[[int, float], nn.Module],
        affine: bool = False,
    ) -> None:
        super().__init__()
        channels, *side = shape
        self.sizes = [tuple(-(-length // shrink) for length in side) for shrink in (4, 2, 1)]
        self.width, (height, width) = widths[0], self.sizes[0]
        self.start = nn.Linear(latent, self.width * height * width)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.norms = nn.ModuleList(norm(c, 0.8 if place else 1e-5) for place, c in enumerate(widths))
        self.last, self.last_norm = nn.Conv2d(widths[-1], channels, 3, padding=1), Norm(channels, affine=affine)

    def forward(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        x = self.norms[0](self.start(latents).view(len(latents), self.width, *self.sizes[0]), condition)
        for place, conv in enumerate(self.convs, start=1):
            x = F.leaky_relu(self.norms[place](conv(F.interpolate(x, size=self.sizes[place])), condition), 0.2)
        if x.shape[2:] != self.sizes[-1]:
            x = F.interpolate(x, size=self.sizes[-1])
        images: Tensor = self.last_norm(torch.tanh(self.last(x)))
        return images


class _Multiplied(nn.Module):
    def __init__(self, embedding: nn.Embedding, trunk: Trunk) -> None:
        super().__init__()
        self.embedding, self.trunk = embedding, trunk

    def forward(self, condition: Condition) -> Tensor:
        classes = of_class(self.embedding.weight, condition.labels)
        images: Tensor = self.trunk(classes * noise_for(condition, classes.shape[1]), condition)
        return images


class _ClassNormed(nn.Module):
    def __init__(self, latent: int, trunk: Trunk) -> None:
        super().__init__()
        self.latent, self.trunk = latent, trunk

    def forward(self, condition: Condition) -> Tensor:
        images: Tensor = self.trunk(noise_for(condition, self.latent), condition)
        return images


def shown(model: Model, unit: Tensor, pixels: tuple[float, float] | None) -> Tensor:
    """What the network is shown of a generator's output: of this mean and deviation in pixels of [0, 1], or as it is.

    As it is, published, supposes that the network's mean and std are those of its data.
    """
    if pixels is None:
        return unit
    mean, deviation = pixels
    return model.normalise(mean + deviation * unit)
