"""dream: our own recipe and the default.

Images match BatchNorm in units of the network's own deviations, and are drawn in frequencies and axes of colour, so that
they have the spectrum of photographs; ranges minimise the error; then every block learns to give its teacher's outputs, by
its rounding and its steps, as GENIE-M does, at rates that fit so few updates. That needs no labels and is true of any
image. `paper`: four times as many images, and updates of each block. More updates of the images make them alike, and a
student that then learns activations and logits as a whole comes no closer.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.optimizers import Adam, Cosine
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe, scaled
from dreamquant.recipes import _fast
from dreamquant.synthesis.pixels import Frequencies


def dream(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our own recipe, the default: finished images, and blocks rebuilt one by one with learned rounding and steps."""
    count, more = (256, 1) if effort == "fast" else (1024, 4)
    images = replace(_fast.FEWER_IMAGES, count=count, space=Frequencies(), optimizer=Adam(0.1, (0.5, 0.9), Cosine()), iterations=120)
    return Recipe("dream", images, scheme_of(bits, ends), scaled(_fast.REBUILT, more))
