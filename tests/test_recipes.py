"""Contracts that hold for every recipe, by discovery."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

import dreamquant
from dreamquant import Images, Model, Run, load_model, recipes
from dreamquant.choose import chosen
from dreamquant.quant.student import convert
from dreamquant.recipe import Recipe, changed, reads_batch_norm
from dreamquant.recipes import _fast
from dreamquant.steps.finetune import FineTune
from dreamquant.steps.notice import distance
from oracles import FACTS


def parts() -> dict[str, Any]:
    """Every dataclass of the package by its name: what the repr of a recipe is read back with."""
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(dreamquant.__path__, "dreamquant.") if "cli" not in m.name]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }


PARTS = parts()
NAMES = recipes.names()


def tiny(recipe: Recipe) -> Recipe:
    settings = ["synthesis.count=16", "synthesis.batch=8", "synthesis.iterations=2"] if hasattr(recipe.synthesis, "iterations") else []
    settings += ["synthesis.exemplars.iterations=2"] if getattr(recipe.synthesis, "exemplars", None) else []
    learning = {type(step).__name__ for step in recipe.steps} & {"FineTune", "Reconstruct"}
    settings += [f"steps.{name}.iterations=2" for name in sorted(learning)]
    if "CoTrain" in {type(step).__name__ for step in recipe.steps}:
        settings += ["steps.CoTrain.dream.batch=8", "steps.CoTrain.count=16"]
        stages = next(step.stages for step in recipe.steps if type(step).__name__ == "CoTrain")  # type: ignore[attr-defined]
        sizes = {"iterations": 2, "count": 16}
        settings += [
            f"steps.CoTrain.stages.{i}.{key}={n}" for i, stage in enumerate(stages) for key, n in sizes.items() if hasattr(stage, key)
        ]
    for setting in settings:
        recipe = changed(recipe, setting)
    return recipe


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_values(name: str, effort: str) -> None:
    recipe = recipes.find(name)(bits="w3a3", effort=effort)
    assert recipe == recipes.find(name)(bits="w3a3", effort=effort) and recipe.name == name
    assert eval(repr(recipe), PARTS) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_documented_and_take_the_same_arguments(name: str) -> None:
    function = recipes.find(name)
    module = inspect.getmodule(function)
    assert module and module.__doc__ and module.__doc__.startswith(f"{name}: ") and function.__doc__
    assert list(inspect.signature(function).parameters)[:3] == ["bits", "effort", "ends"]
    assert getattr(dreamquant.recipes, name) is function


@pytest.mark.parametrize(("bits", "effort"), [("w3a3", "fast"), ("w4a32", "fast"), ("w3a3", "paper")])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_run_and_leave_the_model_alone(name: str, bits: str, effort: str, tiny_net: nn.Module) -> None:
    before = {key: value.clone() for key, value in tiny_net.state_dict().items()}
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    frozen = {key: value.clone() for key, value in model.net.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.net.modules())
    quantized = tiny(recipes.find(name)(bits=bits, effort=effort))(model, seed=0)
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert quantized(x).shape == (5, 10) and quantized(x).isfinite().all()
    assert all(torch.equal(value, tiny_net.state_dict()[key]) for key, value in before.items())
    assert all(torch.equal(value, model.net.state_dict()[key]) for key, value in frozen.items())
    assert not any(p.requires_grad for p in model.net.parameters()) and hooks == 0


@pytest.mark.parametrize("name", ["rtn", "dfq", "aciq", "distill", "texq", "genie", "enhancing_dfq", "adadfq"])  # of every kind one
def test_recipes_run_where_sums_read_eight_bits(name: str, tiny_net: nn.Module) -> None:
    recipe = changed(tiny(recipes.find(name)(bits="w3a3")), "scheme.residual=8")
    quantized = recipe(Model.from_module(tiny_net, *FACTS), seed=0)
    assert {op.numbers["bits"] for op in quantized.program if op.kind == "grid" and op.name.endswith("_residual")} == {8}
    assert quantized(torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))).isfinite().all()


@pytest.fixture(scope="module")
def digits() -> tuple[Model, Images]:
    """A trained network, and images of it that are good enough to learn from."""
    model = load_model("zoo:resnet-digits")
    return model, replace(_fast.IMAGES, count=64, batch=64, iterations=40)(model, Run())


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", [name for name in NAMES if any(isinstance(step, FineTune) for step in recipes.find(name)().steps)])
def test_no_student_is_lost_in_its_first_updates(name: str, effort: str, digits: tuple[Model, Images]) -> None:
    """At the published rates and 3 bits some are, in three updates, where nothing bounds them."""
    model, images = digits
    recipe = recipes.find(name)(bits="w3a3", effort=effort)
    student = convert(model, recipe.scheme.on(model, images, Run()))
    *ready, tune = recipe.steps
    assert isinstance(tune, FineTune)
    for step in ready:
        step(student, model, images, Run())
    before = distance(student, model, images)
    replace(tune, iterations=12, batch=32)(student, model, images, Run())
    assert distance(student, model, images) < before


@pytest.mark.parametrize("name", NAMES)
def test_no_other_effort_is_taken_for_paper(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: effort 'fastt'; choose 'fast' or 'paper'"):
        recipes.find(name)(effort="fastt")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_functions_are_found_again_by_their_names(name: str) -> None:
    function = recipes.find(name)
    assert pickle.loads(pickle.dumps(function)) is function
    with pytest.raises(TypeError, match=rf"{name}\(\)"):
        function(bitz=3)  # type: ignore[call-arg]


def test_another_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="placement 'deployed': choose 'paper' or 'deploy'"):
        changed(recipes.rtn(), "scheme.placement=deployed")


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean synq"):
        recipes.find("synk")


@pytest.mark.parametrize("name", [*NAMES, "without_batch_norm:gdfq"])
def test_a_network_without_batch_norm_is_told_what_works(name: str) -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = Model.from_module(nn.Sequential(*layers), (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    recipe = tiny(chosen(name, "w4a4", "fast", None))
    if reads_batch_norm(recipe):
        with pytest.raises(ValueError, match=r"no BatchNorm.*rtn.*, and with images without_batch_norm:gdfq"):
            recipe(model)
    else:
        assert recipe(model)(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_a_file_may_hold_parts_of_its_own(tmp_path: Path) -> None:
    """With postponed annotations dataclasses look their module up; a file called like a library hides nothing."""
    file = tmp_path / "torch.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "import torch\n"
        "@dataclass(frozen=True)\n"
        "class Part:\n"
        "    values: tuple[int, ...] = field(default=(len(torch.__version__),))\n"
        "def make(bits='w4a4'):\n"
        "    from dreamquant.recipes.rtn import rtn\n"
        "    assert Part().values[0] > 0\n"
        "    return rtn(bits)\n"
    )
    assert chosen(f"{file}:make", "w3a3", "fast", None) == recipes.find("rtn")("w3a3")
    assert sys.modules["torch"].__file__ != str(file)
