"""AdaSG's and AdaDFQ's losses against formulas written down apart, and whom they change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model, recipes
from dreamquant.losses.adaptability import AdaptabilityMargin, AgreementTarget, DisagreementEntropy, DisagreementTarget, structure
from dreamquant.losses.student import SoftLabel
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.recipe import Recipe
from dreamquant.steps.cotrain import CoTrain
from dreamquant.trace import Pair, Trace, Watch
from oracles import FACTS


def met(teacher: Tensor, student: Tensor, labels: Tensor | None = None) -> Pair:
    """A pair of traces with these logits."""
    model = Model.from_module(nn.Sequential(nn.Flatten(), nn.Linear(3, teacher.shape[1])).eval(), (3, 1, 1), (0.5,) * 3, (0.25,) * 3)
    images = Images(torch.zeros(len(teacher), 3, 1, 1), torch.zeros(len(teacher), dtype=torch.long) if labels is None else labels)
    rest = ({}, {}, Watch(model, frozenset()), lambda: None)
    return Pair(images, teacher, *rest, student=Trace(images, student, *rest))


def logits(classes: int = 10, size: float = 1.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, classes), torch.randn(6, classes) * size


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_margin_is_the_published_one(classes: int) -> None:
    teacher, student = logits(classes)
    p = F.softmax(teacher - student, 1)
    h = -(p * p.log()).sum(1)
    normed = (h - h.min()) / (math.log(classes) - h.min())
    expected = sum(max(0.3 - float(v), 0) + max(float(v) - 0.8, 0) for v in normed) / 6
    assert float(AdaptabilityMargin(0.3, 0.8)(met(teacher, student))) == pytest.approx(expected, abs=1e-5)


def test_equal_entropies_are_at_the_lower_end() -> None:
    """Item 9: h' is 0 for every image; agreement up to a constant is no reason for a division by zero."""
    teacher, student = logits()
    difference = torch.randn(10)
    both = met(student + torch.stack([difference.roll(k) for k in range(6)]), student)
    assert float(AdaptabilityMargin(0.3, 0.8)(both)) == pytest.approx(0.3, abs=1e-5)
    student = (teacher + 2.0).requires_grad_()
    loss = AdaptabilityMargin(0.3, 0.8)(met(teacher, student))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.3, abs=0.05) and student.grad is not None and student.grad.isfinite().all()


def test_the_smallest_entropy_has_its_gradient() -> None:
    """The published code does not detach it: compare with finite differences, in which it moves."""
    teacher, student = (v.double() for v in logits())
    loss = AdaptabilityMargin(0.3, 0.8)
    teacher.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(met(teacher, student)), teacher)
    moved, eps = torch.randn_like(teacher), 1e-5
    with torch.no_grad():
        slope = (loss(met(teacher + eps * moved, student)) - loss(met(teacher - eps * moved, student))) / (2 * eps)
    assert float((gradient * moved).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_the_smallest_entropy_can_stand_still() -> None:
    """The image of least entropy defines h' and has one of its own, 0: with that fixed, the rest do not pull at it."""
    teacher, student = (v.double() for v in logits())
    teacher.requires_grad_()
    least = int(structure((teacher - student).detach()).argmax())
    free, fixed = (AdaptabilityMargin(0.3, 0.8, fixed_least=flag)(met(teacher, student)) for flag in (False, True))
    assert float(free.detach()) == float(fixed.detach())
    pulls = [torch.autograd.grad(loss, teacher)[0] for loss in (free, fixed)]
    alone = torch.zeros_like(pulls[1])
    spread = structure(teacher - student)
    alone[least] = torch.autograd.grad(spread[least] / (6 * (spread[least].detach() + 1e-6)), teacher)[0][least]
    assert torch.allclose(pulls[1][least], alone[least], atol=1e-9)
    assert not torch.allclose(pulls[0][least], pulls[1][least])


def test_targets_are_of_difference_and_sum() -> None:
    (teacher, student), labels = logits(), torch.arange(6)
    for loss, sign in ((DisagreementTarget(), -1), (AgreementTarget(), 1)):
        p = F.softmax(teacher + sign * student, 1)
        expected = -sum(math.log(float(p[i, i])) for i in range(6)) / 6
        assert float(loss(met(teacher, student, labels))) == pytest.approx(expected, rel=1e-5)


def test_the_students_loss_is_the_negative_entropy_and_nearly_distillation() -> None:
    """Item 4: same gradient as the published negative entropy; parallel to KL at T = 20; half the variance of d."""
    teacher, student = logits()
    student.requires_grad_()
    both = met(teacher, student)
    p = F.softmax((teacher - student) / 20, 1)
    published = 400 * (p * p.log()).sum(1).mean()
    ours, soft = DisagreementEntropy(20.0)(both), SoftLabel(20.0)(both)
    g1, g2, g3 = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (published, ours, soft))
    assert float(ours.detach()) == pytest.approx(float(published.detach()) + 400 * math.log(10), abs=1e-3)
    assert torch.allclose(g1, g2, atol=1e-5)
    assert float(F.cosine_similarity(g2.flatten(), g3.flatten(), 0)) > 0.99
    assert float(ours.detach()) == pytest.approx(float((teacher - student).var(1, unbiased=False).mean() / 2), rel=0.05)
    assert float(DisagreementEntropy(5.0)(met(teacher, teacher + 3))) == pytest.approx(0.0, abs=1e-4)


