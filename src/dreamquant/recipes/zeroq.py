"""zeroq: images whose own statistics match BatchNorm's, to calibrate ranges (Cai et al., CVPR 2020, arXiv 2001.00281).

Paper and code: per-image statistics summed over channels and layers, no labels, 64 images, 500 steps of Adam 0.5, start
near zero (deviation 0.0136, a slip of the code kept in `paper`; the code draws whole numbers, we normal ones), min-max
ranges that include zero, no training. Ours: steps fall at fixed shares of the loop instead of on plateaus; `fast` dreams in
pixels of [0, 1] for 150 steps and uses ranges that minimise the error, like all our fast recipes. Mixed precision is a
recipe of its own.
"""

from __future__ import annotations

from dreamquant.losses.image import BatchNormPerImage
from dreamquant.optimizers import Adam, Decay
from dreamquant.quant.ranges import MinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import Calibrate
from dreamquant.synthesis.pixels import OptimizePixels, UnitNoise


def zeroq(bits: str = "w8a8", effort: str = "fast", ends: int | None = None) -> Recipe:
    """ZeroQ: images matched to BatchNorm's statistics calibrate the ranges; no training."""
    if effort == "fast":
        images, calibrate = OptimizePixels(BatchNormPerImage(), count=64, batch=64, iterations=150), _fast.CALIBRATE
    else:
        decay = Decay((0.5, 0.7, 0.9))
        images = OptimizePixels(BatchNormPerImage(), 64, 64, 500, Adam(0.5, schedule=decay), space=UnitNoise(0.0136))
        calibrate = Calibrate(MinMax(), count=64)
    return Recipe("zeroq", images, scheme_of(bits, ends), (calibrate,))
