"""CorrectBias: give every layer's outputs the means they had before quantization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.student import Student
from dreamquant.run import Run


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
            self._shift(student.net, node, wanted[node.name] - got)

    def _shift(self, net: fx.GraphModule, node: fx.Node, missing: Tensor) -> None:
        user = next(iter(node.users))
        if graph.kind(net, user) == "bn" and len(node.users) == 1:
            bn = net.get_submodule(str(user.target))
            assert isinstance(bn, nn.BatchNorm2d | nn.BatchNorm1d) and bn.running_mean is not None
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
        self.names, self.means = names, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            channel = 1 if value.ndim == 4 else value.ndim - 1
            self.means[n.name] = value.mean([axis for axis in range(value.ndim) if axis != channel])
        return value


def channel_means(net: fx.GraphModule, names: list[str], pixels: Tensor) -> dict[str, Tensor]:
    """Mean output per channel of the named nodes on these images."""
    with torch.no_grad():
        interpreter = _Means(net, names)
        interpreter.run(pixels)
    return interpreter.means
