"""Calibrate: find the ranges of activations, from images or from statistics; and the ranges of weights from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.dream import Dream
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.moments import Spread, activation, floor, moments
from dreamquant.normal import quantiles
from dreamquant.quant.ranges import LpSearch, Ranges, to_grid
from dreamquant.quant.student import Student
from dreamquant.run import Run
from dreamquant.synthesis.pixels import Noise
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
class CalibrateOnGenerator:
    """Ranges of activations follow the images of a generator while it learns, and both are thrown away but for the ranges:
    the code of IntraQ and its descendants, whose students then learn from other images (a parity switch).

    The running mean is theirs too, see `RunningMinMax`; `zero_images` as in `Calibrate`.
    """

    source: Dream
    iterations: int = 800
    momentum: float = 0.9
    compounding: bool = True
    zero_images: bool = False

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        torch.manual_seed(run.number("generator"))
        dreamer = self.source.on(teacher)
        with student.tracking(self.momentum, self.compounding):
            for number in (loop := run.loop("dreaming for ranges", self.iterations, dreamer=dreamer, student=student)):
                pixels = dreamer.step(number / self.iterations).images.pixels
                with torch.no_grad():
                    if self.zero_images:
                        student.net(torch.zeros_like(pixels[:1]))
                    student.net(pixels)
                loop.show(**dreamer.values)


@dataclass(frozen=True)
class Span:
    """What a normal value takes within `deviations` of its mean: DFQ's ranges, with 6."""

    deviations: float = 6.0

    def points(self) -> Tensor:
        return torch.linspace(-self.deviations, self.deviations, 65)


@dataclass(frozen=True)
class Likely:
    """Equally likely values of a normal one: sums over them are expectations. Two more stand `furthest` deviations away, for
    true tails are heavier than normal ones.
    """

    count: int = 1024
    furthest: float = 6.0

    def points(self) -> Tensor:
        return torch.cat([quantiles(self.count), torch.tensor([-self.furthest, self.furthest])])


@dataclass(frozen=True)
class CalibrateFromStatistics:
    """Ranges of activations from what BatchNorm knows, without images: every channel a normal value before its activation.

    `Span` with MinMax gives the n-sigma ranges of DFQ (Nagel et al. 2019, section 4.1). `Likely` with LpSearch gives the
    clip that makes the expected error^p of the mixture of all channels smallest: ACIQ's idea (Banner et al. 2019) for such
    mixtures, with the error itself summed instead of a model of it (ours). Where no layer near a tensor has a
    record, its range is that of images of noise, and a note says so.
    """

    values: Span | Likely = Likely()
    ranges: Ranges = LpSearch()
    probe: int = 64

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        spreads = moments(teacher)
        nodes = {name: graph.named(teacher.net, node) for name, node in student.quantized_nodes().items()}
        found = {name: self._values(teacher, node, spreads) for name, node in nodes.items()}
        unknown = [name for name, values in found.items() if values is None]
        if unknown:
            run.note(f"{len(unknown)} of {len(found)} activation ranges come from images of noise, for no statistics reach them")
            Calibrate(LpSearch(), self.probe)(student, teacher, Noise(self.probe)(teacher, run), run)
        torch.manual_seed(run.number("calibrate"))
        for name, q in student.activation_quantizers().items():
            if (values := found[name]) is not None:
                observer = self.ranges.observer()
                observer.see(values)
                q.set(*to_grid(*observer.range(q.format), q.format))

    def _values(self, teacher: Model, node: fx.Node, spreads: Mapping[str, Spread]) -> Tensor | None:
        """Values that the tensor takes, (C, points); None where too little is known."""
        if node.op == "placeholder":
            return teacher.normalise(torch.stack([torch.zeros(teacher.shape), torch.ones(teacher.shape)]).to(teacher.device))
        activated = graph.kind(teacher.net, node) == "act"
        spread = spreads.get(node.all_input_nodes[0].name if activated else node.name)
        if spread is None or spread.guessed > 1:
            return None
        stats = spread.channels()
        values = stats.mean[:, None] + stats.std[:, None] * self.values.points().to(teacher.device)
        return activation(teacher.net, node)(values) if activated else values.clamp_min(floor(teacher.net, node))


@dataclass(frozen=True)
class SetWeightRanges:
    """Grids of weights are found once and stand still: round to nearest from then on, or learned steps."""

    ranges: Ranges = LpSearch()

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        for layer in student.layers().values():
            form = layer.quantizer.format
            layer.quantizer.fix(*to_grid(*self.ranges(layer.weight.detach(), form), form))