def cotrain(recipe: Recipe) -> CoTrain:
    step = recipe.steps[-1]
    assert isinstance(step, CoTrain)
    return step


@pytest.mark.parametrize("name", ["adasg", "adadfq"])
@pytest.mark.parametrize("effort", ["fast", "paper"])
def test_the_game_changes_the_generator_through_the_student_and_leaves_it_alone(name: str, effort: str, tiny_net: nn.Module) -> None:
    """Item 9 and the routing table: every term but BatchNorm's sends its gradient through both networks to the generator."""
    model = Model.from_module(tiny_net, *FACTS)
    part = cotrain(recipes.find(name)(bits="w3a3", effort=effort)).dream
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with student.observing(RunningMinMax()), torch.no_grad():
        student.net(torch.randn(8, 3, 16, 16))
    with student.training():
        before = {key: value.clone() for key, value in student.net.named_parameters()}
        dreamer = part.on(model, student)
        assert {"AdaptabilityMargin", "DisagreementTarget", "AgreementTarget"} <= set(dreamer.objective.names)
        # the least and the greatest adaptability are 0 and 1 whatever the pixels: some of the others must be outside the band
        images = part.images(model, dreamer.generator, part.conditioner(model, 64))
        assert dreamer.student is not None
        pair = Pair(**vars(dreamer.teacher(images)), student=dreamer.student(images))
        bias = dict(student.net.named_parameters())["linear.bias"]
        for _, term in dreamer.objective.terms[:3]:
            gradient, to_student = torch.autograd.grad(term(pair), [images.pixels, bias], retain_graph=True)
            assert gradient.abs().sum() > 0 and to_student.abs().sum() > 0, "it reads both"
        dreamer.step(0.0)
        assert all(torch.equal(value, before[key]) or value.isnan().any() for key, value in student.net.named_parameters())
        assert all(p.grad is None for p in student.net.parameters())


def test_they_are_one_game_with_other_numbers() -> None:
    numbers = {}
    for name in ("adasg", "adadfq"):
        step = cotrain(recipes.find(name)(effort="paper"))
        assert step.learn.loss == DisagreementEntropy(20.0) and step.dream.batch == 16
        terms = step.dream.loss.terms  # type: ignore[attr-defined]
        (low,) = (term.low for _, term in terms if isinstance(term, AdaptabilityMargin))
        numbers[name] = {type(term).__name__: weight for weight, term in terms} | {"low": low}
    shared = {"AdaptabilityMargin": 1, "AgreementTarget": 0.1, "BatchNormMatch": 1}
    assert numbers["adadfq"] == shared | {"DisagreementTarget": 0.2, "low": 0.1}
    assert numbers["adasg"] == shared | {"DisagreementTarget": 0.1, "low": 0.3}
