"""How alike images look to the network: those of one class in pairs, all in a plane (EnhancingDFQ's Figures 4 and 7)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.images import Images
from dreamquant.losses.image import features
from dreamquant.model import Model
from dreamquant.trace import Watch

CHUNK = 64  # images in one pass
PAIRED, SPREAD, CLASSES = 24, 128, 10  # images of one class in the matrix; images, and classes, in the plane


def seen_features(model: Model, images: Images) -> Tensor:
    """What the last layer reads of each image, averaged over places: (N, F)."""
    watch = Watch(model, frozenset({"features"}))
    with torch.no_grad():
        return torch.cat([features(watch(images[start : start + CHUNK])) for start in range(0, len(images), CHUNK)])


def similarity(found: Tensor) -> Tensor:
    """Cosine of every two rows: (N, F) -> (N, N)."""
    unit = F.normalize(found, dim=1)
    return unit @ unit.T


def plane(found: Tensor) -> Tensor:
    """The first two principal components, each with its largest entry positive: (N, F) -> (N, 2). Missing ones are zero."""
    centred = (found - found.mean(0)).double()
    along, size, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(along * size, (0, 2))[:, :2]
    largest = points.gather(0, points.abs().argmax(0, keepdim=True))
    return (points * torch.where(largest < 0, -1.0, 1.0)).float()


def likeness(model: Model, images: Images) -> dict[str, Any]:
    """For the report: "class" and "similarity" of up to 24 of its images, the class being the one with the most; "points",
    the plane of images of up to ten classes, by class."""
    classes = images.classes.cpu()
    order = classes.bincount(minlength=model.classes).argsort(descending=True, stable=True)
    kind = int(order[0])
    mine = (classes == kind).nonzero()[:PAIRED, 0]
    shown = torch.isin(classes, order[:CLASSES]).nonzero()[:, 0]
    shown = shown[torch.linspace(0, len(shown) - 1, min(SPREAD, len(shown))).round().long()]
    found = seen_features(model, images[torch.cat([mine, shown]).to(images.pixels.device)].to(model.device)).cpu()
    points = plane(found[len(mine) :])
    by_class = {str(int(c)): points[classes[shown] == c].tolist() for c in classes[shown].unique()}
    return {"class": kind, "similarity": similarity(found[: len(mine)]).tolist(), "points": by_class}
