"""aciq: clipping of activations by a formula, and weights that keep mean and norm (Banner et al., NeurIPS 2019).

No dreaming, no training. From the paper: activations are cut where a Laplace distribution of the same spread wants it, and
each output channel of the weights, whose range is not cut, gets its mean and norm back. Ours: the spread is that of
BatchNorm's statistics, not of data; the mean is kept by flipping roundings, since whole zero points cannot hold the paper's shift by
fractions of a step (next to none of it would be left); no allocation of bits to channels. `paper` is this alone; `fast`
corrects the means of outputs analytically (ours), and does not take the ranges of the other recipes, since its own are the method.
"""

from __future__ import annotations

from dreamquant.quant.clips import AnalyticClip
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics
from dreamquant.steps.correct import CorrectBiasFromStatistics
from dreamquant.steps.restore import RestoreMoments
from dreamquant.steps.rounding import RoundByFlips
from dreamquant.synthesis.pixels import NoImages


def aciq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Ranges of activations by a formula, weights that keep their mean and norm; no training."""
    mend = (CorrectBiasFromStatistics(),) if effort == "fast" else ()
    steps = (RoundByFlips(kernels=False), RestoreMoments(), *mend, CalibrateFromStatistics(ranges=AnalyticClip("laplace")))
    return Recipe("aciq", NoImages(), scheme_of(bits, ends), steps)
