"""ARC's generators: trunks of three cells, whose edges a search chose for a teacher; the published choices are values here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNorm, Norm, noise_for

FORMS = {"N": (1, 1), "B": (1, 1), "c1": (1, 1), "c3": (3, 1), "c5": (5, 1), "d3": (3, 2), "d5": (5, 2)}  # kernel, dilation
MODES = {"N": "nearest", "B": "bilinear"}
UPS, NODES, CROSSES = ("N", "B"), ("0", "s", "c1", "c3", "c5", "d3", "d5"), ("0", "N", "B")


@dataclass(frozen=True)
class Genotype:
    """What stands on the edges of three cells, in words separated by blanks.

    `ups`: two upsamplings a cell, N(earest) or B(ilinear). `nodes`: five edges a cell: nothing (0), s(kip),
    c(onvolution) or d(ilated convolution) and its kernel. `crosses`: six edges from the cell before, for the second and
    third cell: 0, N or B. Raises ValueError for anything else.
    """

    ups: tuple[str, str, str]
    nodes: tuple[str, str, str]
    crosses: tuple[str, str]

    def __post_init__(self) -> None:
        checks = (("ups", self.ups, 2, UPS), ("nodes", self.nodes, 5, NODES), ("crosses", self.crosses, 6, CROSSES))
        for name, words, count, known in checks:
            for word in words:
                if len(word.split()) != count or not set(word.split()) <= {*known, ANY[known]}:
                    raise ValueError(f"Genotype: {name} {word!r}: {count} of {', '.join(known)}, separated by blanks")


ANY = {UPS: "up?", NODES: "node?", CROSSES: "cross?"}  # an edge that is not decided: the search's
RESNET20_CIFAR10 = Genotype(("N N", "N N", "B N"), ("d5 0 d5 d3 c5", "d5 d5 c3 d3 d5", "d5 d5 c1 c5 d3"), ("0 0 B 0 0 N", "N N N B B B"))
RESNET20_CIFAR100 = Genotype(("B N", "N N", "N N"), ("d5 d5 d5 0 c5", "d5 c5 c1 d3 d5", "d5 d3 c5 c5 d5"), ("0 B N 0 0 N", "0 B N N B B"))
RESNET18 = Genotype(("B B", "B B", "B B"), ("d5 d5 d5 d5 d5", "d5 d5 d5 d5 d3", "d5 d5 c5 d3 d3"), ("N B N B B N", "B B N N B N"))
RESNET50 = Genotype(("B B", "B B", "B B"), ("d5 d5 d5 d5 d5", "d5 d5 c3 c1 c1", "d3 d5 d5 c5 d3"), ("B B B N N B", "N N N N B B"))
MOBILENETV2 = Genotype(("B B", "B B", "N B"), ("d5 d5 c5 d5 d5", "c5 d5 c1 c1 c1", "c3 d5 c5 d5 d3"), ("B B N B B B", "B N B B B N"))
PUBLISHED = {
    "resnet20_cifar10": RESNET20_CIFAR10,
    "resnet20_cifar100": RESNET20_CIFAR100,
    "resnet18": RESNET18,
    "resnet50": RESNET50,
    "mobilenetv2": MOBILENETV2,
}


def published_for(model: Model) -> Genotype:
    """The published genotype of the teacher most like this one (ours): by image size, classes, depthwise layers, width."""
    if max(model.shape[1:]) <= 64:
        return RESNET20_CIFAR10 if model.classes <= 10 else RESNET20_CIFAR100
    layers = [model.net.get_submodule(str(node.target)) for node in graph.of_kind(model.net, *graph.LAYERS)]
    if any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in layers):
        return MOBILENETV2
    weight = layers[-1].weight
    return RESNET50 if isinstance(weight, Tensor) and weight.shape[1] >= 2048 else RESNET18


@dataclass(frozen=True)
class Cells:
    """ARC's generator: a third of the noise into each of three scales, a cell between each and the next.

    `genotype`: a value, or the name of a published one; None takes that of the most similar teacher. Sides that eight does
    not divide are rounded up and met at the upsamplings; normalisations know the network's own classes, where the code has
    1,000 everywhere (ours).
    """

    genotype: Genotype | str | None = None
    latent: int = 100
    width: int = 64
    affine: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.genotype, str) and self.genotype not in PUBLISHED:
            raise ValueError(f"no published genotype {self.genotype!r}; there are {', '.join(PUBLISHED)}")

    def on(self, model: Model) -> nn.Module:
        def edge(kind: str) -> nn.Module | None:
            return edge_of(kind, self.width, model.classes)

        genotype = PUBLISHED[self.genotype] if isinstance(self.genotype, str) else self.genotype or published_for(model)
        return CellTrunk(self, genotype, model, edge)


def edge_of(kind: str, width: int, classes: int) -> nn.Module | None:
    """The module of a word of a genotype; None for no edge."""
    return None if kind == "0" else Skip() if kind == "s" else Edge(kind, width, classes)


class Skip(nn.Module):
    """The tensor itself."""

    def forward(self, x: Tensor, condition: Condition, size: tuple[int, int]) -> Tensor:
        return x


class Edge(nn.Module):
    """Upsampling, where it has one, then class-conditional norm, LeakyReLU, convolution: (N, C, h, w) -> (N, C, *size)."""

    def __init__(self, kind: str, width: int, classes: int) -> None:
        super().__init__()
        kernel, dilation = FORMS[kind]
        self.mode = MODES.get(kind)
        self.norm = ClassNorm(classes, width, 0.8)
        self.conv = nn.Conv2d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x: Tensor, condition: Condition, size: tuple[int, int]) -> Tensor:
        if self.mode:
            x = F.interpolate(x, size=size, mode=self.mode)
        made: Tensor = self.conv(F.leaky_relu(self.norm(x, condition), 0.2))
        return made


class Cell(nn.Module):
    """Nodes 0 and 1 upsample the input, 2 and 3 gather what is before them, and the nodes of the cell before; 3 is the result."""

    def __init__(self, ups: str, nodes: str, crosses: str, edge: Callable[[str], nn.Module | None]) -> None:
        super().__init__()
        self.ups, self.nodes, self.crosses = (some(edge(word) for word in words.split()) for words in (ups, nodes, crosses))

    def forward(self, x: Tensor, before: list[Tensor], condition: Condition, size: tuple[int, int]) -> list[Tensor]:
        made = [self.ups[place](x, condition, size) for place in ("0", "1")]
        for sources, first, crossing in ((2, 0, 0), (3, 2, 3)):  # into node 2, then into node 3
            terms = [self.nodes[k](made[i], condition, size) for i in range(sources) if (k := str(first + i)) in self.nodes]
            if before:
                terms += [self.crosses[k](before[i], condition, size) for i in range(3) if (k := str(crossing + i)) in self.crosses]
            made.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(made[0]))
        return made


def some(edges: Iterable[nn.Module | None]) -> nn.ModuleDict:
    """The edges that are there, by place."""
    return nn.ModuleDict({str(place): edge for place, edge in enumerate(edges) if edge is not None})


class CellTrunk(nn.Module):
    """Three cells, each of twice the side, and GDFQ's head."""

    def __init__(self, part: Cells, genotype: Genotype, model: Model, edge: Callable[[str], nn.Module | None]) -> None:
        super().__init__()
        channels, *side = model.shape
        self.width, self.latent = part.width, part.latent
        self.sizes = [(-(-side[0] // shrink), -(-side[1] // shrink)) for shrink in (8, 4, 2, 1)]
        third = max(1, part.latent // 3)
        self.chunks = [third, third, part.latent - 2 * third]
        places = [height * width for height, width in self.sizes[:3]]
        self.starts = nn.ModuleList(nn.Linear(chunk, part.width * place) for chunk, place in zip(self.chunks, places, strict=True))
        self.cells = nn.ModuleList(map(Cell, genotype.ups, genotype.nodes, ("", *genotype.crosses), [edge] * 3))
        self.norm = ClassNorm(model.classes, part.width, 0.8)
        self.last, self.last_norm = nn.Conv2d(part.width, channels, 3, padding=1), Norm(channels, affine=part.affine)

    def forward(self, condition: Condition) -> Tensor:
        chunks = noise_for(condition, self.latent).split(self.chunks, 1)
        nodes: list[Tensor] = []
        for place, (start, cell) in enumerate(zip(self.starts, self.cells, strict=True)):
            x = start(chunks[place]).view(len(condition), self.width, *self.sizes[place])
            nodes = cell(x + nodes[-1] if nodes else x, nodes, condition, self.sizes[place + 1])
        images: Tensor = self.last_norm(torch.tanh(self.last(F.leaky_relu(self.norm(nodes[-1], condition), 0.2))))
        return images
