"""rtn: round to nearest, no dreaming, no training; what every method must beat.

Weights span their range per channel; activations the range that minimises the rounding error on images of plain noise.
Both efforts are the same.
"""

from __future__ import annotations

from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.synthesis.pixels import Noise


def rtn(bits: str = "w8a8", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Round to nearest: no dreaming, no training."""
    return Recipe("rtn", Noise(), scheme_of(bits, ends), (_fast.CALIBRATE,))
