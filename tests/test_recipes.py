"""Contracts that hold for every recipe, by discovery."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn as nn

import dreamquant
from dreamquant import Model, recipes
from dreamquant.learn import *  # noqa: F403 (reprs of recipes are read back below)
from dreamquant.losses.image import *  # noqa: F403
from dreamquant.losses.student import *  # noqa: F403
from dreamquant.optimizers import *  # noqa: F403
from dreamquant.quant.clips import *  # noqa: F403
from dreamquant.quant.quantizer import *  # noqa: F403
from dreamquant.quant.ranges import *  # noqa: F403
from dreamquant.quant.scheme import *  # noqa: F403
from dreamquant.recipe import Recipe, changed, reads_batch_norm
from dreamquant.steps.calibrate import *  # noqa: F403
from dreamquant.steps.correct import *  # noqa: F403
from dreamquant.steps.finetune import *  # noqa: F403
from dreamquant.steps.moments import *  # noqa: F403
from dreamquant.steps.rounding import *  # noqa: F403
from dreamquant.synthesis.pixels import *  # noqa: F403
from dreamquant.synthesis.transforms import *  # noqa: F403

NAMES = recipes.names()


def tiny(recipe: Recipe) -> Recipe:
    settings = ["synthesis.count=16", "synthesis.batch=8", "synthesis.iterations=2"] if hasattr(recipe.synthesis, "iterations") else []
    settings += ["steps.FineTune.iterations=2"] if any(type(step).__name__ == "FineTune" for step in recipe.steps) else []
    for setting in settings:
        recipe = changed(recipe, setting)
    return recipe


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_values(name: str, effort: str) -> None:
    recipe = recipes.find(name)(bits="w3a3", effort=effort)
    assert recipe == recipes.find(name)(bits="w3a3", effort=effort) and recipe.name == name
    assert eval(repr(recipe)) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_documented_and_take_the_same_arguments(name: str) -> None:
    function = recipes.find(name)
    module = inspect.getmodule(function)
    assert module and module.__doc__ and module.__doc__.startswith(f"{name}: ") and function.__doc__
    assert list(inspect.signature(function).parameters)[:3] == ["bits", "effort", "ends"]
    assert getattr(dreamquant.recipes, name) is function


@pytest.mark.parametrize("bits", ["w3a3", "w4a32"])
@pytest.mark.parametrize("name", NAMES)
def test_recipes_run_and_leave_the_model_alone(name: str, bits: str, tiny_net: nn.Module) -> None:
    before = {key: value.clone() for key, value in tiny_net.state_dict().items()}
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    frozen = {key: value.clone() for key, value in model.net.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.net.modules())
    quantized = tiny(recipes.find(name)(bits=bits))(model, seed=0)
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert quantized(x).shape == (5, 10) and quantized(x).isfinite().all()
    assert all(torch.equal(value, tiny_net.state_dict()[key]) for key, value in before.items())
    assert all(torch.equal(value, model.net.state_dict()[key]) for key, value in frozen.items())
    assert not any(p.requires_grad for p in model.net.parameters()) and hooks == 0


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean synq"):
        recipes.find("synk")


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_batch_norm_is_told_what_works(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = Model.from_module(net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    recipe = tiny(recipes.find(name)(bits="w4a4"))
    if not reads_batch_norm(recipe):
        assert recipe(model)(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    else:
        with pytest.raises(ValueError, match=r"no BatchNorm.*rtn"):
            recipe(model)
