"""Gradients: as autograd gives them, and on a GPU the same whether they are computed anew or replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model, Run, gradients, recipes
from dreamquant.gradients import Gradients, Tensors, recordable
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.optimizers import Sgd
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import Student, convert
from dreamquant.steps.cotrain import CoTrain
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.pixels import NoImages, OptimizePixels
from dreamquant.synthesis.transforms import Contrast, Flip, Grain, Shift
from oracles import FACTS

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing can be recorded")


def quadratic(weight: Tensor) -> Callable[[Tensors], tuple[Tensor, Tensors]]:
    """sum((w - x)^2) + 2 sum(w), of which the gradient is 2 (w - x) + 2."""

    def loss(inputs: Tensors) -> tuple[Tensor, Tensors]:
        near, small = (weight - inputs["x"]).square().sum(), 2 * weight.sum()
        return near + small, {"near": near.detach(), "small": small.detach()}

    return loss


def check(device: str, calls: int) -> None:
    weight = torch.arange(3.0, device=device).requires_grad_()
    take = Gradients(quadratic(weight), [weight])
    for number in range(calls):
        x = torch.full((3,), float(number), device=device)
        values = take({"x": x})
        assert weight.grad is not None and torch.equal(weight.grad, 2 * (weight.detach() - x) + 2)
        assert values["near"] == (weight.detach() - x).square().sum() and values["small"] == 2 * weight.detach().sum()
        with torch.no_grad():
            weight.add_(1)


def test_gradients_are_those_of_the_loss() -> None:
    check("cpu", 3)


def test_what_nothing_depends_on_has_no_gradient() -> None:
    weight, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    other.grad = torch.ones(2)
    Gradients(lambda inputs: (weight.sum(), {}), [weight, other])({})
    assert weight.grad is not None and (other.grad is None or not other.grad.any())


@GPU
def test_a_replay_reads_new_inputs_and_parameters() -> None:
    check("cuda", 5)


@GPU
def test_every_shape_is_recorded_apart() -> None:
    weight = torch.ones(1, device="cuda", requires_grad=True)
    take = Gradients(quadratic(weight), [weight])
    for size in (2, 3, 2, 3):
        take({"x": torch.zeros(size, device="cuda")})
        assert weight.grad is not None and weight.grad.item() == 2 * size + 2
    assert len(take.records) == 2 and all(take.records.values())


@GPU
@pytest.mark.parametrize(
    ("loss", "possible"),
    [
        (lambda w: w.square().sum(), True),
        (lambda w: (w * torch.rand_like(w)).sum(), True),  # the GPU's own generator is replayed with new numbers
        (lambda w: w.sum() * float(w.detach().max()), False),
        (lambda w: (w * torch.rand(len(w)).to(w.device)).sum(), False),
        (lambda w: w.sum() * torch.rand(()).item(), False),
    ],
    ids=["plain", "draws-there", "waits", "draws-and-copies", "draws"],
)
def test_what_cannot_be_recorded_is_noticed(loss: Callable[[Tensor], Tensor], possible: bool) -> None:
    weight = torch.ones(1000, device="cuda", requires_grad=True)
    take = Gradients(lambda inputs: (loss(weight), {}), [weight])
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert recordable(take.anew, {}, weight.device) == possible
    assert all(torch.equal(a, b) for a, b in zip(states, (torch.get_rng_state(), torch.cuda.get_rng_state()), strict=True))
    assert torch.cuda.get_sync_debug_mode() == 0
    take({})
    assert weight.grad is not None and weight.grad.isfinite().all()


@GPU
def test_a_replay_draws_what_the_seed_says() -> None:
    weight = torch.ones(1000, device="cuda", requires_grad=True)

    def drawn(take: Gradients) -> list[Tensor]:
        found = []
        for seed in (5, 6, 5):
            torch.manual_seed(seed)
            take({})
            assert weight.grad is not None
            found.append(weight.grad.clone())
        return found

    first, second, third = drawn(Gradients(lambda inputs: ((weight * torch.rand_like(weight)).sum(), {}), [weight]))
    torch.manual_seed(6)
    assert torch.equal(first, third) and not torch.equal(first, second) and torch.equal(second, torch.rand_like(weight))


def allowing(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records are made where they can be, or not at all; the answers given, while they are asked for."""
    answers: list[bool] = []

    def asked(*all: object) -> bool:
        answers.append(recorded and recordable(*all))  # type: ignore[arg-type]
        return answers[-1]

    monkeypatch.setattr(gradients, "recordable", asked)
    return answers


