"""mixed: bits for each layer, chosen without data within an average, and no training.

From ZeroQ (Cai et al., CVPR 2020, arXiv 2001.00281, section 3.3; its code was never published): a layer's sensitivity is
the divergence of the output when this layer alone is quantized, measured on dreamed images; sensitivities add up; bits
are chosen from the front of size and predicted loss by dynamic programming. HAWQ (Dong et al. 2019) and its followers
weigh layers by the Hessian on real data, and choose by integer programming; `FollowGradient` stands near it.

Ours: activations are chosen in the same way, and their losses are in the same unit; bits 2, 3, 4, 5, 6 and 8 where
ZeroQ has 2, 4 and 8; softened logits, because teachers are certain of dreamed images; ranges that minimise the error;
64 images of our fast kind. `paper`: ZeroQ's images, its bits, T = 1 and min-max ranges.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.quant.allocate import MixedBits, mixed_of
from dreamquant.quant.ranges import LpSearch, MinMax
from dreamquant.quant.sensitivity import FollowGradient, SwapOneLayer
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.recipes.zeroq import zeroq
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges


def mixed(bits: str = "mixed:4.0", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Mixed precision: each layer's bits by its sensitivity on dreamed images, within an average; no training."""
    scheme = mixed_of(bits, ends)
    if effort == "fast":
        images = replace(_fast.IMAGES, count=64, batch=64)
        return Recipe("mixed", images, scheme, (SetWeightRanges(LpSearch()), Calibrate(LpSearch(), count=64)))
    scheme = replace(scheme, sensitivity=SwapOneLayer(temperature=1.0, ranges=MinMax()), candidates=(2, 4, 8))
    return Recipe("mixed", zeroq(effort="paper").synthesis, scheme, (SetWeightRanges(MinMax()), Calibrate(MinMax(), count=64)))


def by_gradient(recipe: Recipe) -> Recipe:
    """Mixed bits chosen by one pass forward and back instead of by trying each layer: for large networks."""
    scheme = recipe.scheme
    if not isinstance(scheme, MixedBits) or not isinstance(scheme.sensitivity, SwapOneLayer):
        raise ValueError(f"by_gradient:{recipe.name} tries no layers; give it mixed bits, as --bits mixed:4.0")
    tried = scheme.sensitivity
    gradient = FollowGradient(tried.count, tried.temperature, tried.ranges)
    return replace(recipe, name=f"by_gradient:{recipe.name}", scheme=replace(scheme, sensitivity=gradient))
