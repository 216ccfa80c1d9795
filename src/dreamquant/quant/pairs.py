"""Which layers take few bits and which take more, when a layer's error is to be made good in the next one (DF-MPC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.moments import channel_axis
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.run import Run


def pairs(net: fx.GraphModule) -> tuple[tuple[str, str], ...]:
    """(low, high): names of layers such that the output of `low` passes an activation and is read by `high` alone, channel by channel.

    Every layer belongs to one pair at most, in execution order; the first and the last layer are never low. So a basic
    block gives conv1 and conv2, a bottleneck conv1 and conv2, an inverted residual its expansion and the depthwise
    convolution, a dense layer its 1x1 and 3x3, a plain network every other layer.
    """
    layers = graph.of_kind(net, *graph.LAYERS)
    calls = [node.target for node in layers]
    found: list[tuple[str, str]] = []
    taken: set[fx.Node] = set()
    for node in layers[1:-1]:
        path, reader = graph.chain(net, node, ("bn", "act", "move", "mean"))
        activated = any(graph.kind(net, n) == "act" for n in path)
        if reader is None or not activated or taken & {node, reader} or calls.count(node.target) > 1 or calls.count(reader.target) > 1:
            continue
        if not _channels_stay(net, node, path, reader):
            continue
        taken |= {node, reader}
        found.append((str(node.target), str(reader.target)))
    return tuple(found)


def _channels_stay(net: fx.GraphModule, low: fx.Node, path: Sequence[fx.Node], high: fx.Node) -> bool:
    """Whether `high` reads the channels of `low` in their order, flattened ones place after place, and BatchNorms too.

    Tried out: what moves and averages values is given a number of its own for each channel, and one for all; where it passes
    on the one, it must pass on the other times the number. Padding passes on neither.
    """
    shape = low.meta["shape"]
    writes, reads = (channel_axis(net.get_submodule(str(node.target))) for node in (low, high))
    where = writes % len(shape)
    numbers = 1 + torch.rand(shape[where], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = [-1 if axis == where else 1 for axis in range(len(shape))]
    values: list[Any] = [numbers.view(wide).expand(shape), torch.ones(shape, dtype=torch.float64)]

    def lie_on(axis: int) -> bool:
        if values[0].shape[axis] % len(numbers):
            return False
        told, ones = (value.movedim(axis, -1).unflatten(-1, (len(numbers), -1)) for value in values)
        return bool(((told - numbers[:, None] * ones).abs() < 1e-6).all())

    for node in path:
        kind = graph.kind(net, node)
        if kind == "bn" and not lie_on(1):
            return False
        if kind in ("move", "mean"):
            if len(node.all_input_nodes) > 1:  # sizes of another tensor
                return False
            piece = graph.cut_out(net, (node.all_input_nodes[0].name,), node.name)
            values = [piece(value) for value in values]
    return lie_on(reads)


@dataclass(frozen=True)
class Alternate:
    """The first layer of every pair has the format `low`, all other layers `high`. ValueError for a network without pairs."""

    low: Int
    high: Int
    activations: Int | None
    ends: int | None = None

    def on(self, model: Model, images: Images, run: Run) -> Scheme:
        found = pairs(model.net)
        if not found:
            raise ValueError(f"{model.name} has no two layers that follow each other alone, so no error can be compensated; use squant")
        return Scheme(self.high, self.activations, self.ends, layers=tuple((low, self.low) for low, _ in found))
