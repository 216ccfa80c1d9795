"""genie: block by block, rounding and steps are learned (Jeon et al., CVPR 2023: GENIE-D and GENIE-M).

Paper and code: images of a generator that is learned with its latents, batch by batch, from BatchNorm's means and
deviations alone, while strided convolutions swing; then 20,000 updates of every residual block on batches of 32, with
QDrop's halves, AdaRound's regulariser at weight 1, learned steps of weights (GENIE-M) and of activations. From the code:
which optimizer has which rate (its argument names are swapped). Ours: the latents' rate falls at fixed shares of the loop,
not on plateaus; zero points of activations may differ from 0 (one grid serves inputs of any sign); ranges are found once
before the first block, with weights rounded between their extremes, not block by block; the first block ends behind its
activation, where the code's is the convolution alone; gradients of activation steps have LSQ's scale; images are what the
last update left. BatchNorm is kept, as in the code. Published numbers have ends of 8 bits. `fast`: images as in all our
fast recipes, half as many; 500 updates on batches of 16, a hundred and twenty times the rate of the roundings, and rates of
steps in units of each step.
"""

from __future__ import annotations

from dreamquant.losses.image import BatchNormSum
from dreamquant.optimizers import Adam, Cosine
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.reconstruct import Reconstruct
from dreamquant.synthesis.latents import OptimizeLatents


def genie(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Genie: residual blocks are rebuilt one by one with learned rounding (`paper`: on images of a generator)."""
    if effort == "fast":
        return Recipe("genie", _fast.FEWER_IMAGES, scheme_of(bits, ends), _fast.REBUILT)
    search = LpSearch(2.4, candidates=100, least=0.01)
    rebuild = Reconstruct(weight_steps=Adam(1e-4, schedule=Cosine()))
    steps = (Calibrate(search, count=32, batch=32), SetWeightRanges(search), rebuild)
    return Recipe("genie", OptimizeLatents(BatchNormSum()), scheme_of(bits, ends), steps)
