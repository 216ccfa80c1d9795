"""squant: rounding directions that make errors cancel (Guo et al., ICLR 2022), no dreaming, no training.

From the paper: errors are summed over every kernel, then over every output channel, and flips bring the sums to nearly
nothing; per-channel min-max grids, BatchNorm not folded. Ours: grids include zero, never more flips than there are
candidates, and the input of the last layer has the bits of the others (8 in its code). Ranges of activations, which its text
takes from BatchNorm and its code from uniform noise, have the least expected error by BatchNorm's statistics. `paper`
is this alone. Errors that cancel in a sum of weights do not cancel in the output where inputs differ in mean, as those of 1x1
convolutions do: `fast` corrects the means of outputs analytically (DFQ's bias correction, ours here).
"""

from __future__ import annotations

from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics
from dreamquant.steps.correct import CorrectBiasFromStatistics
from dreamquant.steps.rounding import RoundByFlips
from dreamquant.synthesis.pixels import NoImages


def squant(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Rounding directions chosen so that errors cancel in every kernel and channel; no training."""
    mend = (CorrectBiasFromStatistics(),) if effort == "fast" else ()
    return Recipe("squant", NoImages(), scheme_of(bits, ends), (RoundByFlips(), *mend, CalibrateFromStatistics()))
