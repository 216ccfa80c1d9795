"""What a set of images is like, to the network they were dreamed for: alike or diverse, sure or not, natural or noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.images import Images
from dreamquant.losses.attention import attention, cell_of, cells, grid_of, middle_of
from dreamquant.losses.image import features, mean_of, relative_gap
from dreamquant.losses.pseudo import entropy
from dreamquant.model import Model
from dreamquant.trace import Moments, Trace, Watch

CHUNK = 64  # images in one pass: maps of many images at once would not fit
COLLAPSED = 0.02  # of the distance between classes; real images keep 0.10 to 0.58 within a class, copies of one 0.001 to 0.01
ALIKE = 0.99  # mean cosine of features; of real images 0.55 to 0.7


@dataclass(frozen=True)
class Inspection:
    """Measured on `inspected` images; None where a number has no meaning (one image a class, no BatchNorm, few pixels)."""

    inspected: int
    similarity: float | None  # mean cosine of the features of two images
    similarity_within_class: float | None  # of two images of one class
    similarity_between_classes: float | None  # of two images of two classes
    spread_within_class: float | None  # (1 - within) / (1 - between): 0 where a class is one image
    class_balance: float  # entropy of the classes' shares, of the largest possible: 1 when even
    teacher_entropy: float  # mean entropy of the network's predictions, of the largest possible
    labels_hit: float  # share of images in which the network sees the class they were asked for
    spectrum_slope: float | None  # of log amplitude against log frequency: about -1 in photographs, 0 in white noise
    batch_norm_deviation: float | None  # what BatchNormDeviation is over the whole set
    centres_hit: float | None  # share of images whose attention is strongest in the cell asked for (the fact "position")
    centre_distance: float | None  # mean distance from there, in shares of the image's sides

    @property
    def collapse(self) -> str | None:
        """In a line, that a generator makes one image for all, or one for each class; None where it does not."""
        if self.similarity is not None and self.similarity > ALIKE:
            return f"mode collapse: any two dreamed images look alike to the network (mean cosine of features {self.similarity:.3f})"
        if self.spread_within_class is not None and self.spread_within_class < COLLAPSED:
            share = f"{self.spread_within_class:.1%} as far apart as those of different classes"
            return f"mode collapse: dreamed images of one class look alike to the network ({share}; below {COLLAPSED:.0%} is collapse)"
        return None


def inspect(model: Model, images: Images, most: int = 512) -> Inspection:
    """Look at up to `most` of the images, evenly spread, in one forward pass. Raises ValueError where there are none."""
    if not len(images):
        raise ValueError("there are no images to inspect")
    spread = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
    images = images[spread.to(images.pixels.device)].to(model.device)
    placed = "position" in images.facts and bool(model.points["map"])
    needs = {"features": True, "bn": model.has_batch_norm(), "map": placed}
    watch = Watch(model, frozenset(need for need, needed in needs.items() if needed))
    with torch.no_grad():
        seen = [watch(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    logits, found = torch.cat([s.logits for s in seen]), torch.cat([features(s) for s in seen])
    overall, within, between = _similarities(found, images.classes)
    hit, distance = _centres(model, torch.cat([attention(s) for s in seen]), images.facts["position"]) if placed else (None, None)
    return Inspection(
        inspected=len(images),
        similarity=overall,
        similarity_within_class=within,
        similarity_between_classes=between,
        spread_within_class=None if within is None or between is None else (1 - within) / max(1 - between, 1e-6),
        class_balance=class_balance(images.classes, model.classes),
        teacher_entropy=float(entropy(logits).mean()),
        labels_hit=float((logits.argmax(1) == images.classes).float().mean()),
        spectrum_slope=spectrum_slope(images.pixels),
        batch_norm_deviation=_deviation(seen) if model.has_batch_norm() else None,
        centres_hit=hit,
        centre_distance=distance,
    )


def _similarities(found: Tensor, classes: Tensor) -> tuple[float | None, float | None, float | None]:
    """Mean cosine over pairs of different images, over those of one class, and over those of two classes."""
    cosine = F.normalize(found, dim=1) @ F.normalize(found, dim=1).T
    pairs = ~torch.eye(len(found), dtype=torch.bool, device=found.device)
    same = classes[:, None] == classes
    overall, within, between = (float(cosine[chosen].mean()) if chosen.any() else None for chosen in (pairs, pairs & same, ~same))
    return overall, within, between


def _centres(model: Model, found: Tensor, position: Tensor) -> tuple[float, float]:
    """How often the strongest cell of the attention (N, h, w) is the one asked for (N, 2), and how far away it is."""
    grid = grid_of(model)
    got, asked = cells(found).argmax(1), cell_of(position, grid)
    away = (middle_of(got, grid) - middle_of(asked, grid)).norm(dim=1)
    return float((got == asked).float().mean()), float(away.mean())


def class_balance(classes: Tensor, count: int) -> float:
    """Entropy of the shares of `count` classes among the images, of the largest that so many images can have."""
    shares = classes.bincount(minlength=count).float() / len(classes)
    largest = math.log(min(count, len(classes)))
    return float(-torch.xlogy(shares, shares).sum()) / largest if largest else 1.0


def spectrum(pixels: Tensor) -> Tensor:
    """Mean amplitude by frequency, (N, C, H, W) -> (F,): of 1 to F cycles per image, F half the pixels of its shorter side.

    The mean is over images, channels and the ring of frequencies that round to the same number of cycles.
    """
    height, width = pixels.shape[-2:]
    side = min(height, width)
    amplitude = torch.fft.fft2(pixels.float()).abs().mean((0, 1))
    down, across = (torch.fft.fftfreq(size, device=pixels.device) for size in (height, width))
    ring = ((down[:, None].square() + across.square()).sqrt() * side).round().long()
    return torch.stack([amplitude[ring == r].mean() for r in range(1, side // 2 + 1)]) if side > 1 else pixels.new_empty(0)


def spectrum_slope(pixels: Tensor) -> float | None:
    """Least-squares slope of the log of the amplitude against the log of the frequency; None for fewer than three frequencies."""
    means = spectrum(pixels)
    if len(means) < 3:
        return None
    x = torch.arange(1, len(means) + 1, device=pixels.device).float().log()
    x = x - x.mean()
    return float((x * means.clamp_min(1e-12).log()).sum() / x.square().sum())


def _deviation(seen: list[Trace]) -> float:
    """BatchNormDeviation over all traces as if they were one batch."""
    terms = []
    for name, m in seen[0].moments.items():
        first, second = (torch.cat([getattr(s.moments[name], which) for s in seen]) for which in ("first", "second"))
        terms.append(relative_gap(Moments(first, second, m.mu, m.sigma)))
    return float(mean_of(terms))
