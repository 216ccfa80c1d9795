"""CompensatePairs: what a layer of few bits does wrong is made good in the layer that reads it (DF-MPC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.moments import Spread, batch_norm_stats, moments
from dreamquant.prepare import scale_columns
from dreamquant.quant.pairs import pairs
from dreamquant.quant.student import Student
from dreamquant.run import Run
from dreamquant.steps.correct import batch_norm_behind
from dreamquant.steps.reestimate import Outputs, outputs


@dataclass(frozen=True, eq=False)
class Channels:
    """One layer of few bits, output channel by channel: its float and quantized weights, what stands behind them, and how
    well the two outputs agree. Vectors are (O,), weights (O, n).

    An output is weight (sum over inputs), less `mu`, over `sigma`, times `gamma`, plus `beta`.
    """

    weight: Tensor
    quantized: Tensor
    gamma: Tensor
    beta: Tensor
    mu: Tensor
    sigma: Tensor
    quantized_mu: Tensor
    quantized_sigma: Tensor
    correlation: Tensor


class Coefficient(Protocol):
    """The factor for what the next layer reads of each channel, (O,)."""

    def __call__(self, channels: Channels) -> Tensor: ...


@dataclass(frozen=True)
class Unchanged:
    """One everywhere: the re-estimated statistics alone."""

    def __call__(self, channels: Channels) -> Tensor:
        return torch.ones_like(channels.gamma)


@dataclass(frozen=True)
class ByMoments:
    """Least squares between the two outputs, from their moments: c = (r gamma^2 + beta^2) / (gamma^2 + beta^2 + ridge), ours."""

    ridge: float = 1e-6

    def __call__(self, channels: Channels) -> Tensor:
        spread, offset = channels.gamma.square(), channels.beta.square()
        return (channels.correlation.clamp_min(0) * spread + offset) / (spread + offset + self.ridge)


@dataclass(frozen=True)
class ByWeights:
    """DF-MPC's closed form: least squares between the scaled filters and between the offsets, one channel at a time.

    L(c) = ||X - c X'||^2 + offset (Y - c Y')^2 + ridge c^2, with X = gamma w / sigma and Y = beta - gamma mu / sigma, dashes
    for the quantized layer (Chen et al. 2023, arXiv 2307.00498; lambda1 = `offset` and lambda2 = `ridge`, here a share of the
    mean of ||X'||^2). The paper's own values were not to be had; these are ours.
    """

    offset: float = 0.1
    ridge: float = 1e-4
    limits: tuple[float, float] = (0.1, 10.0)

    def __call__(self, channels: Channels) -> Tensor:
        c = channels
        x, other = (c.gamma / c.sigma)[:, None] * c.weight, (c.gamma / c.quantized_sigma)[:, None] * c.quantized
        y, moved = c.beta - c.gamma * c.mu / c.sigma, c.beta - c.gamma * c.quantized_mu / c.quantized_sigma
        energy = other.square().sum(1)
        below = energy + self.offset * moved.square() + self.ridge * energy.mean()
        return (((other * x).sum(1) + self.offset * moved * y) / below.clamp_min(1e-12)).clamp(*self.limits)


@dataclass(frozen=True)
class CompensatePairs:
    """Data-free mixed-precision compensation (DF-MPC): for each pair of `quant.pairs`, what the high layer reads of each
    channel of the low one is multiplied by a factor in closed form.

    Set the weights' ranges before it, for it reads the quantized weights of the low layers, and again after it, for the high
    layers' weights change. Follow it with ReestimateStatistics, which it counts on.
    """

    coefficient: Coefficient = ByMoments()

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        spreads, layers, skipped = moments(teacher), student.layers(), []
        for low, high in pairs(teacher.net):
            node = graph.named(teacher.net, low)
            expected = spreads.get(node.all_input_nodes[0].name)
            if expected is None:
                skipped.append(low)
                continue
            found = outputs(teacher, node, layers[low], expected, spreads[node.name])
            scale_columns(layers[high], self.coefficient(_channels(teacher, node, found, spreads[node.name])))
        if skipped:
            run.note(f"not compensated, because the mean of what they read is not known: {', '.join(skipped)}")


def _channels(teacher: Model, node: fx.Node, found: Outputs, made: Spread) -> Channels:
    bn = batch_norm_behind(teacher.net, node)
    if bn is None:  # the output itself, in units of its own moments
        stats = made.channels()
        bias = teacher.net.get_submodule(str(node.target)).bias
        beta, gamma = stats.mean, stats.std.clamp_min(1e-12)
        mu, sigma = (beta - bias if isinstance(bias, Tensor) else beta), gamma
    else:
        assert bn.running_mean is not None and bn.running_var is not None
        beta = batch_norm_stats(bn).mean
        gamma = torch.ones_like(beta) if bn.weight is None else bn.weight.detach()
        mu, sigma = bn.running_mean, (bn.running_var + bn.eps).sqrt()
    weights = found.weight.flatten(1), found.quantized.flatten(1)
    return Channels(*weights, gamma, beta, mu, sigma, mu + found.shift, sigma * found.ratio, found.correlation)
