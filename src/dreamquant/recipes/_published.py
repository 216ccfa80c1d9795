"""as_published: what published code does otherwise than its paper or than mathematics would, where it changes results.

Recipes follow the mathematics (their docstrings tell where), and each departure is a switch of a part, off by default. This
turns those on together that belong to the code a recipe is from. IntraQ and its descendants take ranges from a throw-away
generator by a running mean that divides its own quotient; SynQ's saliency sends an all-zero image along, which clips them;
GDFQ and its descendants have the same mean while the generator learns alone; Qimera standardises mixtures over the batch
and divides their scales and shifts once more. What has no public code (TexQ, PLF, RIS, ACQ, Causal-DFQ, EnhancingDFQ) is
assumed to share that of what it descends from. Not switched on, as nobody should want them: the best iterate by test labels,
and leaks of real images into ranges. What has a switch and is no accident stays as the recipe has it: the class of
`SaliencyMatch`, `FeatureMatch`'s weight, `OnHarderImages.teacher`, `AdaptabilityMargin.fixed_least`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from dreamquant.dream import Dream
from dreamquant.losses.student import SaliencyMatch
from dreamquant.recipe import Recipe, within
from dreamquant.recipes import _paper
from dreamquant.steps.calibrate import Calibrate, CalibrateOnGenerator
from dreamquant.steps.cotrain import DreamOnly
from dreamquant.synthesis.superposed import Superposed

RANGES = CalibrateOnGenerator(Dream(_paper.SEEN, batch=16))


def as_published(recipe: Recipe) -> Recipe:
    """What the published code of a recipe does by accident, for comparisons with its figures; use it with `--effort paper`.

    Raises ValueError where the recipe has no part whose published code differs by a switch.
    """
    steps = _switched(recipe.steps, any(within(recipe.steps, SaliencyMatch)))
    if steps == recipe.steps:
        raise ValueError(f"as_published: no part of {recipe.name} has a switch for what published code does; of most, `paper` has some")
    return replace(recipe, name=f"as_published:{recipe.name}", steps=steps)


def _switched(part: Any, zero_images: bool) -> Any:
    """The part with its switches on, and those inside it."""
    if isinstance(part, tuple):
        return tuple(_switched(item, zero_images) for item in part)
    if isinstance(part, Calibrate) and replace(part, transforms=()) == _paper.CALIBRATE:
        return replace(RANGES, zero_images=zero_images)
    if isinstance(part, DreamOnly) and part.track is not None:
        return replace(part, compounding=True)
    if isinstance(part, Superposed):
        return replace(part, over_batch=True, averaged=True)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{f.name: _switched(getattr(part, f.name), zero_images) for f in fields(part)})
