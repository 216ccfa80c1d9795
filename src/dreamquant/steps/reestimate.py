"""ReestimateStatistics: quantized layers get the mean and the deviation of their outputs back, without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.moments import Spread, applied, channel_axis, moments
from dreamquant.quant.student import QuantLayer, Student
from dreamquant.run import Run
from dreamquant.steps.correct import BatchNorm, batch_norm_behind, per_channel_mean, weight_error

LEAST = 1e-3  # a smaller share of the float deviation: the channel rounds to nothing, and no scale brings it back
TOLD = 1e-3  # a smaller share of independent taps' variance: the filter is zero, sums to zero or reads constants


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one layer's quantized weights make of the same inputs, per output channel (O,).

    `shift`: what its mean moves by. `ratio`: its deviation as a share of the float one. `correlation`: of both outputs.
    """

    weight: Tensor  # (O, I, ...) float
    quantized: Tensor  # (O, I, ...)
    shift: Tensor
    ratio: Tensor
    correlation: Tensor


@dataclass(frozen=True)
class ReestimateStatistics:
    """Every layer's output gets the mean and deviation it has in the float network: the BatchNorm behind it new statistics,
    or, where none is, the layer a new scale and bias.

    Means come from the expected inputs (DFQ's bias correction), deviations from the ratio of ||w|| weighted by the inputs'
    variances, taps being as correlated as makes the float layer's own statistics come out. Ours, after DF-MPC's remark that
    the statistics belong to the quantized layer. Grids must stand still before: SetWeightRanges or a rounding step.
    """

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        spreads, layers, skipped = moments(teacher), student.layers(), []
        calls: dict[BatchNorm | QuantLayer, list[Tensor]] = {}  # by what is changed
        for node in graph.of_kind(teacher.net, *graph.LAYERS):
            name, expected = str(node.target), spreads.get(node.all_input_nodes[0].name)
            if expected is None or name not in layers:
                skipped.append(name)
                continue
            found, made = outputs(teacher, node, layers[name], expected, spreads[node.name]), spreads[node.name]
            changed = batch_norm_behind(student.net, graph.named(student.net, node.name)) or layers[name]
            calls.setdefault(changed, []).append(torch.stack([found.shift, found.ratio, made.channels().mean]))
        for changed, several in calls.items():
            shift, ratio, mean = torch.stack(several).mean(0)
            if isinstance(changed, BatchNorm):
                _move(changed, shift, ratio)
            else:
                _rescale(changed, shift, ratio, mean)
        if skipped:
            run.note(f"statistics not re-estimated, because the mean of what they read is not known: {', '.join(skipped)}")


def outputs(teacher: Model, node: fx.Node, layer: QuantLayer, expected: Spread, made: Spread) -> Outputs:
    """How the outputs of a student's layer compare with the teacher's at `node`, given what it reads (`expected`) and `made`."""
    error, axis = weight_error(teacher, str(node.target), layer), channel_axis(layer)
    with torch.no_grad():
        quantized = layer.quantizer(layer.weight)
    weight, variance = quantized - error, _of_inputs(layer, expected.channels(axis).std.square())
    bn = batch_norm_behind(teacher.net, node)
    known = made.channels().std.square() if bn is None else bn.running_var
    assert known is not None
    correlation = tap_correlation(weight, variance, known)
    own, new, both = (inner(a, b, variance, correlation) for a, b in ((weight, weight), (quantized, quantized), (weight, quantized)))
    told = own > TOLD * inner(weight, weight, variance, 0.0)
    ratio = (new / own.clamp_min(1e-20)).sqrt()
    ratio = torch.where(told & (ratio > LEAST), ratio, 1.0)
    agreement = torch.where(told, both / (own * new).sqrt().clamp_min(1e-20), 1.0)
    return Outputs(weight, quantized, per_channel_mean(applied(layer, error, expected.mean), axis), ratio, agreement)


def _move(bn: BatchNorm, shift: Tensor, ratio: Tensor) -> None:
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean += shift
    bn.running_var.copy_((bn.running_var + bn.eps) * ratio.square() - bn.eps)


def _rescale(layer: QuantLayer, shift: Tensor, ratio: Tensor, mean: Tensor) -> None:
    """y' = mean + (y - mean - shift) / ratio, by the grid's scale and the bias."""
    per_channel = layer.quantizer.format.per == "channel"
    ratio = ratio if per_channel else torch.ones_like(ratio)
    wide = (-1, *[1] * (layer.weight.ndim - 1))
    layer.weight.data /= ratio.view(wide)
    if per_channel:
        layer.quantizer.scale.data /= ratio.view(wide)
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(mean * (1 - 1 / ratio) + (bias - shift) / ratio, requires_grad=False)


def _of_inputs(layer: QuantLayer, values: Tensor) -> Tensor:
    """What each output channel reads of a vector over the input channels: (I,) -> (O, I / groups)."""
    rows = len(layer.weight)
    if isinstance(layer, nn.Linear):
        return values.expand(rows, -1)
    return values.view(layer.groups, -1).repeat_interleave(rows // layer.groups, 0)


def inner(a: Tensor, b: Tensor, variance: Tensor, correlation: float) -> Tensor:
    """Covariance of two filters' outputs, (O,): inputs vary by `variance` (O, I), the taps of (O, I, ...) are correlated."""
    a, b = (v.reshape(*variance.shape, -1) for v in (a, b))
    apart = ((a * b).sum(2) * variance).sum(1)
    return (1 - correlation) * apart + correlation * (a.sum(2) * b.sum(2) * variance).sum(1)


def tap_correlation(weight: Tensor, variance: Tensor, known: Tensor) -> float:
    """The correlation of taps, in [0, 1], with which the outputs have nearly the variances `known` (O,), by least squares."""
    apart, together = (inner(weight, weight, variance, correlation) for correlation in (0.0, 1.0))
    gap = together - apart
    return float((((known - apart) * gap).sum() / gap.square().sum().clamp_min(1e-20)).clamp(0, 1))
