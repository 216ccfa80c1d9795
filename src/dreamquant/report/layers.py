"""What each layer lost: the noise of its output in the quantized network against the float one, and their alignment."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from dreamquant.model import Model
from dreamquant.quant.quantized import QuantizedModel, grid_of


class Outputs(fx.Interpreter):
    """Runs a graph and keeps the output of each convolution and linear layer, by module name."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "call_module" and isinstance(self.module.get_submodule(str(n.target)), nn.Conv2d | nn.Linear):
            self.kept[n.name] = out
        return out


def decibels(signal: Tensor, approximation: Tensor) -> float | None:
    """10 log10(sum signal^2 / sum (signal - approximation)^2); None when either sum is zero or not finite."""
    power = signal.double().square().sum().item()
    noise = (signal.double() - approximation.double()).square().sum().item()
    ratio = power / noise if noise else math.inf
    return 10 * math.log10(ratio) if 0 < ratio < math.inf else None


def cka(mine: Tensor, theirs: Tensor) -> float | None:
    """Linear centred kernel alignment of two networks' outputs on the same images, (N, ...) both, of any widths.

    |Y'X|^2 / (|X'X| |Y'Y|) with centred columns (Kornblith et al., ICML 2019, Eq. 4): 1 for outputs that differ by a
    rotation and a scale, about 0 for unrelated ones. None where an output is the same for all images.
    """
    grams = []
    for out in (mine, theirs):
        centred = (out - out.mean(0)).flatten(1)
        grams.append((centred @ centred.T).double())  # (N, N): the same number, and cheap for wide outputs
    first, second = grams
    size = (first.norm() * second.norm()).item()
    return (first * second).sum().item() / size if 0 < size < math.inf else None


def compared(model: Model, quantized: QuantizedModel, x: Tensor) -> dict[str, dict[str, float | None]]:
    """Of each layer's output on normalised images `x` (N, C, H, W), by node name: signal to quantization noise in decibels,
    and the alignment."""
    outputs = Outputs(model.net)
    with torch.no_grad():
        outputs.run(x)
    theirs = quantized.trace(x)
    pairs = {name: (out, theirs[name]) for name, out in outputs.kept.items() if name in theirs and theirs[name].shape == out.shape}
    return {name: {"sqnr_db": decibels(*pair), "cka": cka(*pair)} for name, pair in pairs.items()}


def bits_of_sums(quantized: QuantizedModel) -> list[int]:
    """The bits of what sums read, each number once; what is in float has none."""
    by = {op.name: op for op in quantized.program}
    read = [grid_of(by, name) for op in quantized.program if op.function() == "add" for name in op.inputs]
    return sorted({int(grid.numbers["bits"]) for grid in read if grid is not None and grid.numbers["live"]})


def layer_rows(model: Model, quantized: QuantizedModel, images: Tensor) -> dict[str, Any]:
    """The table of layers and what its noise was measured on: `images` (N, C, H, W), or uniform noise where there are none."""
    noise = torch.rand(16, *model.shape, generator=torch.Generator().manual_seed(0))
    x = images if len(images) else model.normalise(noise)
    measured = compared(model, quantized.to(model.device), x.to(model.device))
    integers = {layer.layer: layer.input_bits for layer in quantized.deployed().layers()}
    rows = [
        {
            "name": layer.layer,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "weight_bits": layer.bits,
            "activation_bits": layer.input_bits,
            "deployed_bits": integers[layer.layer],
            "bytes": layer.weight_bytes,
            **measured.get(layer.name, {"sqnr_db": None, "cka": None}),
        }
        for layer in quantized.layers()
    ]
    known = [found["cka"] for found in measured.values() if found["cka"] is not None]
    alignment = sum(known) / len(known) if known else None
    told = f"{len(images)} of these images" if len(images) else "images of uniform noise"
    return {"layers": rows, "cka": alignment, "measured_on": told, "bits_of_sums": bits_of_sums(quantized)}
