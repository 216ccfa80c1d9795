"""gdfq: a generator and a student that learn in turns (Xu et al., "Generative Low-bitwidth Data Free Quantization", ECCV 2020).

Paper: a generator conditioned on classes learns cross-entropy and BatchNorm's statistics from the teacher; the student,
its BatchNorm statistics fixed, learns cross-entropy and the teacher's softened outputs on the generator's images. From
the code: variances instead of deviations, means over channels and layers, temperature 20, the mean of the divergence
over classes too (`per_class`), ranges settled in the first four epochs, which the student sits out, an eps of 0.8 in the
generator. `paper` has the CIFAR settings (recipes/_paper.py tells ImageNet's). Ours: a running mean of
extremes that is right from the first batch, the last iterate, the generator's form by the images' size. `fast`: BatchNorm
in units of the network's deviations, a narrower generator of the form for ImageNet, which learns the classes far sooner,
its images' mean and deviation learned, the divergence not divided by classes, a twentieth of the student's cross-entropy;
pace and ranges as in recipes/_fast.py.
"""

from __future__ import annotations

from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.pixels import NoImages


def gdfq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """GDFQ: a class-conditional generator and the student learn in turns."""
    steps = _fast.cotrain(_fast.SEEN, _fast.AGREE) if effort == "fast" else _paper.cotrain(_paper.SEEN, _paper.AGREE)
    return Recipe("gdfq", NoImages(), scheme_of(bits, ends), steps)
