"""hast: hard samples, synthesised and trained on (Li et al., "Hard Sample Matters a Lot in Zero-Shot Quantization", CVPR 2023).

Paper and code: images by BNS-B and a class loss weighted by difficulty^2; a student of the logits (KL, weight and
temperature 20) and of the blocks' channel attention, on every batch and on the same batch made harder by one sign step.
From its code: no cross-entropy with labels (it is computed and never used), alignment weight 1000 and step 0.01 for every
data set (the options overwrite what the configuration says), gradients to the pixels through teacher and student. `paper`
has the CIFAR settings (ImageNet: `0.1 * ClassTarget(0.5)`, crops of 0.4 while dreaming, SGD 1e-6 on batches of 16, whose
rate falls at epoch 100 alone). Ours: what recipes/_paper.py says, and features at the outputs of blocks instead of before
the addition. `fast`: BatchNorm in units of the network's deviations, the class loss at 0.1, count, steps, space and pace as
in recipes/_fast.py. synq.py is this file and SynQ's three ideas.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch, ClassTarget
from dreamquant.losses.student import FeatureMatch, OnHarderImages, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper

HARD = replace(_fast.IMAGES, loss=BatchNormDeviation() + 0.1 * ClassTarget(focus=2.0))
HARD_PAPER = _paper.images(BatchNormMatch() + 10 * ClassTarget(focus=2.0))


def hast(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """HAST: images the teacher finds hard, harder still in training, and aligned features."""
    agree = 20 * SoftLabel(20.0) + 1000 * FeatureMatch()
    loss = agree + OnHarderImages(agree, 0.01)
    if effort == "fast":
        return Recipe("hast", HARD, scheme_of(bits, ends), _fast.taught(loss))
    return Recipe("hast", HARD_PAPER, scheme_of(bits, ends), (_paper.CALIBRATE, _paper.student(loss, 1e-5)))
