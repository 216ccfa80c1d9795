"""Budget: what choices of bits cost, in bits or in bit operations, and the best choice within it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from dreamquant import graph
from dreamquant.quant.pareto import Front, choice, either, together
from dreamquant.quant.quantizer import Quantizer
from dreamquant.quant.sensitivity import Losses, Place
from dreamquant.quant.student import Student

POINTS = 60  # of a front, in the report


@dataclass(frozen=True)
class Budget:
    """Average bits of a weight and, over the activations of one image, of an activation; None leaves them to the scheme.

    With unit "bitops" the averages are not held by themselves: the bit operations (multiplications x bits of the weight x
    bits of what it multiplies) are those of a network that has these bits everywhere. Ends with bits of their own and
    other exceptions are no part of it.
    """

    weights: float
    activations: float | None = None
    unit: Literal["bits", "bitops"] = "bits"

    def __post_init__(self) -> None:
        if self.unit not in ("bits", "bitops"):
            raise ValueError(f"budget unit {self.unit!r}: choose 'bits' or 'bitops'")

    def shares(self, student: Student, places: Sequence[Place], losses: Losses, bits: Sequence[int]) -> Iterator[Share]:
        """What may be spent on which places; together all of them. Places without a budget are left out."""
        weights = [place for place in places if place.weight is not None]
        activations = [place for place in places if place.weight is None and self.activations is not None]
        if self.unit == "bitops" and weights:
            yield _operations(self, student, weights, activations, losses, bits)
            return
        for title, mine, average in (("weights", weights, self.weights), ("activations", activations, self.activations)):
            if mine and average is not None:
                yield _averaged(title, mine, average, losses, bits)


@dataclass(frozen=True, eq=False)
class Share:
    """Places under one limit. Costs over `whole` are in `unit`; `uniform` has cost and loss of the same bits everywhere."""

    title: str
    unit: str
    places: Sequence[Place]  # in the order of the front's columns
    front: Front
    limit: float
    whole: float
    uniform: Sequence[tuple[float, float]]

    @property
    def taken(self) -> int:
        """The number of the front's point that the limit allows."""
        return self.front.within(self.limit)

    def chosen(self, bits: Sequence[int]) -> dict[str, int]:
        """Bits by the name of the place."""
        picked = self.front.chosen[self.taken]
        return {place.name: bits[i] for place, i in zip(self.places, picked, strict=True)}

    def drawn(self) -> dict[str, Any]:
        """For the report, as pairs of cost and predicted loss: the front, uniform bits, and the point taken."""
        cost, loss = self.front.cost / self.whole, self.front.loss
        limits = [cost[0] + (cost[-1] - cost[0]) * i / POINTS for i in range(POINTS)] + [cost[-1]]
        points = sorted({self.front.within(limit * self.whole) for limit in limits} - {-1})
        return {
            "unit": self.unit,
            "points": [[float(cost[i]), float(loss[i])] for i in points],
            "uniform": [[c / self.whole, lost] for c, lost in self.uniform],
            "taken": [float(cost[self.taken]), float(loss[self.taken])],
        }


def _uniform_losses(places: Sequence[Place], losses: Losses, bits: Sequence[int]) -> list[float]:
    return [sum(losses[place.name][i] for place in places) for i in range(len(bits))]


def _averaged(title: str, places: Sequence[Place], average: float, losses: Losses, bits: Sequence[int]) -> Share:
    size = sum(place.size for place in places)
    front = together([choice(losses[place.name], [place.size * b for b in bits]) for place in places])
    uniform = [(size * b, lost) for b, lost in zip(bits, _uniform_losses(places, losses, bits), strict=True)]
    return Share(title, "bits on average", places, front, average * size, size, uniform)


def _operations(
    budget: Budget, student: Student, weights: Sequence[Place], activations: Sequence[Place], losses: Losses, bits: Sequence[int]
) -> Share:
    """Layers that read one chosen activation form a group with it: at each number of its bits, their costs add up."""
    groups: dict[str, list[Place]] = {place.name: [] for place in activations}
    places, fronts = list[Place](), list[Front]()
    macs, given = dict[str, int](), dict[str, int]()
    for layer in weights:
        macs[layer.name] = multiplications(student, layer.name)
        source, width = _read(student, layer.node)
        if source in groups:
            groups[source].append(layer)
            continue
        given[layer.name] = width
        places.append(layer)
        fronts.append(choice(losses[layer.name], [macs[layer.name] * width * b for b in bits]))
    for tensor in activations:
        layers = groups[tensor.name]
        at = [
            [
                choice([losses[tensor.name][i]], [0], [i]),
                *(choice(losses[n.name], [macs[n.name] * width * b for b in bits]) for n in layers),
            ]
            for i, width in enumerate(bits)
        ]
        places += [tensor, *layers]
        fronts.append(either([together(parts) for parts in at]))

    def operations(weight: float, activation: float) -> float:
        return sum(count * weight * given.get(name, activation) for name, count in macs.items())

    uniform = [(operations(b, b), lost) for b, lost in zip(bits, _uniform_losses(places, losses, bits), strict=True)]
    limit = operations(budget.weights, budget.activations or 0)
    unit = "bit operations a multiplication"
    return Share("bit operations", unit, places, together(fronts), limit, sum(macs.values()), uniform)


def _read(student: Student, node: fx.Node) -> tuple[str, int]:
    """The quantizer whose values a layer reads, and its bits; where there is none, the bits an integer kernel would need."""
    while True:
        node = node.all_input_nodes[0]
        module = student.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Quantizer):
            return str(node.target), module.format.bits
        if graph.kind(student.net, node) != "move":
            return "", student.scheme.spare.bits


def multiplications(student: Student, layer: str) -> int:
    """Of one image, in all calls of the layer."""
    each = student.layers()[layer].weight[0].numel()
    return sum(math.prod(node.meta["shape"][1:]) * each for node in student.net.graph.nodes if node.target == layer)
