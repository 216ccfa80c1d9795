"""PLF's labels by loops, along the training; mixtures of images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model, Run
from dreamquant.learn import Learn
from dreamquant.losses.algebra import Loss
from dreamquant.losses.pseudo import ReliableLabel, TwoLabels, entropy
from dreamquant.losses.student import HardLabel, OnMixedImages, SoftLabel
from dreamquant.optimizers import Sgd
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.finetune import FineTune
from dreamquant.trace import Pair
from oracles import FACTS, pair_of, twelve_images


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


@pytest.fixture
def seen(model: Model) -> Pair:
    """A pair whose teacher is sure of some images and not of others."""
    found = pair_of(model, twelve_images(), frozenset())
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 6, 12)[:, None]
    return replace(found, logits=logits)


def entropies(logits: torch.Tensor) -> list[float]:
    rows = [[math.exp(z) for z in row] for row in logits.tolist()]
    shares = [[e / sum(row) for e in row] for row in rows]
    return [-sum(p * math.log(p) for p in row) / math.log(len(row)) for row in shares]


def test_entropy_is_a_share_of_the_largest() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert entropy(logits).tolist() == pytest.approx(entropies(logits), rel=1e-5)
    assert entropy(torch.zeros(1, 3)).item() == pytest.approx(1) and entropy(torch.tensor([[1000.0, 0, 0]])).item() == pytest.approx(0)


@pytest.mark.parametrize("done", [0.0, 0.4, 1.0])
def test_labels_by_loops(done: float, seen: Pair) -> None:
    seen = replace(seen, done=done)
    limit = 0.7 - done * (0.7 - 0.3)
    logp = seen.student.logits.log_softmax(1).tolist()
    sure, torn = [], []
    for row, mine, h in zip(seen.logits.tolist(), logp, entropies(seen.logits), strict=True):
        first, second = sorted(range(10), key=lambda c: -row[c])[:2]
        a, b = math.exp(row[first]), math.exp(row[second])
        if h <= limit:
            sure.append(-mine[first])
        else:
            torn.append(-(a * mine[first] + b * mine[second]) / (a + b))
    assert sure and torn
    assert ReliableLabel(0.7, 0.3)(seen).item() == pytest.approx(sum(sure) / len(sure), rel=1e-5)
    assert TwoLabels(0.7, 0.3)(seen).item() == pytest.approx(sum(torn) / len(torn), rel=1e-5)


def test_an_empty_subset_is_zero(seen: Pair) -> None:
    assert ReliableLabel(-1.0, -1.0)(seen).item() == 0 and TwoLabels(2.0, 2.0)(seen).item() == 0


def test_the_label_of_the_dream_is_not_used(seen: Pair) -> None:
    other = replace(seen, images=replace(seen.images, labels=(seen.images.labels + 1) % 10))
    for loss in (ReliableLabel(), TwoLabels()):
        assert loss(seen).item() == loss(other).item()


def test_losses_know_how_far_the_training_is(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def call(self: Loss[Pair], pair: Pair) -> torch.Tensor:
        told.append((pair.done, pair.again(pair.images.pixels.detach()).done))
        return (pair.student.logits - pair.logits).square().mean()

    monkeypatch.setattr(ReliableLabel, "__call__", call)
    images, run = twelve_images(), Run()
    student = convert(model, scheme_of("w4a4"))
    Calibrate()(student, model, images, run)
    FineTune(Learn(ReliableLabel(), Sgd(1e-3)), iterations=4, batch=6)(student, model, images, run)
    assert told == [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75)]


def test_mixtures_by_hand(model: Model) -> None:
    found = pair_of(model, twelve_images(), frozenset())
    torch.manual_seed(4)
    value = OnMixedImages(SoftLabel(3.0), 0.7)(found).item()
    torch.manual_seed(4)
    share = torch.distributions.Beta(0.7, 0.7).sample((12, 1, 1, 1))
    order, x = torch.randperm(12), found.images.pixels.detach()
    mixed = torch.stack([share[i] * x[i] + (1 - share[i]) * x[order[i]] for i in range(12)])
    teacher, student = model(mixed), found.student.watch.source(mixed)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    by_hand = (p * (p.log() - q.log())).sum(1).mean() * 9
    assert value == pytest.approx(by_hand.item(), rel=2e-3)


def test_mixtures_reach_the_student_and_only_it(model: Model) -> None:
    found = pair_of(model, twelve_images(), frozenset())
    weights = [layer.weight for layer in found.student.watch.source.modules() if isinstance(layer, nn.Conv2d)]
    gradients = torch.autograd.grad(OnMixedImages(SoftLabel())(found), weights)
    assert all(g.abs().sum() > 0 for g in gradients)


def test_labels_of_shares_are_learned_from(model: Model) -> None:
    """RIS's soft labels go through the losses that read labels."""
    images = twelve_images()
    shares = torch.full((12, 10), 0.02)
    shares[torch.arange(12), images.labels] = 0.82
    found = pair_of(model, Images(images.pixels, shares), frozenset())
    by_hand = -(shares * found.student.logits.log_softmax(1)).sum(1).mean()
    assert HardLabel()(found).item() == pytest.approx(by_hand.item(), rel=1e-5)
