"""synq: synthesis-aware fine-tuning (Kim, Kim and Kang, ICLR 2025, openreview.net/forum?id=2rnOgyFQgb).

HAST (hast.py), and three ideas (Eq. 6): a low-pass filter on every fetched batch, Grad-CAM maps of teacher and student
aligned, hard labels only where the teacher finds the image easy. From its code, not its paper: KL with temperature 20
and weight 20, HAST's feature alignment (weight 1000) and, in `paper` only, its harder twins by one sign step, which for
CIFAR climb the alignment too and are not aligned themselves; the class loss of its scripts (weight 0.1, difficulty^0.5);
the own winner as Grad-CAM's class (`SaliencyMatch(GradCam(of_label=True))` is the paper's), its clamped weights. Ours: of
the paper's three rates the first; the filter's cut-off as a share of the width (0.357 is 80 of 224; the CIFAR value is
unpublished); what recipes/_paper.py says. The layered BNS term is left out: at its published weight it is 2e-4 of the rest.
ImageNet: crops of 0.4 while dreaming, SGD 1e-6 at a constant rate on batches of 16, hard labels below a difficulty of 0.5, aligned twins.
`fast`: count, steps, space and pace as in recipes/_fast.py, HAST's fast images; a cut-off at Nyquist's frequency, 16 of 32,
which loses 3.8 points on our smallest network where 0.357 loses 3.4, less than equal runs differ by
(experiments/ablations.py:cutoffs, three seeds); no twins, which Eq. 6 does not have and
which double the student's passes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from dreamquant.losses.algebra import Loss, Sum
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import FeatureMatch, HardLabel, OnHarderImages, SaliencyMatch, SoftLabel
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe, Step, dreams, within
from dreamquant.recipes import _fast, _paper
from dreamquant.recipes.hast import HARD
from dreamquant.synthesis.pixels import NoImages, Noise
from dreamquant.synthesis.transforms import LowPass
from dreamquant.trace import Pair

FILTER, PUBLISHED = LowPass(0.5), LowPass(0.357)


def synq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """SynQ: low-pass filtered images, aligned saliency, hard labels only for easy images."""
    labels = 20 * SoftLabel(20.0) + 0.5 * HardLabel(0.7)
    agree = labels + 1000 * FeatureMatch()
    loss = agree + 50 * SaliencyMatch()
    if effort == "fast":
        return Recipe("synq", HARD, scheme_of(bits, ends), _fast.taught(loss, FILTER))
    harder = loss + OnHarderImages(labels, 0.01, climbs=agree)
    tune = _paper.student(harder, 1e-4, (*_paper.AUGMENT, PUBLISHED), iterations=20_000, falls=(0.2, 0.4, 0.6))
    images = _paper.images(BatchNormMatch() + 0.1 * ClassTarget(focus=0.5))
    return Recipe("synq", images, scheme_of(bits, ends), (replace(_paper.CALIBRATE, transforms=(PUBLISHED,)), tune))


def synq_on(recipe: Recipe) -> Recipe:
    """SynQ's three ideas on any recipe with images; a fine-tune is appended where nothing learns.

    The filter, that of `fast`, acts on what the student sees, in training and where ranges are measured on images (not on
    those that follow a generator in its warm-up); saliency is aligned with weight 50; hard labels are kept for images of
    difficulty up to 0.7, with their old weight, or 0.5 where there were none. The appended fine-tune is that of the `fast`
    recipes, whatever the recipe's effort: grids of weights are set first where no step does, and all of them learned. Raises
    ValueError where there are no images to filter, or the ideas are in the recipe.
    """
    if isinstance(recipe.synthesis, NoImages | Noise) and not dreams(recipe):
        raise ValueError(f"synq_on filters and learns from dreamed images, and {recipe.name} dreams none")
    steps = tuple(_taught(step, recipe.name) for step in recipe.steps)
    if not any(hasattr(step, "learn") for step in steps):
        steps = _fast.taught_after(steps, _with_ideas(20 * SoftLabel(20.0)), FILTER)
    return replace(recipe, name=f"synq_on:{recipe.name}", steps=steps)


def _taught(step: Any, name: str) -> Step:
    """The step with the ideas where it learns, with the filter where it only looks."""
    if not hasattr(step, "learn"):
        return _looking(step)
    if any(within(step.learn.loss, SaliencyMatch)):
        raise ValueError(f"synq_on: {name} aligns saliency already")
    learn = replace(step.learn, loss=_with_ideas(step.learn.loss), transforms=(*step.learn.transforms, FILTER))
    stages = {"stages": tuple(map(_looking, step.stages))} if hasattr(step, "stages") else {}
    return replace(step, learn=learn, **stages)


def _looking(step: Any) -> Any:
    """The step, or the stage of a co-training that takes one, with the filter where it looks at images."""
    if hasattr(step, "step"):
        return replace(step, step=_looking(step.step))
    return replace(step, transforms=(*step.transforms, FILTER)) if hasattr(step, "transforms") else step


def _with_ideas(loss: Loss[Pair]) -> Loss[Pair]:
    labelled = _for_easy(loss) if any(within(loss, HardLabel)) else loss + 0.5 * HardLabel(0.7)
    return labelled + 50 * SaliencyMatch()


def _for_easy(part: Any) -> Any:
    """The same loss with hard labels for easy images only, losses inside losses included."""
    if isinstance(part, HardLabel):
        return HardLabel(min(part.max_difficulty, 0.7))
    if isinstance(part, Sum):
        return Sum(tuple((weight, _for_easy(term)) for weight, term in part.terms))
    inner = {f.name: getattr(part, f.name) for f in fields(part) if isinstance(getattr(part, f.name), Loss)}
    return replace(part, **{name: _for_easy(loss) for name, loss in inner.items()})
