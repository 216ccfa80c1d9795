"""omse: ranges of weights that minimise the squared error (Choukroun et al., ICCV workshops 2019), no dreaming, no training.

From the paper: one range for each output channel, by a line search. Ours: asymmetric ranges, both ends shrunk together,
and the search (80 shares, then golden section); the paper's second tensor for the hardest layers is left out; ranges of
activations with the least expected squared error, from BatchNorm's statistics. Both efforts are the same.
"""

from __future__ import annotations

from dreamquant.quant.clips import GoldenSection
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics, SetWeightRanges
from dreamquant.synthesis.pixels import NoImages


def omse(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Round to nearest on the grids of the least squared error."""
    return Recipe("omse", NoImages(), scheme_of(bits, ends), (SetWeightRanges(GoldenSection()), CalibrateFromStatistics()))
