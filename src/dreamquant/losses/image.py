"""What makes a dreamed image good: losses on what the teacher did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.losses.algebra import Loss
from dreamquant.model import Model
from dreamquant.trace import Moments, Trace

BN = frozenset({"bn"})


def mean_of(terms: list[Tensor]) -> Tensor:
    """The mean of scalars."""
    return sum(terms[1:], terms[0]) / len(terms)


def features(seen: Trace) -> Tensor:
    """What the last layer reads, averaged over places or tokens: (B, F)."""
    return pooled(seen.at["features"][0])


def pooled(x: Tensor) -> Tensor:
    """Averaged over places (B, C, H, W) or tokens (B, T, C): (B, C)."""
    return x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def feature_width(model: Model) -> int:
    """How many features `features` returns."""
    return pooled_width(model, model.points["features"][0])


def pooled_width(model: Model, name: str) -> int:
    """How many channels `pooled` leaves of a node's tensor."""
    shape = graph.named(model.net, name).meta["shape"]
    return int(shape[1] if len(shape) in (2, 4) else shape[-1])


def grey_noise(model: Model, count: int) -> Tensor:
    """Plain noise around the middle grey, as the network takes it: with usual normalisation about N(0, 1). (count, C, H, W)"""
    return model.normalise((0.5 + 0.25 * torch.randn(count, *model.shape)).clamp(0, 1).to(model.device))


def raw_gap(m: Moments) -> Tensor:
    """Of one layer: mean squared difference of batch means and *variances* from the record, in the layer's own units.

    The recorded variance is what BatchNorm divides by, its eps included: images with exactly the statistics of the data cost
    eps^2, 1e-10 for the usual one.
    """
    mean, var = m.batch()  # in units of sigma: muhat - mu = sigma * mean, vhat - v = sigma^2 * (var - 1)
    return (m.sigma * mean).square().mean() + (m.sigma.square() * (var - 1)).square().mean()


def relative_gap(m: Moments) -> Tensor:
    """Of one layer: mean squared difference of batch means and deviations from the record, in units of its deviations."""
    mean, var = m.batch()
    return mean.square().mean() + ((var + 1e-8).sqrt() - 1).square().mean()


def gaps_of_images(seen: Trace) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every BatchNorm: sigma (C,), and each image's own mean and deviation less the record's, in units of sigma, (B, C).

    The deviation is the unbiased spatial one, the record's has BatchNorm's own eps under the root; ZeroQ's code adds 1e-6
    to both variances. An image with one place only has no deviation, and no gap in it.
    """
    for name, m in seen.moments.items():
        mean, var = m.image()
        places = seen.watch.places_in(name)
        unbiased = var * (places / max(places - 1, 1))
        yield m.sigma, mean, (unbiased + 1e-12).sqrt() - 1 if places > 1 else torch.zeros_like(var)


@dataclass(frozen=True)
class BatchNormDeviation(Loss[Trace]):
    """BatchNorm statistics in units of the network's own deviations (ours): mean(z)^2 + (std(z) - 1)^2, z = (x - mu) / sigma.

    Mean over channels and layers; the same for inputs and layers of any scale, so there is nothing to tune.
    """

    needs: ClassVar[frozenset[str]] = BN

    def __call__(self, seen: Trace) -> Tensor:
        return mean_of([relative_gap(m) for m in seen.moments.values()])


@dataclass(frozen=True)
class BatchNormMatch(Loss[Trace]):
    """BNS-B (GDFQ, IntraQ, HAST, SynQ code): batch means and *variances*, mean over channels, mean over layers."""

    needs: ClassVar[frozenset[str]] = BN

    def __call__(self, seen: Trace) -> Tensor:
        return mean_of([raw_gap(m) for m in seen.moments.values()])


@dataclass(frozen=True)
class BatchNormPerImage(Loss[Trace]):
    """BNS-A (ZeroQ): each image's own means and deviations, sums over channels and layers, mean over images."""

    needs: ClassVar[frozenset[str]] = BN
    with_input: bool = True

    def __call__(self, seen: Trace) -> Tensor:
        pixels = seen.images.pixels.flatten(2)
        total = pixels.new_zeros(len(pixels))
        if self.with_input:
            deviation = (pixels.var(2) + 1e-6).sqrt()
            total = pixels.mean(2).square().sum(1) + (deviation - 1).square().sum(1)
        for sigma, mean, deviation in gaps_of_images(seen):
            total = total + (sigma * mean).square().sum(1) + (sigma * deviation).square().sum(1)
        return total.mean()


@dataclass(frozen=True)
class BatchNormSum(Loss[Trace]):
    """BNS-C (Genie): batch means and *deviations*, mean over channels, sum over layers; the image's own as a further layer.

    Deviations of batches are biased and the record's have BatchNorm's own eps (ours; the code's are unbiased, with 1e-6).
    """

    needs: ClassVar[frozenset[str]] = BN
    with_input: bool = True

    def __call__(self, seen: Trace) -> Tensor:
        total = seen.logits.new_zeros(())
        if self.with_input:
            pixels = seen.images.pixels.flatten(2)
            total = (pixels.mean(2).square().sum(1) + ((pixels.var(2) + 1e-6).sqrt() - 1).square().sum(1)).mean()
        for m in seen.moments.values():
            mean, var = m.batch()
            total = total + (m.sigma * mean).square().mean() + (m.sigma * ((var + 1e-12).sqrt() - 1)).square().mean()
        return total


@dataclass(frozen=True)
class ClassTarget(Loss[Trace]):
    """Cross-entropy with the class an image should show; `focus` > 0 weighs it by difficulty^focus (HAST's HIL).

    Difficulty is one minus the teacher's probability of the class; it is kept from zero, where its power has no
    finite gradient (the published code turns to NaN there).
    """

    focus: float = 0.0

    def __call__(self, seen: Trace) -> Tensor:
        loss = F.cross_entropy(seen.logits, seen.images.labels, reduction="none")
        if not self.focus:
            return loss.mean()
        probability = seen.logits.softmax(1).gather(1, seen.images.classes[:, None])[:, 0]
        return ((1 - probability).clamp_min(1e-6) ** self.focus * loss).mean()


@dataclass(frozen=True)
class TotalVariation(Loss[Trace]):
    """Mean absolute difference of neighbouring pixels; zero for a flat image."""

    def __call__(self, seen: Trace) -> Tensor:
        pixels = seen.images.pixels
        return pixels.diff(dim=2).abs().mean() + pixels.diff(dim=3).abs().mean()
