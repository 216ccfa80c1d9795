"""dfq: equalize, absorb, correct; no images (Nagel et al., ICCV 2019, arXiv 1906.04721).

`paper`: one grid for all weights of a layer, layers equalized in pairs, high biases absorbed, biases corrected analytically,
activations spanning 6 deviations of BatchNorm's record. `fast`, ours: one grid for each output channel, where equalizing
has nothing left to do, and activation ranges that minimise the expected error, like all our recipes without images; what
remains of the method is its bias correction. Ours in both: ReLU6 stays, and no pair reaches across it, where the paper
widens it to ReLU (`prepare.WidenReLU6`), which EfficientNet-Lite0 does not survive at 8 bits (experiments/results/closed_forms.md);
the zero padding that the paper leaves out of the expected inputs is counted.
"""

from __future__ import annotations

from dataclasses import replace

from dreamquant.prepare import AbsorbHighBias, Equalize, FoldBatchNorm
from dreamquant.quant.ranges import MinMax
from dreamquant.quant.scheme import Int, scheme_of, uniform
from dreamquant.recipe import Recipe
from dreamquant.steps.calibrate import CalibrateFromStatistics, Span
from dreamquant.steps.correct import CorrectBiasFromStatistics
from dreamquant.synthesis.pixels import NoImages


def dfq(bits: str = "w8a8", effort: str = "fast", ends: int | None = None) -> Recipe:
    """DFQ: weights equalized across layers and biases corrected from BatchNorm's statistics; seconds, no images."""
    if effort == "fast":
        return Recipe("dfq", NoImages(), scheme_of(bits, ends), (CorrectBiasFromStatistics(), CalibrateFromStatistics()))
    prepare = (FoldBatchNorm(), Equalize(), AbsorbHighBias())
    steps = (CorrectBiasFromStatistics(), CalibrateFromStatistics(Span(6.0), MinMax()))
    scheme = uniform(bits, ends)
    per_tensor = replace(scheme, weights=Int(scheme.weights.bits))
    return Recipe("dfq", NoImages(), per_tensor, steps, prepare)
