"""adasg: data-free quantization as a zero-sum game (Qian et al., "Rethinking Data-Free Quantization as a Zero-Sum Game", AAAI 2023).

AdaDFQ (adadfq.py) is its successor, and the same game with other numbers: here disagreement and agreement weigh 0.1
each, and the band is 0.3 to 0.8. All else, what is from the code and what is ours, as told there.
"""

from __future__ import annotations

from dreamquant.losses.adaptability import AdaptabilityMargin, AgreementTarget, DisagreementEntropy, DisagreementTarget
from dreamquant.losses.image import BatchNormMatch
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.pixels import NoImages


def adasg(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """AdaSG: generator and student play a zero-sum game on their disagreement."""
    band, targets = AdaptabilityMargin(0.3, 0.8), 0.1 * DisagreementTarget() + 0.1 * AgreementTarget()
    if effort == "fast":
        steps = _fast.cotrain(0.1 * band + 0.01 * targets + _fast.SEEN, DisagreementEntropy(20.0), track=0.9)
    else:
        steps = _paper.cotrain(band + targets + BatchNormMatch(), DisagreementEntropy(20.0), batch=16)
    return Recipe("adasg", NoImages(), scheme_of(bits, ends), steps)
