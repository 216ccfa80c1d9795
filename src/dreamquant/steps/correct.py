"""Bias correction: give every layer's outputs the means they had before quantization; measured on images, or from statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.moments import applied, channel_axis, moments
from dreamquant.quant.student import QuantLayer, Student
from dreamquant.run import Run

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class CorrectBias:
    """Empirical bias correction (Nagel et al. 2019, section 4.2, with images): in execution order, the mean shift of each
    layer's output channels, measured on `count` images with all earlier layers corrected, goes into the next bias.

    The bias is that of the BatchNorm behind the layer (in its units), else the layer's own, which is made where missing.
    """

    count: int = 128

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        pixels = images.pixels[: self.count]
        if not len(pixels):
            raise ValueError("CorrectBias measures shifts on images, and the recipe dreams none")
        nodes = [n for n in graph.of_kind(student.net, "conv", "linear") if str(n.target) in student.layers()]
        wanted = channel_means(teacher.net, [n.name for n in nodes], pixels)
        for node in nodes:
            got = channel_means(student.net, [node.name], pixels)[node.name]
            raise_outputs(student.net, node, wanted[node.name] - got)


@dataclass(frozen=True)
class CorrectBiasFromStatistics:
    """Analytic bias correction (Nagel et al. 2019, section 4.2): what the weights' rounding errors add to the mean of each
    output, given the expected inputs of the float network (`moments`), is taken off again.

    Padded borders count as zeros. Layers whose inputs have no known mean stay, and are named in a note.
    """

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        spreads, layers, skipped = moments(teacher), student.layers(), []
        for node in graph.of_kind(student.net, *graph.LAYERS):
            layer = layers.get(str(node.target))
            expected = spreads.get(graph.named(teacher.net, node.name).all_input_nodes[0].name)
            if layer is None or expected is None:
                skipped.append(node.name)
                continue
            error = weight_error(teacher, str(node.target), layer)
            raise_outputs(student.net, node, -per_channel_mean(applied(layer, error, expected.mean), channel_axis(layer)))
        if skipped:
            run.note(f"no bias correction, because the mean of what they read is not known: {', '.join(skipped)}")


def weight_error(teacher: Model, name: str, layer: QuantLayer) -> Tensor:
    """Quantized less float weights of the layer `name`, shaped as the weights."""
    weight = teacher.net.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        return layer.quantizer(layer.weight) - weight


def per_channel_mean(x: Tensor, axis: int) -> Tensor:
    """Mean over everything but the axis of channels: (N, C, H, W) or (N, ..., C) -> (C,)."""
    return x.mean([a for a in range(x.ndim) if a != axis % x.ndim])


def batch_norm_behind(net: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    """The BatchNorm that alone reads the layer at `node`, and reads no other layer elsewhere.

    One behind a linear layer of tokens has tokens for channels, and cannot stand for that layer.
    """
    user = next(iter(node.users))
    tokens = graph.kind(net, node) == "linear" and len(node.meta["shape"]) > 2
    if graph.kind(net, user) != "bn" or len(node.users) != 1 or tokens:
        return None
    if any(n.all_input_nodes[0].target != node.target for n in net.graph.nodes if n.target == user.target):
        return None
    module = net.get_submodule(str(user.target))
    assert isinstance(module, BatchNorm)
    return module


def raise_outputs(net: fx.GraphModule, node: fx.Node, missing: Tensor) -> None:
    """Add `missing` (C,) to the outputs of the layer at `node`, by the BatchNorm behind it or by its bias.

    One that is called several times takes the share of this call, so that all of them add their mean.
    """
    bn = batch_norm_behind(net, node)
    changed = node if bn is None else next(iter(node.users))
    missing = missing / sum(n.target == changed.target for n in net.graph.nodes)
    if bn is not None:
        assert bn.running_mean is not None
        bn.running_mean -= missing  # bn(x + missing) = bn with its mean moved by -missing
        return
    layer = net.get_submodule(str(node.target))
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(missing), requires_grad=False)
    layer.bias.data += missing


class _Means(fx.Interpreter):
    def __init__(self, net: fx.GraphModule, names: list[str]) -> None:
        super().__init__(net)
        self.net, self.names, self.means = net, names, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            self.means[n.name] = per_channel_mean(value, -1 if graph.kind(self.net, n) == "linear" else 1)
        return value


def channel_means(net: fx.GraphModule, names: list[str], pixels: Tensor) -> dict[str, Tensor]:
    """Mean output per channel of the named nodes on these images."""
    with torch.no_grad():
        interpreter = _Means(net, names)
        interpreter.run(pixels)
    return interpreter.means
