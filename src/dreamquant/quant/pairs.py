"""Which layers take few bits and which take more, when a layer's error is to be made good in the next one (DF-MPC)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.run import Run


def pairs(net: fx.GraphModule) -> tuple[tuple[str, str], ...]:
    """(low, high): names of layers such that the output of `low` passes an activation and is read by `high` alone.

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
        taken |= {node, reader}
        found.append((str(node.target), str(reader.target)))
    return tuple(found)


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
