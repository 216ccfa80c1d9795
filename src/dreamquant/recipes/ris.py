"""ris: robustness-guided images (Bai et al., "Robustness-Guided Image Synthesis for Data-Free Quantization", AAAI 2024).

No code is public, and only an abstract and a summary of the paper, a plug-in for generators. From those: images whose
features (cosine) and predictions (L1) change little when the image or the weights are disturbed, measured against noise;
one of several disturbances drawn at random, Gaussian noise on weights; soft labels of small correlation. Everything else
is ours, here and in losses/robust.py: images optimised on pixels, the disturbances and their strength, half of noise's
inconsistency allowed, up to 0.3 of a label given to five other classes, weight 1, KL and cross-entropy with the soft
label for the student, what recipes/_paper.py says. `fast`: BatchNorm in units of the network's deviations, 0.02 for class
and robustness, because at the 0.1 of other recipes shared labels alone leave eight times as much of the statistics (0.17
instead of 0.02; at 0.02 0.04), count, steps, space and pace as in recipes/_fast.py.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch, ClassTarget
from dreamquant.losses.robust import Robustness
from dreamquant.losses.student import HardLabel, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.labels import SharedClasses
from dreamquant.synthesis.transforms import Contrast, Crop, Cutout, Flip, Grain, LowPass, OneOf


def ris(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """RIS: images that stay what they are under disturbed pixels and weights, with soft labels."""
    robust = Robustness(OneOf((Flip(), Crop(0.7), Grain(0.1), LowPass(0.2), Contrast(0.1), Cutout(0.5))))
    labels, loss = SharedClasses(0.3, 5), 20 * SoftLabel(20.0) + HardLabel()
    if effort == "fast":
        images = replace(_fast.IMAGES, loss=BatchNormDeviation() + 0.02 * ClassTarget() + 0.02 * robust, labels=labels)
        return Recipe("ris", images, scheme_of(bits, ends), _fast.taught(loss))
    images = _paper.images(BatchNormMatch() + ClassTarget() + robust, labels=labels)
    return Recipe("ris", images, scheme_of(bits, ends), (_paper.CALIBRATE, _paper.student(loss, 1e-4)))