def outcome(step: Callable[[Student, Model, Images, Run], None], net: nn.Module, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The student's state after a step on the GPU, in one row; records are allowed or not."""
    answers = allowing(recorded, monkeypatch)
    model = Model.from_module(net, *FACTS).to("cuda")
    torch.manual_seed(1)
    images = Images(torch.randn(32, 3, 16, 16), torch.arange(32) % 10).to("cuda")
    student = convert(model, scheme_of("w4a4", None))
    step(student, model, images, Run(3, device="cuda"))
    assert answers and all(answer == recorded for answer in answers)
    return torch.cat([x.detach().double().flatten().cpu() for x in student.net.state_dict().values() if isinstance(x, Tensor)])


@GPU
@pytest.mark.parametrize("name", ["distill", "synq", "hast", "plf", "dream"])
def test_steps_come_out_alike(name: str, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a recipe in turn, a few updates of those that learn: replayed as computed anew."""
    few = [replace(step, iterations=8, batch=16) if hasattr(step, "iterations") else step for step in recipes.find(name)().steps]

    def all_of_them(student: Student, model: Model, images: Images, run: Run) -> None:
        for step in few:
            step(student, model, images, run)  # type: ignore[operator]

    replayed, anew = (outcome(all_of_them, tiny_net, recorded, monkeypatch) for recorded in (True, False))
    assert torch.allclose(replayed, anew, rtol=1e-3, atol=1e-4)


def taught(name: str, effort: str, net: nn.Module, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """A student's weights before and after a co-training of a few updates on small batches, on the GPU; whatever can be recorded is."""
    answers = allowing(recorded, monkeypatch)
    model = Model.from_module(net, *FACTS).to("cuda")
    student = convert(model, scheme_of("w4a4", None))
    before = weights(student)
    for step in recipes.find(name)(effort=effort).steps:
        if isinstance(step, CoTrain):
            stages = tuple(replace(stage, iterations=3) if hasattr(stage, "iterations") else stage for stage in step.stages)
            plain = replace(step.dream, batch=16, optimizer=Sgd(0.1)), replace(step.learn, optimizer=Sgd(1e-3))
            step = replace(step, dream=plain[0], learn=plain[1], stages=stages, count=16)
        step(student, model, NoImages()(model, Run()), Run(3, device="cuda"))
    assert answers and all(answer == recorded for answer in answers)
    return before, weights(student)


def weights(student: Student) -> Tensor:
    """All of them in one row."""
    return torch.cat([layer.weight.detach().flatten() for layer in student.layers().values()])


@GPU
@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", ["gdfq", "arc", "qimera", "ait", "adadfq", "acq", "enhancing_dfq"])
def test_cotrainings_come_out_alike(name: str, effort: str, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generator and student replayed as computed anew, whatever a batch is made of.

    A GPU adds in any order, so a little of the way differs always; of Adam's a lot, which makes whole steps of gradients that
    are nearly zero.
    """
    (start, replayed), (_, anew) = (taught(name, effort, tiny_net, recorded, monkeypatch) for recorded in (True, False))
    moved = (anew - start).abs().mean()
    assert moved > 0 and (replayed - anew).abs().mean() < 0.2 * moved


def test_a_student_whose_ranges_are_measured_is_not_still(tiny_net: nn.Module) -> None:
    """What reads it then changes it, and must not be rehearsed."""
    student = convert(Model.from_module(tiny_net, *FACTS), scheme_of("w4a4", None))
    assert student.still
    with student.tracking(0.9):
        assert not student.still
    with student.training():
        assert student.still
        with student.tracking(0.9):
            assert not student.still
    assert student.still


@GPU
def test_images_come_out_alike(tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = (Flip(), Shift(2), Contrast(), Grain())
    dream, found = OptimizePixels(BatchNormDeviation() + 0.1 * ClassTarget(), 16, 8, iterations=6, transforms=moved), []
    answers: list[bool] = []
    for recorded in (True, False):
        given = allowing(recorded, monkeypatch)
        found.append(dream(Model.from_module(tiny_net, *FACTS).to("cuda"), Run(3, device="cuda")).pixels)
        answers += given
    assert answers == [True, True, False, False]
    assert (found[0] - found[1]).abs().mean() < 1e-3


@GPU
def test_a_student_whose_loss_draws_learns_all_the_same(tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """TexQ mixes images by shares that the CPU draws."""
    answers = allowing(True, monkeypatch)
    *ready, tune = recipes.texq().steps
    assert isinstance(tune, FineTune)
    model = Model.from_module(tiny_net, *FACTS).to("cuda")
    student = convert(model, scheme_of("w4a4", None))
    before = {name: layer.weight.detach().clone() for name, layer in student.layers().items()}
    images = Images(torch.randn(32, 3, 16, 16), torch.arange(32) % 10).to("cuda")
    for step in (*ready, replace(tune, iterations=4, batch=16)):
        step(student, model, images, Run(3, device="cuda"))
    assert answers == [False]
    assert all(not torch.equal(layer.weight, before[name]) for name, layer in student.layers().items())
