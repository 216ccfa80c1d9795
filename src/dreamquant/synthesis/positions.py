"""What ACQ's generator is asked for, and how it is told: a class and a place for the centre of the teacher's attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.attention import cell_of, grid_of, middle_of
from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNorm, Norm, Trunk, gdfq_widths, noise_for, of_class


@dataclass(frozen=True)
class Twins:
    """A class and a position, drawn independently, for every `each` images, which differ by their noise alone (ACQ).

    Facts: "position", from the top and from the left as shares of the image, (N, 2); "twins", alike for images of one
    condition, (N,). Where `each` does not divide the batch some images have fewer twins.
    """

    each: int = 2

    def __call__(self, model: Model, count: int) -> Condition:
        different = -(-count // self.each)
        number = torch.arange(different).repeat(self.each)[:count]
        single = self.of(model, torch.randint(model.classes, (different,)))
        return Condition(single.labels[number], {"position": single.facts["position"][number], "twins": number})

    def of(self, model: Model, labels: Tensor) -> Condition:
        grid = grid_of(model)
        position = middle_of(torch.randint(math.prod(grid), (len(labels),)), grid).to(labels.device)
        return Condition(labels, {"position": position, "twins": torch.arange(len(labels), device=labels.device)})


@dataclass(frozen=True)
class Placed:
    """GDFQ's small generator, told a position: the class's embedding times the noise, plus the position's.

    Added, not multiplied: noise of mean 0 times an embedding tells a linear layer nothing of it on average, and such a
    generator does not learn to follow a position.
    """

    latent: int = 100
    width: int = 128
    affine: bool = False

    def on(self, model: Model) -> nn.Module:
        return _Placed(self, model)


class _Placed(nn.Module):
    def __init__(self, part: Placed, model: Model) -> None:
        super().__init__()
        self.grid = grid_of(model)
        self.classes, self.places = nn.Embedding(model.classes, part.latent), nn.Embedding(math.prod(self.grid), part.latent)
        self.trunk = Trunk(part.latent, gdfq_widths(part.width), model.shape, Norm, part.affine)

    def forward(self, condition: Condition) -> Tensor:
        place = self.places(cell_of(condition.facts["position"], self.grid))
        latents = of_class(self.classes.weight, condition.labels) * noise_for(condition, place.shape[1]) + place
        images: Tensor = self.trunk(latents, condition)
        return images


@dataclass(frozen=True)
class PlaceNormed:
    """GDFQ's large generator, told a position: its embedding is added to the noise, its scale and shift to those of the class."""

    latent: int = 100
    width: int = 128
    affine: bool = False

    def on(self, model: Model) -> nn.Module:
        return _PlaceNormed(self, model)


class _PlaceNormed(nn.Module):
    def __init__(self, part: PlaceNormed, model: Model) -> None:
        super().__init__()
        self.grid = grid_of(model)

        def norm(channels: int, eps: float) -> nn.Module:
            return _PlaceNorm(model.classes, self.grid, channels, eps)

        self.places = nn.Embedding(math.prod(self.grid), part.latent)
        self.trunk = Trunk(part.latent, gdfq_widths(part.width), model.shape, norm, part.affine)

    def forward(self, condition: Condition) -> Tensor:
        place = self.places(cell_of(condition.facts["position"], self.grid))
        images: Tensor = self.trunk(noise_for(condition, place.shape[1]) + place, condition)
        return images


class _PlaceNorm(nn.Module):
    """A ClassNorm to which every position adds a scale and a shift of its own, at first none."""

    def __init__(self, classes: int, grid: tuple[int, int], channels: int, eps: float) -> None:
        super().__init__()
        self.grid, self.classed = grid, ClassNorm(classes, channels, eps)
        self.scale, self.shift = (nn.Parameter(torch.zeros(math.prod(grid), channels)) for _ in range(2))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        cell = cell_of(condition.facts["position"], self.grid)
        scale, shift = (F.embedding(cell, table)[:, :, None, None] for table in (self.scale, self.shift))
        out: Tensor = self.classed(x, condition) + scale * self.classed.norm(x) + shift
        return out
