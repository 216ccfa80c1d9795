"""Calibrate: find the ranges of activations from dreamed images; and the ranges of weights from the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.quantizer import Following
from dreamquant.quant.ranges import LpSearch, MinMax, Ranges, to_grid
from dreamquant.quant.student import Student
from dreamquant.run import Run
from dreamquant.synthesis.transforms import Transform, applied


@dataclass(frozen=True)
class Calibrate:
    """Ranges of activations from `count` images (at most all), in batches; activations pass unquantized meanwhile.

    `zero_images`: an all-zero image passes before every batch, as SynQ's code does by accident; with RunningMinMax(0.9)
    it ends up with 0.474 of every range, an undocumented clipping (a parity switch).
    """

    ranges: Ranges = LpSearch()
    count: int = 256
    batch: int = 64
    transforms: tuple[Transform, ...] = ()
    zero_images: bool = False

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        if not len(images):
            raise ValueError("Calibrate needs images; give the recipe a synthesis, or ranges that need none")
        torch.manual_seed(run.number("calibrate"))
        with student.observing(self.ranges), torch.no_grad():
            for start in range(0, min(self.count, len(images)), self.batch):
                part = images[slice(start, min(start + self.batch, self.count))]
                if self.zero_images:
                    student.net(torch.zeros_like(part.pixels[:1]))
                student.net(applied(self.transforms, part.pixels))


@dataclass(frozen=True)
class SetWeightRanges:
    """Grids of weights are found once and stand still: round to nearest from then on, or learned steps."""

    ranges: Ranges = LpSearch()

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        for layer in student.layers().values():
            form = layer.quantizer.format
            layer.quantizer.fix(*to_grid(*self.ranges(layer.weight.detach(), form), form))


@dataclass(frozen=True)
class NarrowWeightRanges:
    """Grids follow the latent weights, but span only the share of their range that has the smallest error now."""

    ranges: LpSearch = LpSearch()

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        for layer in student.layers().values():
            q, weight = layer.quantizer, layer.weight.detach()
            low, high = MinMax()(weight, q.format)
            best_low, best_high = self.ranges(weight, q.format)
            share = (best_high - best_low) / (high - low).clamp_min(1e-12)
            q.rule = Following(MinMax(), share)
