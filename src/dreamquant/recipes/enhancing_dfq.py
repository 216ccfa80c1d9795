"""enhancing_dfq: dreams of mixed classes and bent noise, unlike each other to the network (Zhao et al., "Enhancing Diversity for
Data-free Quantization", CVPR 2025).

Paper, four ideas: embeddings of classes from classifiers on several of the teacher's layers (`ExtractEmbeddings`), mixed by
attention whose scores become the labels (`AttentionMixer`), noise from a flow taken in level by level (`FlowAttention`), and
two similarity losses (`ClassMeanLikeness` on the generator, `PassedMatch` on the student and its learned clip ranges). Each
can be left out: experiments/enhancing.py. From a driver file found in public, its attribution not certain (the paper's
code is not public): whole batches are mixed or not, of 250 classes of 1,000; ranges are tracked first and learned then;
embeddings are extracted after a fifth of the generator's warm-up. Where the driver differs from the paper (linear maps for
the flow, half of the labels random, a learned scale that starts at zero, old embeddings averaged in) the paper counts. Ours,
where both are silent: sizes, the share of mixed batches (Qimera's), reductions, GDFQ's schedule (as in recipes/_paper.py),
and BatchNorm's statistics in the generator's loss, as in all methods it is compared with: Eq. 12 has none, which is
`without_batch_norm:enhancing_dfq`, for transformers. `fast`: units, weights and temperature of the other fast recipes; likeness to
the class's mean by the angle (`ClassMeanAngle`), because with the cosine all images of a class come out alike in so few updates;
and learned steps: those of a range from zero are its clip value over the codes, and their gradient comes from inside the range too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dreamquant.losses.activated import ClassMeanAngle, ClassMeanLikeness, PassedMatch
from dreamquant.losses.algebra import Loss, Sum
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import SoftLabel
from dreamquant.quant.quantizer import LearnClips
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, _paper
from dreamquant.steps.cotrain import DreamOnly
from dreamquant.steps.embeddings import ExtractEmbeddings
from dreamquant.synthesis.embedded import ClassEmbedded, MixedClasses
from dreamquant.synthesis.generator import BySide
from dreamquant.synthesis.pixels import NoImages


def enhancing_dfq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """EnhancingDFQ: mixed classes, bent noise, dreams unlike each other, and a student that learns clip ranges."""
    if effort == "fast":
        generator, agree = ClassEmbedded(width=_fast.WIDTH, affine=True, class_norms=True), SoftLabel(20.0) + PassedMatch(relative=True)
        *ranges, step = _fast.cotrain(_fast.SEEN + 0.5 * ClassMeanAngle(), agree, MixedClasses(), generator)
        warm_up = (DreamOnly(60), ExtractEmbeddings(50), DreamOnly(240))
    else:
        by_side = BySide(ClassEmbedded(), ClassEmbedded(class_norms=True))
        *ranges, step = _paper.cotrain(
            ClassTarget() + ClassMeanLikeness() + 0.1 * BatchNormMatch(), SoftLabel(1.0) + PassedMatch(), MixedClasses(), by_side
        )
        warm_up = (DreamOnly(160, track=0.9), ExtractEmbeddings(200), DreamOnly(640, track=0.9))
        step = replace(step, learn=replace(step.learn, activations=LearnClips()))
    steps = (*ranges, replace(step, stages=(*warm_up, *step.stages[1:])))
    return Recipe("enhancing_dfq", NoImages(), scheme_of(bits, ends), steps)


def without_batch_norm(recipe: Recipe) -> Recipe:
    """A recipe whose generator is not asked for BatchNorm's statistics, for networks that have none.

    Raises ValueError where no generator is, or is asked for nothing else.
    """
    steps = tuple(_without(step) if hasattr(step, "dream") else step for step in recipe.steps)
    if steps == recipe.steps:
        raise ValueError(f"without_batch_norm: {recipe.name} trains no generator to match BatchNorm's statistics")
    return replace(recipe, name=f"without_batch_norm:{recipe.name}", steps=steps)


def _without(step: Any) -> Any:
    loss: Loss[Any] = step.dream.loss
    terms = loss.terms if isinstance(loss, Sum) else ((1.0, loss),)
    left = tuple((weight, term) for weight, term in terms if "bn" not in term.wants())
    if not left:
        raise ValueError(f"without_batch_norm: {loss!r} asks for nothing else")
    return replace(step, dream=replace(step.dream, loss=Sum(left)))
