"""arc: GDFQ with a generator that was searched for (Zhu et al., "AutoReCon: Neural Architecture Search-based Reconstruction for
Data-free Compression", IJCAI 2021).

Paper: the generator's topology is searched for a teacher; losses, student and pace are GDFQ's (gdfq.py). The five
published genotypes (ResNet-20 on CIFAR-10 and -100, ResNet-18, ResNet-50, MobileNetV2) come from AIT's code and are
values of synthesis/cells.py. The teacher gets that of the most similar network (ours); the search itself is not public,
ours is `SearchCells`, and experiments/cells.py runs it (what it finds for 8x8 digits loses more than the published
cells). `fast`: cells a quarter as wide, images of learned mean and deviation, pace and ranges as in recipes/_fast.py.
"""

from __future__ import annotations

from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.cells import Cells
from dreamquant.synthesis.pixels import NoImages


def arc(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """ARC: GDFQ whose generator's cells were searched for the teacher."""
    if effort == "fast":
        steps = _fast.cotrain(_fast.SEEN, _fast.AGREE, generator=Cells(width=16, affine=True))
    else:
        steps = _paper.cotrain(_paper.SEEN, _paper.AGREE, generator=Cells())
    return Recipe("arc", NoImages(), scheme_of(bits, ends), steps)
