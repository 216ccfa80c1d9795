"""dsg: diverse sample generation (Zhang et al., "Diversifying Sample Generation for Accurate Data-Free Quantization", CVPR 2021).

Paper: BatchNorm's statistics are matched only beyond a slack, the 0.9-quantile of the gap that noise has (the percentile
and the 1,024 images of noise are from memory), and every image stresses a layer of its own; ranges are calibrated, nothing
is trained. From the code of the extended version: BNS-A with sums over channels, 40 images near zero, 500 steps of Adam
0.9, cross-entropy weight 2, total variation and length 0.01 (on a rolled image, which changes the variation by its seam
alone: left out), ranges by the mean of the images' extremes. Left out: the extended version's correlation term, whose code
has no gradient. Ours: the slack is measured anew, since the code loads unpublished arrays; noise around the middle grey;
the stressed layer counts twice, as in the paper, not four times, as in the code; classes are balanced, and rates fall at
fixed shares of the loop. `fast`: gaps in units of the network's deviations, no term of the input nor of the pixels, classes
weigh 0.1, count, steps and space as in recipes/_fast.py. With training: `synq_on:dsg`.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.diversity import BatchNormSlack, InputNormal, NeighbourNorm, PixelNorm
from dreamquant.losses.image import ClassTarget
from dreamquant.optimizers import Adam, Decay
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import Calibrate
from dreamquant.synthesis.pixels import OptimizePixels, UnitNoise


def dsg(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """DSG: images of relaxed statistics, each stressing another layer, calibrate the ranges; no training."""
    if effort == "fast":
        images = replace(_fast.IMAGES, loss=BatchNormSlack(relative=True) + 0.1 * ClassTarget())
        return Recipe("dsg", images, scheme_of(bits, ends), (_fast.CALIBRATE,))
    loss = BatchNormSlack() + InputNormal() + 2 * ClassTarget() + 0.01 * NeighbourNorm() + 0.01 * PixelNorm()
    images = OptimizePixels(loss, 40, 40, 500, Adam(0.9, schedule=Decay((0.6, 0.9))), space=UnitNoise(0.0136))
    calibrate = Calibrate(RunningMinMax(0.999), count=40, batch=1)  # so slow a running mean is the mean of 40
    return Recipe("dsg", images, scheme_of(bits, ends), (calibrate,))
