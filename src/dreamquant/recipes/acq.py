"""acq: a generator told where attention should lie (Li et al., "Improving Generative Data-free Quantization Via Attention
Correction", Pattern Recognition 2024, arXiv 2301.07266).

GDFQ (gdfq.py), and three ideas. Paper: the generator is given a class and a position for the centre of the teacher's L2
attention map; two images of one condition and different noise are pushed apart in the teacher's features, against mode
collapse; classification, BatchNorm statistics and attention should be the same with the teacher in train mode, its
recorded statistics untouched. There is no code, and no formula is in our sources; ours: how far the asked cell
of the last feature map is behind the one with most attention, the cosine as the distance, which grows in while the
student sits out, embeddings of positions that are added (multiplied, as GDFQ's of classes are, they are not followed),
all weights, GDFQ's student and pace. ImageNet: likely a student's `lr` of 1e-5. `fast`: generator, pace and ranges as in
gdfq.py; twins weigh a tenth, as classes do, because with more images leave the statistics, and attention a half,
because with less its centre is not followed.
"""

from __future__ import annotations

from dreamquant.losses.attention import AttentionCentre, SameInTrainMode, TwinSimilarity
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.generator import BySide
from dreamquant.synthesis.pixels import NoImages
from dreamquant.synthesis.positions import Placed, PlaceNormed, Twins


def acq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """ACQ: attention centred where it was asked, twins that differ, the same in train mode."""
    if effort == "fast":
        seen = _fast.SEEN
        dream = seen + 0.5 * AttentionCentre() + 0.1 * TwinSimilarity(0.3) + SameInTrainMode(seen)
        steps = _fast.cotrain(dream, _fast.AGREE, Twins(), PlaceNormed(width=_fast.WIDTH, affine=True))
    else:
        seen = _paper.SEEN
        dream = seen + AttentionCentre() + TwinSimilarity(0.01) + SameInTrainMode(seen)
        steps = _paper.cotrain(dream, _paper.AGREE, Twins(), BySide(Placed(), PlaceNormed()))
    return Recipe("acq", NoImages(), scheme_of(bits, ends), steps)
