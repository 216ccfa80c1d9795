"""dream: our own recipe and the default.

Images match BatchNorm in units of the network's own deviations, and are drawn in frequencies and axes of colour, so that
they have the spectrum of photographs; ranges minimise the error; then every block learns to give its teacher's outputs, by
its rounding and its steps, as GENIE-M does, at rates that fit so few updates. That needs no labels and is true of any
image. `paper`: more of all, and at last a student that matches the output of every activation and the logits, each in
units of the teacher's variance there.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.student import ActivationMatch, LogitMatch
from dreamquant.optimizers import Adam, Cosine
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe, scaled
from dreamquant.recipes import _fast
from dreamquant.synthesis.pixels import Frequencies


def dream(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our own recipe, the default: finished images, and blocks rebuilt one by one with learned rounding and steps."""
    images = replace(_fast.FEWER_IMAGES, space=Frequencies(), optimizer=Adam(0.1, (0.5, 0.9), Cosine()), iterations=120)
    recipe = Recipe("dream", images, scheme_of(bits, ends), _fast.REBUILT)
    if effort == "fast":
        return recipe
    student = _fast.student(ActivationMatch() + LogitMatch(), weights=LearnSteps())
    return scaled(replace(recipe, synthesis=replace(images, count=1024), steps=(*recipe.steps, student)), 4)
