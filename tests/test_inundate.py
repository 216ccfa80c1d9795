"""AIT: how far a step is enlarged, what momentum remembers, what the modifier changes and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import test_recipes
from dreamquant import Model, Run, recipes
from dreamquant.choose import chosen, modifiers
from dreamquant.inundate import Inundate, factor
from dreamquant.learn import Learn
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Constant, Decay, pace
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import Student, convert
from dreamquant.recipe import Recipe
from dreamquant.recipes.ait import ait_on
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.finetune import FineTune
from oracles import FACTS, twelve_images


def fixed(x: Tensor) -> Tensor:
    """Codes on a grid of tenths that does not move."""
    return torch.round(x * 10)


def share(a: float, weight: Tensor, step: Tensor) -> float:
    return float((fixed(weight - a * step) != fixed(weight)).float().mean())


@pytest.mark.parametrize("flips", [1e-3, 1e-2, 0.2])
def test_a_step_is_enlarged_until_the_share_changes(flips: float) -> None:
    """Item 6: within a factor of two of the share, by the share itself and not by what the search believes."""
    torch.manual_seed(0)
    weight, step = torch.randn(20_000), 1e-9 * torch.randn(20_000)
    assert share(1.0, weight, step) < flips
    a = factor(fixed, weight, step, flips, 2.0**40)
    assert flips / 2 < share(a, weight, step) < 2 * flips


def test_a_step_that_is_large_enough_stays() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1000)
    assert factor(fixed, weight, torch.full((1000,), 0.05), 1e-2, 2.0**20) == 1.0


def test_no_search_goes_on_for_ever() -> None:
    weight = torch.full((100,), 0.12)
    assert factor(fixed, weight, torch.zeros(100), 1e-2, 2.0**20) == 1.0
    assert 2**19 <= factor(lambda x: torch.zeros_like(x), weight, torch.ones(100), 1e-2, 2.0**20) <= 2**20


def test_by_hand() -> None:
    """One weight at 0.12 changes its code when it falls to 0.05: after 0.07 / 0.01 = 7 steps. 1, 2, 4, 8, then 6, 7, 6.5, 6.75, 6.875."""
    a = factor(fixed, torch.tensor([0.12]), torch.tensor([0.01]), 0.5, 2.0**20)
    assert a in (6.875, 6.9375) or a == pytest.approx(7, abs=0.26)
    tried: list[float] = []

    def watched(x: Tensor) -> Tensor:
        tried.append(round(float((0.12 - x) / 0.01), 3))
        return torch.round(x * 10 - 1e-4)

    factor(watched, torch.tensor([0.12]), torch.tensor([0.01]), 0.5, 2.0**20)
    assert tried == [0, 1, 1, 2, 4, 8, 6, 7, 6.5, 6.75, 6.875]


def calibrated(tiny_net: nn.Module) -> tuple[Model, Student]:
    model = Model.from_module(tiny_net, *FACTS)
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with student.observing(LpSearch()), torch.no_grad():
        student.net(twelve_images().pixels)
    return model, student


def codes_of(student: Student) -> dict[str, Tensor]:
    return {name: layer.quantizer.codes(layer.weight).detach().clone() for name, layer in student.layers().items()}


def test_a_students_codes_change_by_the_share(tiny_net: nn.Module) -> None:
    model, student = calibrated(tiny_net)
    learn = Learn(SoftLabel(20.0), Inundate(1e-6, flips=0.05, gentle=0, schedule=Constant()))
    with student.training(learn.activations):
        learner, before = learn.on(student, model), codes_of(student)
        bias = dict(student.net.named_parameters())["linear.bias"].detach().clone()
        learner.step(twelve_images(), 0.0)
    shares = {name: float((code != before[name]).float().mean()) for name, code in codes_of(student).items()}
    large = [value for name, value in shares.items() if before[name].numel() >= 500]
    # grids follow their weights, so that codes change in jumps
    assert len(large) >= 3 and 0.02 < sum(large) / len(large) < 0.1 and all(0 < value < 0.2 for value in large), shares
    assert torch.allclose(dict(student.net.named_parameters())["linear.bias"], bias, atol=1e-7), "what has no codes is not enlarged"


def test_momentum_remembers_the_plain_gradient_and_others_move_as_by_sgd(tiny_net: nn.Module) -> None:
    ends, buffers, moves = [], [], []
    for inundated in (True, False):
        torch.manual_seed(1)
        weight, other = nn.Parameter(torch.randn(50, 4)), nn.Parameter(torch.randn(5))
        start = weight.detach().clone()
        groups = [{"params": [weight, other]}]
        part = Inundate(1e-5, flips=0.3, schedule=Decay())
        optimizer = part.on(groups, {id(weight): fixed} if inundated else {})
        torch.manual_seed(2)
        for _ in range(3):
            weight.grad, other.grad = torch.randn(50, 4), torch.randn(5)
            pace(optimizer, part, 0.0)
            optimizer.step()
        buffers.append(optimizer.state[weight]["momentum_buffer"])
        ends.append(other.detach())
        moves.append(float((weight - start).detach().norm()))
    assert torch.allclose(*buffers) and torch.equal(*ends)
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(5))], 1e-5, 0.9, nesterov=True)
    assert moves[0] > 100 * moves[1] > 0 and plain.defaults["weight_decay"] == 0


@pytest.mark.parametrize("foreach", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_without_flips_it_is_plain_descent(foreach: bool) -> None:
    mine, plain = (nn.Parameter(torch.linspace(-1, 1, 60).view(12, 5)) for _ in range(2))
    optimizer = Inundate(0.1, flips=0.0).on([{"params": [mine]}], {id(mine): fixed})
    optimizer.param_groups[0]["foreach"] = foreach
    other = torch.optim.SGD([plain], 0.1, 0.9, nesterov=True, foreach=False)
    for seed in range(3):
        mine.grad = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
        plain.grad = mine.grad.clone()
        optimizer.step()
        other.step()
    assert torch.allclose(mine, plain, atol=1e-6)


def test_the_share_falls_with_the_rate_and_is_gentle_at_first() -> None:
    def moved(done: float, updates: int, gentle: int = 2) -> float:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.rand(100_000) * 10)
        part = Inundate(1e-6, flips=1e-2, gentle=gentle, schedule=Decay((0.5,), 0.1))
        optimizer = part.on([{"params": [weight]}], {id(weight): fixed})
        for _ in range(updates):
            before = weight.detach().clone()
            weight.grad = torch.ones_like(weight)
            pace(optimizer, part, done)
            optimizer.step()
        return float((fixed(weight) != fixed(before)).float().mean())

    assert moved(0.0, 3) == pytest.approx(1e-2, rel=0.1) and moved(0.9, 3) == pytest.approx(1e-3, rel=0.2)
    # 128 * 1.9 * 1e-6 is 0.24 % of a step of the grid
    assert moved(0.0, 1) == pytest.approx(128 * 1.9e-6 / 0.1, rel=0.3)


def test_a_killed_fine_tune_continues_to_the_same_bits(tiny_net: nn.Module, tmp_path: Path) -> None:
    images, learn = twelve_images(), Learn(SoftLabel(20.0), Inundate(1e-6, flips=1e-2, gentle=3))
    ends = []
    for stop in (None, 4):
        model, student = calibrated(tiny_net)
        run = Run(1, tmp_path / str(stop), save_every=0.0)
        if stop:
            with student.training(learn.activations):
                learner = learn.on(student, model)
                for number in run.loop("fine-tuning", 7, learner=learner):
                    if number == stop:
                        break
                    learner.step(images.batch(number, 6, run.seed), number / 7)
            model, student = calibrated(tiny_net)
            run = Run(1, tmp_path / str(stop), save_every=0.0)
        FineTune(learn, 7, 6)(student, model, images, run)
        ends.append(student.state_dict())
    both = [{key: value.nan_to_num() for key, value in end.items() if isinstance(value, Tensor)} for end in ends]
    assert all(torch.equal(value, both[1][key]) for key, value in both[0].items())


HOSTS = [
    (name, effort)
    for name in recipes.names()
    for effort in ("fast", "paper")
    if name != "ait" and any(hasattr(step, "learn") for step in recipes.find(name)(effort=effort).steps)
]


@pytest.mark.parametrize(("name", "effort"), HOSTS)
def test_any_student_that_learns_takes_it(name: str, effort: str) -> None:
    host, recipe = recipes.find(name)(effort=effort), chosen(f"ait_on:{name}", "w4a4", effort, None)
    assert recipe.name == f"ait_on:{name}" and recipe.synthesis == host.synthesis and len(recipe.steps) == len(host.steps)
    for before, after in zip(host.steps, recipe.steps, strict=True):
        if not hasattr(before, "learn"):
            assert before == after
            continue
        mine: Any = after
        assert isinstance(mine.learn.loss, SoftLabel) and isinstance(mine.learn.optimizer, Inundate)
        assert mine.learn.optimizer.schedule == before.learn.optimizer.schedule
        assert replace(mine.learn, loss=before.learn.loss, optimizer=before.learn.optimizer) == before.learn
    assert eval(repr(recipe), test_recipes.PARTS) == recipe


def test_the_published_settings() -> None:
    step: Any = recipes.find("ait")(effort="paper").steps[-1]
    assert step.learn.loss == SoftLabel(20.0, per_class=True)
    assert step.learn.optimizer == Inundate(1e-4, 0.9, 1e-3, 200, 2.0**20, Decay((0.25, 0.5, 0.75), 0.1))


def test_refusals_are_one_line() -> None:
    assert "ait_on" in modifiers()
    nothing = [name for name in recipes.names() if not any(hasattr(step, "learn") for step in recipes.find(name)().steps)]
    assert {"rtn", "squant", "genie"} <= set(nothing)
    refused: list[tuple[Recipe, str]] = [(recipes.find(name)(), f"in {name} none learns") for name in nothing]
    for recipe, message in [*refused, (recipes.find("ait")(), "ait has AIT's optimizer already")]:
        with pytest.raises(ValueError, match=message) as error:
            ait_on(recipe)
        assert "\n" not in str(error.value)


def test_it_runs_on_qimera(tiny_net: nn.Module) -> None:
    recipe = test_recipes.tiny(chosen("ait_on:qimera", "w3a3", "fast", None))
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert not any(isinstance(step, Calibrate) for step in recipe.steps)
    assert recipe(Model.from_module(tiny_net, *FACTS))(x).isfinite().all()
