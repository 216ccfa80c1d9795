"""TexQ's terms: layered BatchNorm statistics, the statistics of one calibration image a class, and Laws' texture energies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import BN, raw_gap, relative_gap
from dreamquant.model import Model
from dreamquant.trace import Moments, Trace

# Laws' vectors (1980): level, edge, spot, ripple
LAWS = ((1, 4, 6, 4, 1), (-1, -2, 0, 2, 1), (-1, 0, 2, 0, -1), (1, -4, 6, -4, 1))


def first_deep(layers: int) -> int:
    """The first of the deep layers, counted from 0: floor((L + 2) / 2) - 2, as in SynQ's port of TexQ (FDDA: of L + 1)."""
    return max(0, (layers + 2) // 2 - 2)


@dataclass(frozen=True)
class LayeredBatchNorm(Loss[Trace]):
    """BNS-B with one weight for shallow and another for deep layers, mean over layers (TexQ; weights of SynQ's port).

    `relative`: gaps in units of the network's own deviations (ours, for networks of any scale).
    """

    needs: ClassVar[frozenset[str]] = BN
    shallow: float = 0.2
    deep: float = 1.1
    relative: bool = False

    def __call__(self, seen: Trace) -> Tensor:
        gap = relative_gap if self.relative else raw_gap
        terms = torch.stack([gap(m) for m in seen.moments.values()])
        weight = torch.full_like(terms, self.shallow)
        weight[first_deep(len(terms)) :] = self.deep
        return (weight * terms).mean()


@dataclass(frozen=True)
class ClassCentre(Loss[Trace]):
    """Images of a class have, at the deep layers, the statistics of the first images of that class it remembers (TexQ).

    Means and variances over the images of the class in this batch against the centre's; mean over channels, deep layers
    and classes. Fill the memory by `exemplars` of the synthesis: one calibration image for each class. `relative`: in
    units of the network's own deviations (ours).
    """

    needs: ClassVar[frozenset[str]] = BN
    relative: bool = False

    def on(self, model: Model) -> Loss[Trace]:
        return _Centres(self, model)


def recorded_deviation(model: Model, name: str) -> Tensor:
    """The deviations that the BatchNorm called by node `name` divides by: (C,)."""
    bn = model.net.get_submodule(str(graph.named(model.net, name).target))
    assert isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d) and bn.running_var is not None
    return (bn.running_var + bn.eps).sqrt()


class _Centres(nn.Module, Loss[Trace]):
    centres: Tensor  # (K, 2, sum of channels), in units of the record's deviations
    known: Tensor  # (K,)

    def __init__(self, part: ClassCentre, model: Model) -> None:
        super().__init__()
        names = model.points["bn"]
        self.deep = names[first_deep(len(names)) :]
        sigmas = [recorded_deviation(model, name) for name in self.deep]
        sigma = torch.cat([torch.ones_like(s) if part.relative else s for s in sigmas])
        share = torch.cat([torch.full_like(s, 1 / (len(s) * len(sigmas))) for s in sigmas])
        self.weight = torch.stack([sigma.square(), sigma.square().square()]) * share  # of squared gaps of means, of variances
        self.register_buffer("centres", torch.zeros(model.classes, 2, len(sigma), device=model.device))
        self.register_buffer("known", torch.zeros(model.classes, device=model.device))

    def statistics(self, moments: Mapping[str, Moments], classes: Tensor) -> tuple[Tensor, Tensor]:
        """The P classes of a batch, and the mean and variance of z over each one's images: (P,), (P, 2, channels)."""
        present, place = classes.unique(return_inverse=True)
        mine = F.one_hot(place, len(present)).T.float()
        mine = mine / mine.sum(1, keepdim=True)
        first, second = (mine @ torch.cat([getattr(moments[name], which) for name in self.deep], 1) for which in ("first", "second"))
        return present, torch.stack([first, (second - first.square()).clamp_min(0)], 1)

    def forward(self, seen: Trace) -> Tensor:
        present, found = self.statistics(seen.moments, seen.images.classes)
        known = self.known[present]
        gaps = ((found - self.centres[present]).square() * self.weight).sum((1, 2))
        return (gaps * known).sum() / known.sum().clamp_min(1)

    def remember(self, seen: Trace) -> None:
        present, found = self.statistics(seen.moments, seen.images.classes)
        new = self.known[present] == 0
        self.centres[present[new]] = found[new]
        self.known[present] = 1


def texture_shares(pixels: Tensor) -> Tensor:
    """How an image's texture is shared out among Laws' nine elements: (B, C, H, W) -> (B, 9), rows sum to one.

    Grey values less their local mean (15 x 15), filtered by all products of the four vectors, each of length one;
    mean absolute response; the two orders of a pair averaged, level x level left out.
    """
    grey = pixels.mean(1, keepdim=True)
    grey = grey - F.avg_pool2d(F.pad(grey, (7,) * 4, mode="replicate"), 15, 1)
    vectors = F.normalize(torch.tensor(LAWS, dtype=grey.dtype, device=grey.device), dim=1)
    kernels = (vectors[:, None, :, None] * vectors[None, :, None, :]).view(16, 1, 5, 5)
    energy = F.conv2d(F.pad(grey, (2,) * 4, mode="replicate"), kernels).abs().mean((2, 3)).view(-1, 4, 4)
    down, across = torch.triu_indices(4, 4)[:, 1:].to(grey.device)
    energy = (energy[:, down, across] + energy[:, across, down]) / 2
    return energy / energy.sum(1, keepdim=True).clamp_min(1e-12)


@dataclass(frozen=True)
class TextureBalance(Loss[Trace]):
    """No texture element has more than `most` of an image's texture: sum of max(share - most, 0)^2, mean over images.

    TexQ calibrates Laws' texture energies with an upper threshold of 0.3; its formula is not public, this one is ours.
    """

    most: float = 0.3

    def __call__(self, seen: Trace) -> Tensor:
        return (texture_shares(seen.images.pixels) - self.most).clamp_min(0).square().sum(1).mean()
