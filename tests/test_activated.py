"""Losses on what activations pass on, against angles and cosines by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model
from dreamquant.losses.activated import ClassMeanAngle, ClassMeanLikeness
from dreamquant.losses.algebra import Objective
from dreamquant.trace import Trace, Watch


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def seen_by(model: Model, x: Tensor, labels: Tensor, needs: frozenset[str]) -> Trace:
    return Watch(model, needs)(Images(x, labels))


def test_likeness_is_the_cosine_with_the_moving_average(model: Model) -> None:
    loss = Objective(ClassMeanLikeness(0.9), model)
    x, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 1, 4])
    batches = [seen_by(model, x * scale, labels, loss.needs) for scale in (1.0, 2.0)]
    last = [seen.at["passed"][-1].mean((2, 3)) for seen in batches]
    assert float(loss(batches[0])) == 0.0, "no class has a mean yet"
    for seen in batches:
        loss.take_in(seen)
    means = {c: 0.9 * last[0][labels == c].mean(0) + 0.1 * last[1][labels == c].mean(0) for c in (0, 1, 4)}
    fresh = labels.clone()
    fresh[0] = 7  # a class without a mean does not count
    seen = seen_by(model, x * 3, fresh, loss.needs)
    third = seen.at["passed"][-1].mean((2, 3))
    cosines = [torch.dot(third[i], means[int(fresh[i])]) / (third[i].norm() * means[int(fresh[i])].norm()) for i in range(1, 6)]
    assert float(loss(seen)) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    shares = F.one_hot(fresh, 10).float() * 0.6 + 0.04
    assert torch.allclose(loss(seen_by(model, x * 3, shares, loss.needs)), loss(seen)), "mixed images count for their largest class"
    other = Objective(ClassMeanLikeness(0.9), model)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(seen), loss(seen)), "the averages are saved"


def test_angles_are_taken_from_the_average_and_a_share_of_the_batch(model: Model) -> None:
    loss = Objective(ClassMeanAngle(0.9, 0.3), model)
    x, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 1, 4])
    first, second = (seen_by(model, x * scale, labels, loss.needs) for scale in (1.0, 2.0))
    before, now = (seen.at["passed"][-1].mean((2, 3)).double() for seen in (first, second))

    def apart(u: Tensor, v: Tensor) -> Tensor:
        """In right angles, by half angles: no arc cosine."""
        u, v = u / u.norm(), v / v.norm()
        return 2 * torch.atan2((u - v).norm(), (u + v).norm()) / (math.pi / 2)

    def by_hand(usual: dict[int, Tensor], last: Tensor) -> float:
        return float(torch.stack([1 - apart(f, usual[int(c)]) for f, c in zip(last, labels, strict=True)]).mean())

    own = [{c: last[labels == c].mean(0) for c in (0, 1, 4)} for last in (before, now)]
    assert float(loss(first)) == pytest.approx(by_hand(own[0], before), abs=5e-3), "without an average the batch alone"
    loss.take_in(first)
    both = {c: 0.7 * own[0][c] / own[0][c].norm() + 0.3 * own[1][c] / own[1][c].norm() for c in (0, 1, 4)}
    assert float(loss(second)) == pytest.approx(by_hand(both, now), abs=5e-3)
    other = Objective(ClassMeanAngle(0.9, 0.3), model)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(second), loss(second)), "the average is saved"


def test_the_pull_apart_does_not_fade_where_images_are_alike(model: Model) -> None:
    """Images ten times nearer to each other have a tenth of the cosine's gradient, and all of the angle's."""
    images, labels = torch.randn(1, 3, 16, 16).repeat(6, 1, 1, 1), torch.zeros(6, dtype=torch.long)
    away = torch.randn(6, 3, 16, 16)

    def pull(part: ClassMeanLikeness | ClassMeanAngle, distance: float) -> float:
        loss = Objective(part, model)
        x = (images + distance * away).requires_grad_()
        seen = seen_by(model, x, labels, loss.needs)
        loss.take_in(seen)
        return float(torch.autograd.grad(loss(seen), x)[0].norm())

    faded = {kind: pull(kind(), 0.03) / pull(kind(), 0.3) for kind in (ClassMeanLikeness, ClassMeanAngle)}
    assert faded[ClassMeanAngle] > 0.7 and faded[ClassMeanLikeness] < 0.2, faded
