"""ait: closer to the teacher, with steps that matter (Choi et al., "It's All In the Teacher: Zero-Shot Quantization Brought Closer
to the Teacher", CVPR 2022).

A change of how a host's student learns; here the host is GDFQ, and `ait_on:NAME` puts it onto any recipe whose student
learns. Paper: the student's loss is the divergence from the teacher alone, no cross-entropy; and gradient inundation
(inundate.py): each weight's step is enlarged until a given share of its integer codes changes. From the code: a share
of 1e-3 for CIFAR (1e-4 for ImageNet), which falls with the rate; SGD at 1e-4 for all networks; no weight decay. Ours:
the enlargement is bounded; where the host makes fewer than 10,000 updates, as in `fast`,
three times the share and the rate (ten times is worse).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dreamquant.inundate import Inundate
from dreamquant.learn import Learn
from dreamquant.losses.student import SoftLabel
from dreamquant.recipe import Recipe, Step, within
from dreamquant.recipes.gdfq import gdfq

LONG, SHORT = Inundate(1e-4, flips=1e-3), Inundate(3e-4, flips=3e-3)


def ait(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """AIT on GDFQ: the teacher's soft labels alone, and steps that change a share of the integer weights."""
    return replace(ait_on(gdfq(bits, effort, ends)), name="ait")


def ait_on(recipe: Recipe) -> Recipe:
    """AIT's loss and optimizer for the student of any recipe.

    The host's soft labels stay as they are (temperature 20 where it has none), without its other losses; its schedule,
    transforms, ranges and images stay too. Raises ValueError where nothing learns, or the optimizer is AIT's already.
    """
    if not any(hasattr(step, "learn") for step in recipe.steps):
        raise ValueError(f"ait_on changes how a student learns, and in {recipe.name} none learns by gradient; try ait_on:gdfq")
    return replace(recipe, name=f"ait_on:{recipe.name}", steps=tuple(_taught(step, recipe.name) for step in recipe.steps))


def _taught(step: Any, name: str) -> Step:
    learn: Learn | None = getattr(step, "learn", None)
    if learn is None:
        untouched: Step = step
        return untouched
    if isinstance(learn.optimizer, Inundate):
        raise ValueError(f"ait_on: {name} has AIT's optimizer already")
    pace = replace(SHORT if step.iterations < 10_000 else LONG, schedule=learn.optimizer.schedule)
    taught: Step = replace(step, learn=replace(learn, loss=next(within(learn.loss, SoftLabel), SoftLabel(20.0)), optimizer=pace))
    return taught
