"""adadfq: images that are worth the student's while (Qian et al., "Adaptive Data-Free Quantization", CVPR 2023).

A game on the disagreement of teacher and student (losses/adaptability.py). Paper: the generator keeps its normalised
entropy between two boundaries, with disagreement and agreement both of the label's class, and BatchNorm's statistics; the
student maximises its entropy, with no label and no distillation beside. From the code: weights 0.2 and 0.1, the band 0.1 to
0.8, temperature 20, batches of 16, GDFQ's generator and pace. `paper` has the CIFAR settings; ImageNet's: temperature 5,
the student at 1e-5, it and the generator falling at epochs 350 and 400, after 10,000 updates (ResNet-50: 1e-4, falling at
200, 300 and 400; at 3 bits 150, 300 and 400, after 20,000); a band from 0.3 at 4 and 5 bits for ResNet-18, ResNet-50's from
0.3, at 3 bits from 0.4; disagreement at 0.3 for ResNet-18 at 5 bits and MobileNetV2 at 4, at 0.1 for ResNet-50 at 4. The
code as published does not start. Ours: what gdfq.py says; the student's ranges follow the images of the warm-up once an
update, where the code looks twice. `fast`: as in recipes/_fast.py, with gdfq's class loss, and a tenth of the game, because
BatchNorm in units of the network's deviations is a small number, and beside a whole game its statistics are not learned; of
that the targets weigh a tenth of what they do in the paper, because at their full weight, without a class loss, they cost
three points on resnet20 at W3A3 (one seed) and half a point on our smallest network (three).
"""

from __future__ import annotations

from dreamquant.losses.adaptability import AdaptabilityMargin, AgreementTarget, DisagreementEntropy, DisagreementTarget
from dreamquant.losses.image import BatchNormMatch
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.pixels import NoImages


def adadfq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """AdaDFQ: the generator keeps the student's disagreement within a band, the student ends it."""
    band, targets = AdaptabilityMargin(0.1, 0.8), 0.2 * DisagreementTarget() + 0.1 * AgreementTarget()
    if effort == "fast":
        steps = _fast.cotrain(0.1 * band + 0.01 * targets + _fast.SEEN, DisagreementEntropy(20.0), track=0.9)
    else:
        steps = _paper.cotrain(band + targets + BatchNormMatch(), DisagreementEntropy(20.0), batch=16)
    return Recipe("adadfq", NoImages(), scheme_of(bits, ends), steps)
