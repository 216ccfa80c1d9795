"""What holds for every recipe whose generator learns, by discovery: SynQ's ideas go onto it, and AIT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn

import test_recipes
from dreamquant import Model, recipes
from dreamquant.choose import chosen
from dreamquant.losses.image import BatchNormMatch
from dreamquant.losses.student import HardLabel, SaliencyMatch, SoftLabel
from dreamquant.optimizers import Adam, Decay
from dreamquant.recipe import dreams
from dreamquant.recipes.synq import FILTER
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Together
from oracles import FACTS
from test_synq_on import terms_of

COTRAINED = [name for name in recipes.names() if any(isinstance(step, CoTrain) for step in recipes.find(name)().steps)]


def test_they_are_found() -> None:
    assert {"gdfq", "qimera", "adasg", "adadfq", "ait", "arc"} <= set(COTRAINED)


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", COTRAINED)
def test_synq_changes_the_student_and_not_the_dream(name: str, effort: str) -> None:
    recipe, host = chosen(f"synq_on:{name}", "w3a3", effort, None), recipes.find(name)(effort=effort)
    step: Any = next(step for step in recipe.steps if isinstance(step, CoTrain))
    terms = terms_of(recipe)
    assert dreams(recipe) == dreams(host) and len(recipe.steps) == len(host.steps)
    assert step.learn.transforms[-1] == FILTER
    calibrations = [stage.step for stage in step.stages if isinstance(getattr(stage, "step", None), Calibrate)]
    assert all(calibrate.transforms == (FILTER,) for calibrate in calibrations) and bool(calibrations) == (effort == "fast")
    assert terms["SaliencyMatch"] == (50, SaliencyMatch()) and terms["HardLabel"][1] == HardLabel(0.7)
    assert terms.keys() - {"SaliencyMatch", "HardLabel"}, "the host's loss is still there"
    assert eval(repr(recipe), test_recipes.PARTS) == recipe


@pytest.mark.parametrize("name", COTRAINED)
def test_synq_runs_on_it(name: str, tiny_net: nn.Module) -> None:
    recipe = test_recipes.tiny(chosen(f"synq_on:{name}", "w3a3", "fast", None))
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert recipe(Model.from_module(tiny_net, *FACTS))(x).isfinite().all()


def test_ait_on_synq_and_synq_on_ait_differ() -> None:
    outer = terms_of(chosen("synq_on:ait_on:qimera", "w4a4", "fast", None))
    inner: Any = chosen("ait_on:synq_on:qimera", "w4a4", "fast", None).steps[-1]
    assert "SaliencyMatch" in outer and inner.learn.loss == SoftLabel(20.0), "the modifier that is named first acts last"


@pytest.mark.parametrize("name", COTRAINED)
def test_the_published_pace_is_gdfqs(name: str) -> None:
    """methods/generators.md, 0.6: 400 epochs of 200 updates, of which the student sits out four; CIFAR's batches and rates."""
    step: Any = next(step for step in recipes.find(name)(effort="paper").steps if isinstance(step, CoTrain))
    alone, together = ([stage.iterations for stage in step.stages if isinstance(stage, kind)] for kind in (DreamOnly, Together))
    assert sum(alone) == 800 and together == [79_200]
    assert step.dream.batch == (16 if name in ("adasg", "adadfq") else 200)
    assert step.dream.optimizer == Adam(1e-3, (0.5, 0.999), Decay((0.25, 0.5, 0.75)))
    assert step.learn.optimizer.lr == 1e-4 and step.learn.optimizer.schedule == Decay((0.25, 0.5, 0.75))
    wanted = BatchNormMatch()
    weights = [weight for weight, term in step.dream.loss.terms if term == wanted]
    assert weights == [1.0 if name in ("adasg", "adadfq") else 0.1]


@pytest.mark.parametrize("name", COTRAINED)
def test_the_published_pace_runs(name: str, tiny_net: nn.Module) -> None:
    recipe = test_recipes.tiny(recipes.find(name)(bits="w4a4", effort="paper"))
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert recipe(Model.from_module(tiny_net, *FACTS))(x).isfinite().all()
