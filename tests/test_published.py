"""Parity switches: what published code does otherwise, off by default, and all together by `as_published`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import test_recipes
from dreamquant import Model, Run, recipes
from dreamquant.choose import chosen, modifiers
from dreamquant.dream import Dream
from dreamquant.losses.image import ClassTarget
from dreamquant.losses.student import FeatureMatch, SoftLabel
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import Int, scheme_of
from dreamquant.quant.student import convert
from dreamquant.recipe import changed
from dreamquant.steps.calibrate import CalibrateOnGenerator
from dreamquant.steps.cotrain import CoTrain, DreamOnly
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNorm, Multiplied
from dreamquant.synthesis.superposed import Superposed
from oracles import FACTS, twelve_images

COMPOUNDED = {2: 5.263, 5: 104, 21: 3945, 50: 489, 100: 3.6, 140: 1.04, 200: 1.00007}  # methods/synthesis.md, RC-1
FORM = Int(8, "tensor", False)


@pytest.mark.parametrize("compounding", [False, True])
def test_the_published_running_mean_explodes_first(compounding: bool) -> None:
    observer = RunningMinMax(0.9, compounding).observer()
    by_hand = torch.zeros((), dtype=torch.float64)
    for count in range(1, 201):
        observer.see(torch.tensor([0.0, 1.0]))
        by_hand = (0.9 * by_hand + 0.1) / (1 - 0.9**count)
        expected = by_hand.item() if compounding else 1.0
        assert observer.range(FORM)[1].item() == pytest.approx(expected, rel=1e-4)
        if compounding and count in COMPOUNDED:
            assert observer.range(FORM)[1].item() == pytest.approx(COMPOUNDED[count], rel=0.01)


@pytest.mark.parametrize("compounding", [False, True])
def test_a_student_that_tracks_has_the_same_mean(compounding: bool, tiny_net: nn.Module) -> None:
    model, x = Model.from_module(tiny_net, *FACTS), twelve_images().pixels
    student = convert(model, scheme_of("w8a8"))
    first, scales = next(q for q in student.activation_quantizers().values() if q.live), []
    with student.tracking(0.9, compounding), torch.no_grad():
        for _ in range(5):
            student.net(x)
            scales.append(first.scale.item())
    for count in (2, 5):
        assert scales[count - 1] / scales[0] == pytest.approx(COMPOUNDED[count] if compounding else 1.0, rel=0.01)


def test_ranges_of_a_generator_that_is_thrown_away(tiny_net: nn.Module) -> None:
    """They are those of a second student that looks at the same images, and nothing else changes or is kept."""
    model = Model.from_module(tiny_net, *FACTS)
    student, again = (convert(model, scheme_of("w4a4")) for _ in range(2))
    weights = {name: layer.weight.clone() for name, layer in student.layers().items()}
    step = CalibrateOnGenerator(Dream(ClassTarget(), Multiplied(width=8), batch=8), iterations=3, zero_images=True)
    seen: list[torch.Tensor] = []
    handle = student.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    run = Run()
    step(student, model, twelve_images(), run)
    handle.remove()
    assert [len(x) for x in seen] == [1, 8] * 3 and not seen[0].any() and not torch.equal(seen[1], seen[3])
    with again.tracking(0.9, compounding=True), torch.no_grad():
        for x in seen:
            again.net(x)
    for mine, theirs in zip(student.activation_quantizers().values(), again.activation_quantizers().values(), strict=True):
        assert torch.equal(mine.scale, theirs.scale) and torch.equal(mine.zero, theirs.zero)
    assert all(torch.equal(layer.weight, weights[name]) for name, layer in student.layers().items())
    assert run.kept.images is None and not run.kept.generator


def test_the_class_norm_of_mixtures_is_divided_once_more() -> None:
    torch.manual_seed(0)
    norm, x = ClassNorm(4, 3, averaged=True), torch.randn(6, 3, 5, 5)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    slots, weights = torch.randint(4, (6, 2)), torch.randn(6, 2).softmax(1)
    mixture = Condition(torch.zeros(6, 4).scatter_add_(1, slots, weights), {"slots": slots, "weights": weights})
    scale, shift = ((t[slots] * weights[..., None]).mean(1)[:, :, None, None] for t in (norm.scale, norm.shift))
    assert torch.allclose(norm(x, mixture), F.batch_norm(x, None, None, training=True) * scale + shift, atol=1e-5)
    single = Condition(slots[:, 0])
    plain = ClassNorm(4, 3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x, single), plain(x, single)), "only mixtures are"


def test_slots_of_mixtures_are_standardised_over_the_batch(tiny_net: nn.Module) -> None:
    model = Model.from_module(tiny_net, *FACTS)
    torch.manual_seed(0)
    live: Any = Superposed(width=8, over_batch=True).on(model)
    slots, noise = torch.randint(10, (6, 2)), torch.randn(6, live.table.shape[1])
    weights = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    shares = torch.zeros(6, 10).scatter_add_(1, slots, weights)
    got = live.superposed(Condition(shares, {"slots": slots, "weights": weights}, noise))
    rows = live.table[slots[:, 0]] + noise
    assert torch.allclose(got, (rows - rows.mean()) / (rows.var(unbiased=False) + 1e-5).sqrt(), atol=1e-5)
    alone = live.superposed(Condition(slots[:, 0], noise=noise))
    assert torch.allclose(alone, F.layer_norm(rows, rows.shape[1:]), atol=1e-6), "images of one class are each by themselves"


@pytest.mark.parametrize("name", recipes.names())
def test_as_published_switches_on_what_there_is(name: str) -> None:
    host = recipes.find(name)(effort="paper")
    try:
        recipe = chosen(f"as_published:{name}", "w4a4", "paper", None)
    except ValueError as error:
        assert str(error).startswith(f"as_published: no part of {name}")
        assert not any(isinstance(step, CoTrain) for step in host.steps)
        return
    assert recipe.name == f"as_published:{name}" and len(recipe.steps) == len(host.steps)
    assert eval(repr(recipe), {**test_recipes.PARTS}) == recipe
    tracked = [s for step in recipe.steps if isinstance(step, CoTrain) for s in step.stages if isinstance(s, DreamOnly) and s.track]
    ranges = [step for step in recipe.steps if isinstance(step, CalibrateOnGenerator)]
    assert tracked or ranges
    assert all(stage.compounding for stage in tracked) and all(step.compounding for step in ranges)
    assert all(step.zero_images == (name == "synq") for step in ranges)


def test_as_published_names_what_it_is_from() -> None:
    assert "as_published" in modifiers()
    taken = {name for name in recipes.names() if _takes(name)}
    assert {"intraq", "hast", "synq", "gdfq", "qimera", "ait", "adasg", "adadfq"} <= taken and not taken & {"genie", "rtn", "squant"}
    qimera = repr(chosen("as_published:qimera", "w4a4", "paper", None))
    assert "over_batch=True" in qimera and "averaged=True" in qimera
    with pytest.raises(ValueError, match="no part of genie"):
        recipes.as_published(recipes.find("genie")(effort="paper"))


def _takes(name: str) -> bool:
    try:
        return bool(recipes.as_published(recipes.find(name)(effort="paper")))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["synq", "qimera"])
def test_as_published_runs(name: str, tiny_net: nn.Module) -> None:
    recipe = test_recipes.tiny(chosen(f"as_published:{name}", "w4a4", "paper", None))
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert recipe(Model.from_module(tiny_net, *FACTS))(x).isfinite().all()


def test_weights_of_terms_are_set_like_fields() -> None:
    recipe: Any = changed(recipes.find("hast")(), "steps.FineTune.learn.loss.FeatureMatch.weight=0")
    assert (0.0, FeatureMatch()) in recipe.steps[-1].learn.loss.terms and (20.0, SoftLabel(20.0)) in recipe.steps[-1].learn.loss.terms
    with pytest.raises(ValueError, match="weight wants float like"):
        changed(recipe, "steps.FineTune.learn.loss.SoftLabel.weight=much")


def test_a_published_genotype_is_chosen_by_name() -> None:
    recipe = changed(recipes.find("arc")(), "steps.CoTrain.dream.generator.genotype=resnet50")
    assert "genotype='resnet50'" in repr(recipe)
    with pytest.raises(ValueError, match=r"no published genotype 'resnet51'; there are resnet20_cifar10, .*resnet50"):
        changed(recipe, "steps.CoTrain.dream.generator.genotype=resnet51")
    with pytest.raises(ValueError, match="takes a part .* a recipe file can"):
        changed(recipes.find("intraq")(effort="paper"), "steps.FineTune.learn.weights=LearnSteps")


def test_modifiers_are_there_in_python_too() -> None:
    recipe = recipes.synq_on(recipes.distill(bits="w3a3"))
    assert recipe == chosen("synq_on:distill", "w3a3", "fast", None)
