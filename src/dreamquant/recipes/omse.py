"""omse: ranges of weights that minimise the squared error (Choukroun et al., ICCV workshops 2019), no dreaming, no training.

From the paper: one range for each output channel, by a line search. Ours: asymmetric ranges, both ends shrunk together,
and the search (80 shares, then golden section); the paper's second tensor for the hardest layers is left out; ranges of
activations by BatchNorm's statistics. `paper` is this alone. Such weights are smaller than the float ones (of all grids the
best fit leaves out what it cannot explain), every layer's output has less deviation than the BatchNorm behind it expects,
and the network can end below round to nearest. `fast` gives BatchNorm the statistics of the quantized layer (ours).
"""

from __future__ import annotations

from dreamquant.quant.clips import GoldenSection
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics, SetWeightRanges
from dreamquant.steps.reestimate import ReestimateStatistics
from dreamquant.synthesis.pixels import NoImages


def omse(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Round to nearest on the grids of the least squared error."""
    mend = (ReestimateStatistics(),) if effort == "fast" else ()
    return Recipe("omse", NoImages(), scheme_of(bits, ends), (SetWeightRanges(GoldenSection()), *mend, CalibrateFromStatistics()))
