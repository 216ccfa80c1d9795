"""ACQ's terms (arXiv 2301.07266): attention that lies where it was asked, twins that differ, the same behaviour in train mode.

The paper's public summary tells what is compared; the formulas are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import features
from dreamquant.model import Model
from dreamquant.trace import Trace

FINEST = 8  # cells a side at most: centres are coarse, 8x8 in the CIFAR networks and 7x7 in ImageNet's


def attention(seen: Trace) -> Tensor:
    """Sum of squares over the channels of the last feature map (ACQ's "simple L2 attention map"): (B, h, w)."""
    (found,) = seen.at["map"]
    return found.square().sum(1)


def cells(attention: Tensor) -> Tensor:
    """The share of the attention in every cell, row by row: (B, h, w) -> (B, cells), rows sum to one.

    Places are cells; where there are more than 8 a side, their neighbours are averaged (ours).
    """
    coarse = F.adaptive_avg_pool2d(attention[:, None], _grid(*attention.shape[1:])).flatten(1)
    return coarse / coarse.sum(1, keepdim=True).clamp_min(1e-12)


def grid_of(model: Model) -> tuple[int, int]:
    """Rows and columns of the cells in which the centre of attention may lie; ValueError where there is no feature map."""
    if not model.points["map"]:
        raise ValueError(f"{model.name} has no feature map whose centre of attention could be placed; choose another recipe")
    return _grid(*graph.named(model.net, model.points["map"][0]).meta["shape"][2:])


def _grid(height: int, width: int) -> tuple[int, int]:
    return min(height, FINEST), min(width, FINEST)


def cell_of(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (N, 2), from the top and from the left as shares of the image, -> numbers of cells (N,)."""
    row, column = ((p * count).long().clamp(0, count - 1) for p, count in zip(position.unbind(1), grid, strict=True))
    return row * grid[1] + column


def middle_of(cell: Tensor, grid: tuple[int, int]) -> Tensor:
    """Numbers of cells (N,) -> the positions of their middles (N, 2)."""
    place = torch.stack([cell // grid[1], cell % grid[1]], 1)
    return (place + 0.5) / torch.tensor(grid, device=cell.device)


def fact(seen: Trace, name: str) -> Tensor:
    """What the conditioner noted of every image; ValueError where it did not."""
    if name not in seen.images.facts:
        raise ValueError(f"a loss reads the fact {name!r} of the images, and there is none; give the dream conditioner=Twins()")
    return seen.images.facts[name]


@dataclass(frozen=True)
class AttentionCentre(Loss[Trace]):
    """The log of how many times the attention at its centre is that of the cell the fact "position" asks for, mean over images.

    Zero as soon as the centre is there: to ask for all attention in one cell leaves the statistics of real images far behind.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"map"})

    def __call__(self, seen: Trace) -> Tensor:
        found = attention(seen)
        asked = cell_of(fact(seen, "position"), _grid(*found.shape[1:]))
        log_share = cells(found).clamp_min(1e-8).log()
        return (log_share.amax(1) - log_share.gather(1, asked[:, None])[:, 0]).mean()


@dataclass(frozen=True)
class TwinSimilarity(Loss[Trace]):
    """Mean cosine of the features of two images of one condition, which have the same number in the fact "twins".

    Zero where no image has a twin. It grows from nothing over the first `ramp` of the training.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    ramp: float = 0.0

    def __call__(self, seen: Trace) -> Tensor:
        found, number = F.normalize(features(seen), dim=1), fact(seen, "twins")
        twins = (number[:, None] == number).float().fill_diagonal_(0)
        done = torch.as_tensor(seen.done, dtype=found.dtype, device=found.device)
        weight = (done / self.ramp).clamp_max(1) if self.ramp else 1.0
        return weight * (found @ found.T * twins).sum() / twins.sum().clamp_min(1)


@dataclass(frozen=True)
class SameInTrainMode(Loss[Trace]):
    """A loss on what the teacher does in train mode, and how far its attention is then from that in eval mode.

    Train mode: BatchNorm divides by the statistics of the batch, and records nothing. Distance: squared, of attention maps
    of length one, mean over images, times `attention`.
    """

    inner: Loss[Trace]
    attention: float = 1.0

    def wants(self) -> frozenset[str]:
        return self.inner.wants() | {"map"}

    def __call__(self, seen: Trace) -> Tensor:
        other = replace(seen.watch(seen.images, batch_statistics=True), done=seen.done)
        mine, others = (F.normalize(attention(trace).flatten(1), dim=1) for trace in (seen, other))
        return self.inner(other) + self.attention * (mine - others).square().sum(1).mean()
