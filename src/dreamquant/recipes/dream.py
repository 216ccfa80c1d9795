"""dream: our own recipe and the default.

Images match BatchNorm in units of the network's own deviations; ranges minimise the error; the student matches the
output of every activation, each in units of the teacher's variance there, with the steps of activations and of weights
learned. It needs no labels, and what it asks for is true of any image.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.student import ActivationMatch
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe, scaled
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import SetWeightRanges


def dream(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our own recipe, the default: finished images, and a student that matches activations with learned steps."""
    student = _fast.student(ActivationMatch(), activations=LearnSteps(), weights=LearnSteps())
    steps = (SetWeightRanges(), _fast.CALIBRATE, student)
    recipe = Recipe("dream", _fast.IMAGES, scheme_of(bits, ends), steps)
    longer = scaled(recipe, 4)
    return recipe if effort == "fast" else replace(longer, synthesis=replace(longer.synthesis, count=5120))
