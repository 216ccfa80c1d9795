"""What keeps dreamed images from looking alike: DSG's slack and emphasis, IntraQ's soft targets and distances to class means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.images import Images
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import BN, feature_width, features, gaps_of_images, grey_noise
from dreamquant.model import Model
from dreamquant.trace import Trace, Watch

CHUNK = 64  # images of noise looked at together


@dataclass(frozen=True)
class BatchNormSlack(Loss[Trace]):
    """DSG (Zhang et al., CVPR 2021): BNS-A that is zero within a slack, and every image stresses a layer of its own.

    Slack of a layer: the `share`-quantile, over images and channels, of the gap that plain noise has there; for means
    and deviations apart. Image i weighs layer i mod L with 1 + `emphasis`, the others with 1. `relative`: gaps in units
    of the network's own deviations, means over channels and layers instead of sums (ours, for networks of any scale).
    """

    needs: ClassVar[frozenset[str]] = BN
    share: float = 0.9
    emphasis: float = 1.0
    relative: bool = False
    samples: int = 1024

    def on(self, model: Model) -> Loss[Trace]:
        return _Slack(self, model)

    def gaps(self, seen: Trace) -> list[Tensor]:
        """For every layer, absolute gaps of means and deviations: (2, B, C)."""
        units = ((1 if self.relative else sigma, mean, deviation) for sigma, mean, deviation in gaps_of_images(seen))
        return [torch.stack([unit * mean, unit * deviation]).abs() for unit, mean, deviation in units]


class _Slack(nn.Module, Loss[Trace]):
    slack: Tensor  # (L, 2, 1, 1)

    def __init__(self, part: BatchNormSlack, model: Model) -> None:
        super().__init__()
        self.part = part
        watch, seen = Watch(model, BN), list[list[Tensor]]()
        with torch.no_grad():
            for start in range(0, part.samples, CHUNK):
                noise = grey_noise(model, min(CHUNK, part.samples - start))
                seen.append(part.gaps(watch(Images(noise, noise.new_zeros(len(noise), dtype=torch.long)))))
        layers = [torch.cat(chunks, 1).flatten(1).quantile(part.share, dim=1) for chunks in zip(*seen, strict=True)]
        self.register_buffer("slack", torch.stack(layers)[..., None, None])

    def forward(self, seen: Trace) -> Tensor:
        over = torch.mean if self.part.relative else torch.sum
        beyond = (gap - slack for gap, slack in zip(self.part.gaps(seen), self.slack, strict=True))
        layers = torch.stack([over(b.clamp_min(0).square(), dim=2).sum(0) for b in beyond], 1)  # (B, L)
        count = layers.shape[1]
        own = torch.arange(len(layers), device=layers.device) % count
        weight = 1 + self.part.emphasis * F.one_hot(own, count)
        return over(weight * layers, dim=1).mean()


@dataclass(frozen=True)
class InputNormal(Loss[Trace]):
    """BNS-A of the image itself, as if a BatchNorm stood at the input: channels of mean 0 and deviation 1 (ZeroQ, DSG)."""

    def __call__(self, seen: Trace) -> Tensor:
        pixels = seen.images.pixels.flatten(2)
        return (pixels.mean(2).square().sum(1) + ((pixels.var(2) + 1e-6).sqrt() - 1).square().sum(1)).mean()


@dataclass(frozen=True)
class NeighbourNorm(Loss[Trace]):
    """DSG's and DeepInversion's total variation: norms, over the whole batch, of the differences to four neighbours, added."""

    def __call__(self, seen: Trace) -> Tensor:
        x = seen.images.pixels
        falling, rising = x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]
        return x.diff(dim=3).norm() + x.diff(dim=2).norm() + falling.norm() + rising.norm()


@dataclass(frozen=True)
class PixelNorm(Loss[Trace]):
    """The length of an image as a vector, mean over images (DSG's code)."""

    def __call__(self, seen: Trace) -> Tensor:
        return seen.images.pixels.flatten(1).norm(dim=1).mean()


@dataclass(frozen=True)
class SoftTarget(Loss[Trace]):
    """IntraQ's soft inception loss: squared distance of the class's probability from the image's own target, mean over images.

    The targets are the fact "target" of the images: `labels=SoftTargets(...)` asks for them.
    """

    def __call__(self, seen: Trace) -> Tensor:
        if "target" not in seen.images.facts:
            raise ValueError("SoftTarget needs a target for every image; give the synthesis labels=SoftTargets()")
        probability = seen.logits.softmax(1).gather(1, seen.images.classes[:, None])[:, 0]
        return (probability - seen.images.facts["target"]).square().mean()


@dataclass(frozen=True)
class ClassSpread(Loss[Trace]):
    """IntraQ's marginal distance constraint (Zhong et al., CVPR 2022): not too near the middle of the class, not too far.

    With D the cosine distance of an image's features from the mean features of its class over all finished images: mean
    of max(low - D, 0) plus mean of max(D - high, 0), over images whose class has finished ones. A live memory.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    low: float = 0.05
    high: float = 0.8

    def on(self, model: Model) -> Loss[Trace]:
        return _ClassMeans(self, model)


class _ClassMeans(nn.Module, Loss[Trace]):
    total: Tensor  # (K, F)
    count: Tensor  # (K,)

    def __init__(self, part: ClassSpread, model: Model) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("total", torch.zeros(model.classes, feature_width(model), device=model.device))
        self.register_buffer("count", torch.zeros(model.classes, device=model.device))

    def forward(self, seen: Trace) -> Tensor:
        classes = seen.images.classes
        known = self.count[classes] > 0
        distance = 1 - F.cosine_similarity(features(seen), self.total[classes])  # a sum points where the mean does
        outside = (self.part.low - distance).clamp_min(0) + (distance - self.part.high).clamp_min(0)
        return (outside * known).sum() / known.sum().clamp_min(1)

    def remember(self, seen: Trace) -> None:
        classes = seen.images.classes
        self.total.index_add_(0, classes, features(seen))
        self.count.index_add_(0, classes, torch.ones_like(classes, dtype=self.count.dtype))
