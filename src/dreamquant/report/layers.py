"""What each layer lost: the noise of its output in the quantized network against the float one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from dreamquant.model import Model
from dreamquant.quant.quantized import QuantizedModel


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


def layer_noise(model: Model, quantized: QuantizedModel, x: Tensor) -> dict[str, float | None]:
    """Signal to quantization noise, in decibels, of each layer's output on normalised images `x` (N, C, H, W), by node name."""
    outputs = Outputs(model.net)
    with torch.no_grad():
        outputs.run(x)
    theirs = quantized.trace(x)
    return {name: decibels(out, theirs[name]) for name, out in outputs.kept.items() if name in theirs and theirs[name].shape == out.shape}


def layer_rows(model: Model, quantized: QuantizedModel, images: Tensor) -> dict[str, Any]:
    """The table of layers and what its noise was measured on: `images` (N, C, H, W), or uniform noise where there are none."""
    noise = torch.rand(16, *model.shape, generator=torch.Generator().manual_seed(0))
    x = images if len(images) else model.normalise(noise)
    measured = layer_noise(model, quantized.to(model.device), x.to(model.device))
    rows = [
        {
            "name": layer.layer,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "weight_bits": layer.bits,
            "activation_bits": layer.input_bits,
            "bytes": layer.weight_bytes,
            "sqnr_db": measured.get(layer.name),
        }
        for layer in quantized.layers()
    ]
    return {"layers": rows, "measured_on": f"{len(images)} of these images" if len(images) else "images of uniform noise"}
