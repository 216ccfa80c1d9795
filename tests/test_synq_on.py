"""SynQ's ideas on other recipes: what changes, what is refused, and that the result runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn as nn

import test_recipes  # where every part is imported
from dreamquant import Model, Run, recipes
from dreamquant.choose import chosen, modifiers
from dreamquant.losses.algebra import Sum
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import FeatureMatch, HardLabel, OnHarderImages, SaliencyMatch, SoftLabel
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.recipe import Recipe, changed
from dreamquant.recipes.synq import FILTER, synq_on
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.pixels import NoImages
from dreamquant.synthesis.transforms import LowPass
from oracles import FACTS, twelve_images

DREAMING = [name for name in recipes.names() if name not in ("rtn", "synq") and recipes.find(name)().synthesis != NoImages()]


def terms_of(recipe: Recipe) -> dict[str, tuple[float, Any]]:
    loss = next(step.learn.loss for step in recipe.steps if hasattr(step, "learn"))
    return {type(term).__name__: (weight, term) for weight, term in loss.terms}


def last_transform(part: Any) -> Any:
    return part.transforms[-1] if part.transforms else None


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", DREAMING)
def test_every_recipe_with_images_takes_the_ideas(name: str, effort: str) -> None:
    recipe = chosen(f"synq_on:{name}", "w3a3", effort, None)
    assert recipe.name == f"synq_on:{name}" and recipe.synthesis == recipes.find(name)(effort=effort).synthesis
    learning = [step for step in recipe.steps if hasattr(step, "learn")]
    assert learning and all(last_transform(step.learn) == FILTER for step in learning)
    assert all(last_transform(step) == FILTER for step in recipe.steps if isinstance(step, Calibrate))
    terms = terms_of(recipe)
    assert terms["SaliencyMatch"] == (50, SaliencyMatch()) and terms["HardLabel"][1] == HardLabel(0.7)


def test_a_fine_tune_is_appended_where_nothing_learns() -> None:
    """It learns all grids, which are set before it, by the host or else first of all."""
    for name, sets in (("zeroq", False), ("dream", True)):
        before, after = recipes.find(name)(), synq_on(recipes.find(name)())
        grids = [place for place, step in enumerate(after.steps) if isinstance(step, SetWeightRanges)]
        assert len(after.steps) == len(before.steps) + (1 if sets else 2) and len(grids) == 1 and (sets or grids == [0])
        tune = after.steps[-1]
        assert isinstance(tune, FineTune) and tune.learn.weights == tune.learn.activations == LearnSteps()
        assert "SoftLabel" in terms_of(after)


def test_hard_labels_keep_their_weight_and_become_rare() -> None:
    assert terms_of(recipes.find("intraq")())["HardLabel"] == (1, HardLabel())
    assert terms_of(synq_on(recipes.find("intraq")()))["HardLabel"] == (1, HardLabel(0.7))
    assert terms_of(synq_on(recipes.find("distill")()))["HardLabel"] == (0.5, HardLabel(0.7))


def test_hard_labels_within_other_losses_too() -> None:
    recipe = recipes.find("hast")()
    *ranges, tune = recipe.steps
    assert isinstance(tune, FineTune)
    inner = 3 * SoftLabel() + 2 * HardLabel()
    tune = replace(tune, learn=replace(tune.learn, loss=HardLabel(0.2) + OnHarderImages(inner)))
    terms = terms_of(synq_on(replace(recipe, steps=(*ranges, tune))))
    assert terms["HardLabel"] == (1, HardLabel(0.2)), "what is stricter stays"
    assert terms["OnHarderImages"][1].loss == 3 * SoftLabel() + 2 * HardLabel(0.7)
    single = synq_on(replace(recipe, steps=(replace(tune, learn=replace(tune.learn, loss=SoftLabel())),)))
    assert isinstance(single.steps[0].learn.loss, Sum)  # type: ignore[attr-defined]


def test_refusals_are_one_line() -> None:
    empty = replace(recipes.find("distill")(), name="empty", synthesis=NoImages())
    for recipe, message in (
        (empty, "empty dreams none"),
        (recipes.find("rtn")(), "rtn dreams none"),
        (recipes.find("synq")(), "synq aligns saliency already"),
        (synq_on(recipes.find("hast")()), "synq_on:hast aligns saliency already"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            synq_on(recipe)
        assert "\n" not in str(error.value)


def test_it_is_discovered_and_takes_settings() -> None:
    assert "synq_on" in modifiers()
    recipe = chosen("synq_on:zeroq", "w4a4", "fast", None, ["steps.FineTune.learn.transforms.LowPass.cutoff=0.2"])
    assert last_transform(recipe.steps[-1].learn) == LowPass(0.2)  # type: ignore[attr-defined]


def test_its_record_reads_back() -> None:
    recipe = synq_on(recipes.find("texq")(effort="paper"))
    assert eval(repr(recipe), test_recipes.PARTS) == recipe


@pytest.mark.parametrize("name", ["zeroq", "texq"])
def test_it_runs(name: str, tiny_net: nn.Module) -> None:
    recipe = synq_on(recipes.find(name)(bits="w3a3"))
    for setting in ("synthesis.count=12", "synthesis.batch=12", "synthesis.iterations=1", "steps.FineTune.iterations=2"):
        recipe = changed(recipe, setting)
    recipe = changed(recipe, "synthesis.exemplars.iterations=1") if name == "texq" else recipe
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert recipe(Model.from_module(tiny_net, *FACTS))(x).isfinite().all()


def test_hast_is_synq_without_its_ideas() -> None:
    for effort in ("fast", "paper"):
        hast, synq = (recipes.find(name)(effort=effort) for name in ("hast", "synq"))
        if effort == "fast":
            assert hast.synthesis == synq.synthesis
        mine, theirs = terms_of(hast), terms_of(synq)
        assert set(theirs) - set(mine) == {"HardLabel", "SaliencyMatch"}
        assert mine["SoftLabel"] == theirs["SoftLabel"] and mine["FeatureMatch"] == theirs["FeatureMatch"]


def test_synq_as_published_has_its_scripts_class_loss_and_twins_that_are_not_aligned() -> None:
    recipe = recipes.find("synq")(effort="paper")
    assert {type(t): w for w, t in recipe.synthesis.loss.terms} == {BatchNormMatch: 1, ClassTarget: 0.1}  # type: ignore[attr-defined]
    twins = terms_of(recipe)["OnHarderImages"][1]
    assert twins.loss == 20 * SoftLabel(20.0) + 0.5 * HardLabel(0.7) and twins.climbs == twins.loss + 1000 * FeatureMatch()


def test_zero_images_clip_ranges_as_in_the_published_code(tiny_net: nn.Module) -> None:
    """SQ-1: in the steady state a range is 0.526 of the images' and 0.474 of the zero image's."""
    model, images = Model.from_module(tiny_net, *FACTS), twelve_images()
    many = replace(images, pixels=images.pixels.repeat(20, 1, 1, 1), labels=images.labels.repeat(20))

    def scales(pixels: torch.Tensor, zero_images: bool) -> torch.Tensor:
        student = convert(model, scheme_of("w4a4"))
        shown = replace(many, pixels=pixels)
        Calibrate(RunningMinMax(0.9), count=240, batch=12, zero_images=zero_images)(student, model, shown, Run())
        return torch.stack([q.scale for q in student.activation_quantizers().values() if q.live])

    share = 0.9 * (1 - 0.9) / (1 - 0.9**2)  # the zero image comes before the batch: its weight is momentum times the batch's
    assert share == pytest.approx(0.474, abs=5e-4) and math.isclose(share, 0.9 / 1.9)
    images_alone, zero_alone = scales(many.pixels, False), scales(torch.zeros_like(many.pixels), False)
    assert torch.allclose(scales(many.pixels, True), (1 - share) * images_alone + share * zero_alone, rtol=2e-2)
