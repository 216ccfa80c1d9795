"""dfmpc: data-free mixed-precision compensation (Chen et al., Pattern Recognition 2023, arXiv 2307.00498).

Layers alternate between few bits (`--bits`, 2 or 3 in the paper) and 6; the error of the former is made good in closed form
by the factors of what the latter reads. From the abstract and a summary: pairs, one factor a channel, the convex loss on
scaled filters and offsets with two regularisers, no data. Its text was not to be had, so ours are: the pairs of each
architecture, the re-estimated statistics, both regularisers. `paper`: the paper's loss, low layers symmetric with the smallest
squared error, at 2 bits ternary, as TWN's rule nearly gives. `fast`: our factors from moments, and all four levels of 2
bits. Activations stay in float as published when the bits say a32; otherwise their ranges minimise the expected error.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.quant.pairs import Alternate
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import Int, uniform
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics, SetWeightRanges
from dreamquant.steps.compensate import ByMoments, ByWeights, CompensatePairs
from dreamquant.steps.reestimate import ReestimateStatistics
from dreamquant.synthesis.pixels import NoImages


def dfmpc(bits: str = "w2a32", effort: str = "fast", ends: int | None = None, high: int = 6) -> Recipe:
    """DF-MPC: 2-bit layers whose error the next layer, of 6 bits, makes good; seconds, no images."""
    usual = uniform(bits, ends)
    low = usual.weights if effort == "fast" else replace(usual.weights, symmetric=True)
    scheme = Alternate(low, Int(max(high, low.bits), "channel"), usual.activations, ends)
    compensate = CompensatePairs(ByMoments() if effort == "fast" else ByWeights())
    ranges = SetWeightRanges(LpSearch(2.0))
    return Recipe("dfmpc", NoImages(), scheme, (ranges, compensate, ranges, ReestimateStatistics(), CalibrateFromStatistics()))
