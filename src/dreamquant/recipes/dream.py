"""dream: our own recipe and the default.

Images match BatchNorm in units of the network's own deviations, and are drawn in frequencies and axes of colour, so that
they have the spectrum of photographs; ranges minimise the error; the student matches the output of every activation
and the logits, each in units of the teacher's variance there. That needs no labels, and is true of any image.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.losses.student import ActivationMatch, LogitMatch
from dreamquant.optimizers import Adam, Cosine
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe, scaled
from dreamquant.recipes import _fast
from dreamquant.synthesis.pixels import Frequencies


def dream(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our own recipe, the default: finished images, and a student that matches activations and logits with learned steps."""
    images = replace(_fast.IMAGES, space=Frequencies(), optimizer=Adam(0.1, (0.5, 0.9), Cosine()), iterations=120)
    recipe = Recipe("dream", images, scheme_of(bits, ends), _fast.taught(ActivationMatch() + LogitMatch()))
    longer = scaled(recipe, 4)
    return recipe if effort == "fast" else replace(longer, synthesis=replace(longer.synthesis, count=5120))
