"""intraq: images that differ within their class (Zhong et al., "IntraQ", CVPR 2022).

Paper and code: every other step sees random crops of the images (local object reinforcement), an image's features stay
between two distances from the mean of its class over all finished images, and its class gets a probability of its own; then
KL and cross-entropy. `paper` has the CIFAR-10 settings of the code (margins 0.05 and 0.8, targets from 0.95; CIFAR-100:
0.02, 1.0 and 0.6; its ImageNet script switches margins and targets off; SGD 1e-6 on batches of 16 there, whose rate falls
at epoch 100 alone). From the code: half the targets are one. Ours: what recipes/_paper.py says. `fast`: BatchNorm in units
of the network's deviations, count, steps, space and pace as in recipes/_fast.py.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.diversity import ClassSpread, SoftTarget
from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch
from dreamquant.losses.student import HardLabel, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.labels import SoftTargets
from dreamquant.synthesis.transforms import Crop, Flip, Sometimes, Transform


def intraq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """IntraQ: crops while dreaming, distances within classes kept between margins, soft class targets."""
    varied = SoftTarget() + ClassSpread(0.05, 0.8)
    labels, loss = SoftTargets(0.95), 20 * SoftLabel(20.0) + HardLabel()
    if effort == "fast":
        crops: tuple[Transform, ...] = (*_fast.IMAGES.transforms, Sometimes(0.5, (Crop(0.5),)))
        images = replace(_fast.IMAGES, loss=BatchNormDeviation() + varied, labels=labels, transforms=crops)
        return Recipe("intraq", images, scheme_of(bits, ends), _fast.taught(loss))
    images = _paper.images(BatchNormMatch() + varied, (Sometimes(0.5, (Crop(0.5), Flip())),), labels)
    return Recipe("intraq", images, scheme_of(bits, ends), (_paper.CALIBRATE, _paper.student(loss, 1e-4)))
