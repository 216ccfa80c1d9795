"""Ranges that cut off outliers for a finer grid: by a model of the distribution, or by a search down to the best cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dreamquant.quant.ranges import LpSearch, MinMax, Observer, Range, Sample, over
from dreamquant.quant.scheme import Int

GOLDEN = (5**0.5 - 1) / 2


class Tail(NamedTuple):
    """A symmetric distribution of spread (E |x|^power)^(1 / power) = 1, as it is outside [-cut, cut]: `beyond` the share
    P(|x| > cut), `excess` E (|x| - cut)+."""

    power: int
    beyond: Callable[[float], float]
    excess: Callable[[float], float]


def _outside(cut: float) -> float:
    return math.erfc(cut / math.sqrt(2))


def _normal_excess(cut: float) -> float:
    return math.sqrt(2 / math.pi) * math.exp(-cut * cut / 2) - cut * _outside(cut)


def _exponential(cut: float) -> float:
    return math.exp(-cut)


TAILS = {"laplace": Tail(1, _exponential, _exponential), "gauss": Tail(2, _outside, _normal_excess)}


def best_cut(family: str, bits: int) -> float:
    """The cut, in spreads, at which a wider range would lose to rounding what it saves from clipping (ACIQ).

    The model's squared error is E (|x| - cut)+^2 + cut^2 / (3 * 4^bits), least where E (|x| - cut)+ = cut / (3 * 4^bits);
    for a Laplace distribution that is Lambert's W(3 * 4^bits).

    >>> round(best_cut("laplace", 4), 2), round(best_cut("gauss", 4), 2)
    (5.03, 2.56)
    """
    tail, slope, cut = TAILS[family], 1 / (3 * 4**bits), 0.0
    for _ in range(60):  # Newton on a convex falling function, from the left: never beyond the root
        cut += (tail.excess(cut) - cut * slope) / (tail.beyond(cut) + slope)
    return cut


@dataclass(frozen=True)
class AnalyticClip:
    """ACIQ (Banner et al., NeurIPS 2019): the cut that a Laplace or a normal distribution of the same spread wants.

    `mix`: whichever of the two, and of no cut, has the smaller squared error on the values seen, for each grid.
    Data with a negative value is cut on both sides of its mean. Data without is one half of a distribution around zero (as
    after ReLU), cut above; its zeros, which rounding does not touch, do not count. A cut outside the data is none.
    """

    family: Literal["laplace", "gauss", "mix"] = "laplace"
    samples: int = 1 << 16

    def __post_init__(self) -> None:
        if self.family not in (*TAILS, "mix"):
            raise ValueError(f"family={self.family!r}: choose 'laplace', 'gauss' or 'mix'")

    def __call__(self, x: Tensor, form: Int) -> Range:
        if self.family != "mix":
            return _cut(x, form, self.family)
        best, least = MinMax()(x, form), LpSearch(p=2.0).error(x, *MinMax()(x, form), form)
        for family in TAILS:
            found = _cut(x, form, family)
            error = LpSearch(p=2.0).error(x, *found, form)
            best = torch.where(error < least, found[0], best[0]), torch.where(error < least, found[1], best[1])
            least = torch.minimum(error, least)
        return best

    def observer(self) -> Observer:
        return Sample(self, self.samples)


def _cut(x: Tensor, form: Int, family: str) -> Range:
    axes, keep = over(x, form), form.per == "channel"
    low, high = MinMax()(x, form)
    half = low >= 0
    middle = torch.where(half, 0.0, x.mean(axes, keepdim=keep))
    away = (x - middle).abs()
    count = torch.where(half, (x > 0).sum(axes, keepdim=keep), x.numel() // low.numel()).clamp_min(1)
    power = TAILS[family].power
    spread = (away.pow(power).sum(axes, keepdim=keep) / count) ** (1 / power)
    # one half on all codes has the step of both halves with one bit more; a symmetric format wastes that bit
    bits = form.bits if form.symmetric else form.bits + 1
    cut = spread * torch.where(half, best_cut(family, bits), best_cut(family, form.bits))
    start = torch.where(half, 0.0, torch.maximum(low, middle - cut))
    end = torch.minimum(high, start + torch.where(half, cut, 2 * cut))
    inside = cut < torch.where(half, high, (high - low) / 2)
    return torch.where(inside, start, low), torch.where(inside, end, high)


@dataclass(frozen=True)
class GoldenSection:
    """OMSE (Choukroun et al., ICCV workshops 2019): for each grid the share of the range with the least squared error.

    The best candidate of `coarse` is refined by a golden-section search, `evaluations` errors between its two neighbours;
    never worse than `coarse`.
    """

    coarse: LpSearch = LpSearch(p=2.0, candidates=80, least=0.2)
    evaluations: int = 20

    def __call__(self, x: Tensor, form: Int) -> Range:
        low, high = MinMax()(x, form)
        found = self.coarse(x, form)
        middle = (found[1] - found[0]) / (high - low).clamp_min(1e-16)
        cell = (1 - self.coarse.least) / max(1, self.coarse.candidates - 1)
        left, right = (middle - cell).clamp_min(0), (middle + cell).clamp_max(1)

        def error(share: Tensor) -> Tensor:
            return self.coarse.error(x, low * share, high * share, form)

        one, two = right - GOLDEN * (right - left), left + GOLDEN * (right - left)
        errors = error(one), error(two)
        for _ in range(self.evaluations - 2):  # the better of two points always stays, so the best ever seen does
            falls = errors[0] < errors[1]
            left, right = torch.where(falls, left, one), torch.where(falls, two, right)
            new = torch.where(falls, right - GOLDEN * (right - left), left + GOLDEN * (right - left))
            one, two = torch.where(falls, new, two), torch.where(falls, one, new)
            latest = error(new)
            errors = torch.where(falls, latest, errors[1]), torch.where(falls, errors[0], latest)
        share = torch.where(errors[0] < errors[1], one, two)
        better = torch.minimum(*errors) < self.coarse.error(x, *found, form)
        return torch.where(better, low * share, found[0]), torch.where(better, high * share, found[1])

    def observer(self) -> Observer:
        return Sample(self, self.coarse.samples)
