"""Ranges: how the (low, high) that a grid must span is found. Every range includes zero, as integer kernels need.

A range rule is called on a tensor (weights), and gives an observer for what passes in batches (activations).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dreamquant.quant.scheme import Int

Range = tuple[Tensor, Tensor]


class Observer(Protocol):
    """Sees batches of one tensor, then knows its range."""

    def see(self, x: Tensor) -> None: ...

    def range(self, form: Int) -> Range: ...


class Ranges(Protocol):
    """Tensor -> (low, high), per tensor or per first axis as the format says."""

    def __call__(self, x: Tensor, form: Int) -> Range: ...

    def observer(self) -> Observer: ...


def over(x: Tensor, form: Int) -> tuple[int, ...]:
    """The axes one grid of this format spans."""
    return tuple(range(1, x.ndim)) if form.per == "channel" else tuple(range(x.ndim))


def to_grid(low: Tensor, high: Tensor, form: Int) -> tuple[Tensor, Tensor]:
    """(scale, zero) of the grid that spans [low, high] and zero: value = scale * (code - zero)."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    if form.symmetric:
        return torch.maximum(-low, high).clamp_min(1e-16) / form.high, torch.zeros_like(low)
    scale = (high - low).clamp_min(1e-16) / (form.high - form.low)
    return scale, (form.low - torch.round(low / scale)).clamp(form.low, form.high)


def rounded(x: Tensor, scale: Tensor, zero: Tensor, form: Int) -> Tensor:
    """The nearest values on the grid, without gradients. Any shape."""
    return ((torch.round(x / scale) + zero).clamp(form.low, form.high) - zero) * scale


@dataclass(frozen=True)
class MinMax:
    """The whole range seen."""

    def __call__(self, x: Tensor, form: Int) -> Range:
        keep = form.per == "channel"
        return x.amin(over(x, form), keepdim=keep), x.amax(over(x, form), keepdim=keep)

    def observer(self) -> Observer:
        return _Extremes()


@dataclass(frozen=True)
class RunningMinMax:
    """Mean of the batches' extremes, each new one weighing 1 - momentum; right from the first batch on.

    `compounding` is what the code of GDFQ, IntraQ and their descendants does (a parity switch): it divides by the weight so
    far in the average itself, and so again with every batch. A constant stream then gives 5 times its value after two
    batches, 3,945 times after 21, and its value after 200.
    """

    momentum: float = 0.9
    compounding: bool = False

    def __call__(self, x: Tensor, form: Int) -> Range:
        return MinMax()(x, form)

    def observer(self) -> Observer:
        return _Running(self)

    def follow(self, seen: Tensor, x: Tensor) -> Range:
        """Take a batch into `seen`, (low, high, their weight) from zeros on, in place; the range so far."""
        seen.mul_(self.momentum).add_(torch.stack([x.amin(), x.amax(), torch.ones_like(seen[2])]), alpha=1 - self.momentum)
        low, high = seen[:2] / seen[2]
        if self.compounding:
            seen[:2] = torch.stack([low, high])
        return low, high


class _Running:
    def __init__(self, mean: RunningMinMax) -> None:
        self.mean, self.seen = mean, torch.zeros(3)

    def see(self, x: Tensor) -> None:
        self.seen = self.seen.to(x)
        self.low, self.high = self.mean.follow(self.seen, x)

    def range(self, form: Int) -> Range:
        return self.low, self.high


class _Extremes:
    def __init__(self) -> None:
        self.low, self.high = torch.tensor(torch.nan), torch.tensor(torch.nan)

    def see(self, x: Tensor) -> None:
        low, high = x.amin(), x.amax()
        self.low, self.high = torch.fmin(self.low.to(low), low), torch.fmax(self.high.to(high), high)

    def range(self, form: Int) -> Range:
        return self.low, self.high


@dataclass(frozen=True)
class Percentile:
    """What is left when the outermost share of values is cut off on both sides."""

    share: float = 0.9999
    samples: int = 1 << 18

    def __call__(self, x: Tensor, form: Int) -> Range:
        rows = x.flatten(1) if form.per == "channel" else x.reshape(1, -1)
        count = rows.shape[1]
        spare = round((1 - self.share) * count)
        low = rows.kthvalue(min(count, spare + 1), 1).values
        high = rows.kthvalue(max(1, count - spare), 1).values
        shape = (len(x),) + (1,) * (x.ndim - 1) if form.per == "channel" else ()
        return low.view(shape), high.view(shape)

    def observer(self) -> Observer:
        return Sample(self, self.samples)


@dataclass(frozen=True)
class LpSearch:
    """The share of the min-max range that makes the mean of |rounding error|^p smallest (p = 2: MSE).

    p = 2.4 is BRECQ's and QDrop's choice. Shares from 1 down to `least`, both sides together.
    """

    p: float = 2.4
    candidates: int = 50
    least: float = 0.2
    samples: int = 1 << 16

    def __call__(self, x: Tensor, form: Int) -> Range:
        low, high = MinMax()(x, form)
        best = torch.full_like(low, torch.inf)
        best_low, best_high = low, high
        for share in torch.linspace(1, self.least, self.candidates).tolist():
            error = self.error(x, low * share, high * share, form)
            better = error < best
            best = torch.where(better, error, best)
            best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
        return best_low, best_high

    def error(self, x: Tensor, low: Tensor, high: Tensor, form: Int) -> Tensor:
        """The mean of |rounding error|^p on the grid that spans [low, high], of the shape of `low`."""
        off = rounded(x, *to_grid(low, high, form), form) - x
        return off.abs().pow(self.p).mean(over(x, form), keepdim=form.per == "channel")

    def observer(self) -> Observer:
        return Sample(self, self.samples)


@dataclass
class Sample:
    """Keeps a random sample of what passes, and the extremes, which a sample would miss."""

    ranges: Ranges
    size: int
    kept: list[Tensor] = field(default_factory=list)
    extremes: _Extremes = field(default_factory=_Extremes)

    def see(self, x: Tensor) -> None:
        self.extremes.see(x)
        flat = x.detach().flatten()
        if len(flat) > self.size:
            flat = flat[torch.randint(len(flat), (self.size,), device=flat.device)]
        self.kept.append(flat)

    def range(self, form: Int) -> Range:
        low, high = self.extremes.range(form)
        return self.ranges(torch.cat([*self.kept, low.view(1), high.view(1)]), form)
