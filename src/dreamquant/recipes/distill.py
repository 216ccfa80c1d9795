"""distill: our plain baseline, BatchNorm-matched images and a student of the teacher's logits, nothing else.

Every method is compared with it at equal images and steps. `paper` has the budget of the fine-tuning papers (5,120
images of 1,000 steps, 20,000 updates of SGD 1e-4), with their BNS-B and temperature.
"""

from __future__ import annotations

from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper


def distill(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our plain baseline: BatchNorm-matched images and a student of the teacher's logits."""
    if effort == "fast":
        return Recipe("distill", _fast.IMAGES, scheme_of(bits, ends), _fast.taught(SoftLabel(4.0)))
    tune = _paper.student(20 * SoftLabel(20.0), 1e-4, iterations=20_000, falls=(0.2, 0.4, 0.6))
    return Recipe("distill", _paper.images(BatchNormMatch() + ClassTarget()), scheme_of(bits, ends), (_paper.CALIBRATE, tune))
