"""qimera: images near decision boundaries, from superposed class embeddings (Choi et al., "Qimera: Data-free Quantization with
Synthetic Boundary Supporting Samples", NeurIPS 2021).

GDFQ (gdfq.py) with another generator and other labels. Paper: each iteration is, with probability 0.4, of mixtures: the
latent is a weighted sum of noisy embeddings of several classes, and the same weights are the soft label; embeddings
begin as the rows of the teacher's classifier, and are learned. From the code: standardised embeddings, GDFQ's losses and
pace, no disentangling map. Its scripts begin with random embeddings for CIFAR-10, ResNet-18 and MobileNet
(`--set ...of_classifier=False`), and mix more often for ResNet-50 (0.7).

Memory is bounded: where the trunk's first layer would be too large (822 million weights for 2,048 features and images of
224), latents pass a learned map to 100 values first; see `Superposed`. `paper` builds layers of up to 250 million
(ResNet-18's 206 million), `fast` of 50. Ours: the number of mixed classes by the network's; each class standardised
alone; scales and shifts of mixtures are added, which the code also divides by their number. `fast`: ImageNet's
trunk at a quarter of its width, pace and ranges as in recipes/_fast.py.
"""

from __future__ import annotations

from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.generator import BySide
from dreamquant.synthesis.pixels import NoImages
from dreamquant.synthesis.superposed import Mixtures, Superposed

LARGEST = 250_000_000


def qimera(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Qimera: GDFQ with superposed class embeddings, for images near decision boundaries."""
    if effort == "fast":
        generator = Superposed(width=_fast.WIDTH, affine=True, by_class=True)
        steps = _fast.cotrain(_fast.SEEN, _fast.AGREE, Mixtures(), generator)
    else:
        trunks = BySide(Superposed(bound=LARGEST), Superposed(by_class=True, bound=LARGEST))
        steps = _paper.cotrain(_paper.SEEN, _paper.AGREE, Mixtures(), trunks)
    return Recipe("qimera", NoImages(), scheme_of(bits, ends), steps)
