"""causal_dfq: what the student tells of the teacher must not depend on style (Shang et al., "Causal-DFQ", ICCV 2023, arXiv 2309.13682).

Paper: images have a content (the class) and a style (noise), fused by multiplication in the generator; the style of a
content is changed, and the relation of the two networks' representations should stay: similarities by a critic, the
Kullback-Leibler divergence of what they say before and after, a weight lambda against the usual loss (GDFQ's), a
threshold tau. No code was published, and the paper's text as we have it gives none of its constants: ours are the form of
the losses (the student should tell of the teacher what the teacher does of itself, whatever the style), cosines of the
features before the classifier as critic, temperature 0.1, two styles, lambda 1, tau 0, the teacher's features without
gradient, the student alone learns from it, normalisations that know the class in large generators, GDFQ's schedule, the
divergence to the teacher as a mean over images. `fast`: gdfq's, and a generator of the large form. docs/causal_dfq.md
tells the causal graph.
"""

from __future__ import annotations

from dreamquant.losses.causal import StyleInvariance
from dreamquant.losses.student import HardLabel, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.synthesis.causal import ContentStyle, Styles
from dreamquant.synthesis.generator import BySide
from dreamquant.synthesis.pixels import NoImages


def causal_dfq(
    bits: str = "w4a4", effort: str = "fast", ends: int | None = None, weight: float = 1.0, threshold: float = 0.0, styles: int = 2
) -> Recipe:
    """Causal-DFQ: each class in several styles, and a student whose relation to the teacher no style changes."""
    invariant = weight * StyleInvariance(threshold=threshold)
    if effort == "fast":
        steps = _fast.cotrain(_fast.SEEN, _fast.AGREE + invariant, Styles(styles), ContentStyle(width=_fast.WIDTH, affine=True))
    else:
        agree = SoftLabel(20.0) + HardLabel() + invariant
        steps = _paper.cotrain(_paper.SEEN, agree, Styles(styles), BySide(large=ContentStyle()))
    return Recipe("causal_dfq", NoImages(), scheme_of(bits, ends), steps)
