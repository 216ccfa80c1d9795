"""texq: calibrated texture (Chen et al., "TexQ", NeurIPS 2023). No code is public, and only an abstract and a summary of the paper.

From those: one calibration image for each class (class loss, BatchNorm statistics weighted by layer, Laws' texture
energies); its statistics are the centre that images of the class are held to; a student that also matches the teacher on
mixtures of images, of which no labels are used; learning rate 0.05 and batches of 128. From SynQ's port: the calibration
images' weights (5, 0.2, 1.1), which layers are deep, 1,500 steps. The published third stage is a conditional generator:
here the images are optimised on pixels by the same losses (alphas 0.4 and 0.04 from the ranges SynQ searched). Ours: that,
the formula of the texture term, mixing shares from Beta(1, 1), cross-entropy weight 1, SGD 1e-4, what recipes/_paper.py
says. `fast`: BatchNorm in units of the network's deviations, count, steps, space and pace as in recipes/_fast.py.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch, ClassTarget
from dreamquant.losses.student import HardLabel, OnMixedImages, SoftLabel
from dreamquant.losses.texture import ClassCentre, LayeredBatchNorm, TextureBalance
from dreamquant.optimizers import Adam
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper


def texq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """TexQ: one calibrated image a class, images held to its statistics, and distillation on mixtures."""
    agree = 20 * SoftLabel(20.0)
    loss = agree + HardLabel() + OnMixedImages(agree)
    if effort == "fast":
        first = replace(_fast.IMAGES, loss=0.5 * ClassTarget() + LayeredBatchNorm(relative=True) + TextureBalance())
        guided = BatchNormDeviation() + 0.1 * ClassTarget() + 0.1 * ClassCentre(relative=True)
        images = replace(_fast.IMAGES, loss=guided, exemplars=first)
        return Recipe("texq", images, scheme_of(bits, ends), _fast.taught(loss))
    first = replace(_paper.images(5 * ClassTarget() + LayeredBatchNorm() + TextureBalance()), iterations=1500, optimizer=Adam(0.05))
    images = replace(_paper.images(0.4 * BatchNormMatch() + ClassTarget() + 0.04 * ClassCentre()), exemplars=first)
    return Recipe("texq", images, scheme_of(bits, ends), (_paper.CALIBRATE, _paper.student(loss, 1e-4, batch=128)))
