"""plf: pseudo-label filtering (Fan et al., "Data-Free Quantization via Pseudo-label Filtering", CVPR 2024). No code is public.

Paper: the label an image was dreamed with is not used; where the teacher's entropy is low its winner is a hard label,
elsewhere its two first classes share the label by their odds (weight 0.3), and the entropy that counts as low falls from
0.5 to 0.2 along the training; features weigh 100, SGD starts at 1e-3. `paper` has the CIFAR settings (ImageNet: entropies
0.4 to 0.1, weights 0.5 and 4000, class loss 0.1, SGD 1e-5). Unspecified there, so ours: images as HAST's with a plain
class loss; KL as it is printed, at temperature 1; HAST's channel attention for the features, which the weight suggests;
entropy of every augmented view; batch, epochs and decay of IntraQ. `fast`: KL with weight and temperature 20, images, ranges
and pace of recipes/_fast.py.
"""

from __future__ import annotations

from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.pseudo import ReliableLabel, TwoLabels
from dreamquant.losses.student import FeatureMatch, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper


def plf(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """PLF: the teacher's own labels, hard where its entropy is low, shared by two classes elsewhere."""
    labelled = ReliableLabel(0.5, 0.2) + 0.3 * TwoLabels(0.5, 0.2) + 100 * FeatureMatch()
    if effort == "fast":
        return Recipe("plf", _fast.IMAGES, scheme_of(bits, ends), _fast.taught(20 * SoftLabel(20.0) + labelled))
    images = _paper.images(BatchNormMatch() + 10 * ClassTarget())
    return Recipe("plf", images, scheme_of(bits, ends), (_paper.CALIBRATE, _paper.student(SoftLabel(1.0) + labelled, 1e-3)))
