"""RIS's term with every disturbance made by hand; the disturbances themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model
from dreamquant.losses.image import features, grey_noise
from dreamquant.losses.robust import Robustness
from dreamquant.synthesis.transforms import Contrast, Cutout, Grain, OneOf
from dreamquant.trace import Watch
from oracles import FACTS, twelve_images

NEEDS = frozenset({"features"})


@dataclass(frozen=True)
class Same:
    """No disturbance."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Upside:
    """Upside down: a disturbance that draws nothing."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(2)


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def by_hand(model: Model, x: Tensor, shaky: Model) -> tuple[Tensor, Tensor]:
    """Inconsistency of features and predictions, (N,) each, added over x upside down and the shaky network."""
    kept = Watch(model, NEEDS)(Images(x, torch.zeros(len(x), dtype=torch.long)))
    apart, differ = torch.zeros(len(x)), torch.zeros(len(x))
    for other, pixels in ((model, x.flip(2)), (shaky, x)):
        seen = Watch(other, NEEDS)(Images(pixels, torch.zeros(len(x), dtype=torch.long)))
        for i in range(len(x)):
            a, b = features(kept)[i], features(seen)[i]
            apart[i] += 1 - a @ b / (a.norm() * b.norm())
            differ[i] += (kept.logits[i].softmax(0) - seen.logits[i].softmax(0)).abs().sum()
    return apart.detach(), differ.detach()


def shaken(model: Model, strength: float) -> Model:
    """A copy with noise on its weights, in the order in which the loss draws it: by name."""
    net = copy.deepcopy(model.net)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    with torch.no_grad():
        for name in sorted(layers):
            weight = layers[name].weight
            weight += strength * weight.std(correction=0) * torch.randn(weight.shape)
    return Model(net, model.shape, model.mean, model.std, model.classes)


@pytest.mark.parametrize("allowed", [0.0, 0.9])
def test_robustness_by_hand(allowed: float, model: Model) -> None:
    images, part = twelve_images(), Robustness(Upside(), 0.3, allowed, samples=6)
    torch.manual_seed(1)
    live = part.on(model)
    torch.manual_seed(2)
    value = live(Watch(model, NEEDS)(images)).item()
    torch.manual_seed(1)
    noise = grey_noise(model, 6)
    limits = [found.mean() for found in by_hand(model, noise, shaken(model, 0.3))]
    torch.manual_seed(2)
    mine = by_hand(model, images.pixels, shaken(model, 0.3))
    terms = [(found - allowed * limit).clamp_min(0) for found, limit in zip(mine, limits, strict=True)]
    assert value == pytest.approx(sum(terms).mean().item(), rel=1e-3) and value > 0  # type: ignore[union-attr]


def test_without_disturbance_nothing_changes(model: Model) -> None:
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    pixels = twelve_images().pixels.requires_grad_()
    seen = Watch(model, NEEDS)(Images(pixels, torch.arange(12) % 10))
    assert Robustness(Same(), 0.0, 0.0).on(model)(seen).item() == pytest.approx(0, abs=1e-5)
    value = Robustness(Grain(0.5), 0.1, 0.0).on(model)(seen)
    gradient = torch.autograd.grad(value, pixels)[0]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items()), "the teacher itself never shakes"


def test_only_the_reference_is_saved(model: Model) -> None:
    live = Robustness(Same()).on(model)
    assert isinstance(live, nn.Module) and list(live.state_dict()) == ["noise"]


# --- the disturbances


def test_one_of_several_is_drawn_for_the_batch() -> None:
    torch.manual_seed(0)
    x = torch.arange(2.0 * 3 * 4 * 4).view(2, 3, 4, 4)
    drawn = [OneOf((Same(), Upside()))(x) for _ in range(20)]
    same = [torch.equal(y, x) for y in drawn]
    assert 0 < sum(same) < 20 and all(torch.equal(y, x) or torch.equal(y, x.flip(2)) for y in drawn)


def test_grain_and_contrast_mean_the_same_at_any_scale() -> None:
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for part in (Grain(0.1), Contrast(0.1)):
        torch.manual_seed(0)
        small = part(x)
        torch.manual_seed(0)
        assert torch.allclose(part(255 * x) / 255, small, atol=1e-4)
    torch.manual_seed(0)
    assert (Grain(0.1)(x) - x).std().item() == pytest.approx(0.1, rel=0.02)


def test_contrast_is_linear_and_bounded() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, 8, 8)
    y = Contrast(0.2)(x)
    slope = ((x - x.mean((1, 2, 3), keepdim=True)) * y).sum((1, 2, 3)) / (x - x.mean((1, 2, 3), keepdim=True)).square().sum((1, 2, 3))
    lift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert 0.8 <= slope.min() < 0.9 and 1.1 < slope.max() <= 1.2 and lift.abs().max() <= 0.21


@pytest.mark.parametrize("shape", [(20, 3, 8, 12), (5, 1, 1, 3)])
def test_cutout_covers_a_rectangle_with_the_mean(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape)
    y = Cutout(0.5)(x)
    changed = y != x
    height, width = max(1, round(shape[2] / 2)), max(1, round(shape[3] / 2))
    assert torch.equal(y[changed], x.mean((2, 3), keepdim=True).expand_as(x)[changed])
    for image in changed.all(1):
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        assert (len(rows), len(columns)) == (height, width)
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
