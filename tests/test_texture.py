"""TexQ's terms against loops: layered statistics, centres of classes, Laws' texture elements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model, Run
from dreamquant.losses.image import BatchNormDeviation
from dreamquant.losses.texture import ClassCentre, LayeredBatchNorm, TextureBalance, first_deep, texture_shares
from dreamquant.synthesis.pixels import OptimizePixels
from dreamquant.trace import Watch
from oracles import FACTS, inputs_of_batch_norm, record, twelve_images

BN = frozenset({"bn"})


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def test_where_deep_begins() -> None:
    assert [first_deep(layers) for layers in (20, 21, 52, 53, 1, 2)] == [9, 9, 25, 25, 0, 0]


@pytest.mark.parametrize("relative", [False, True])
def test_layered_statistics_by_hand(relative: bool, model: Model) -> None:
    images, terms = twelve_images(), []
    for number, (bn, x) in enumerate(inputs_of_batch_norm(model, images.pixels)):
        (mean, variance), weight = record(bn), 0.2 if number < 2 else 1.1  # 7 layers: (7 + 2) // 2 - 2 = 2
        batch_mean, batch_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        if relative:
            gap = ((batch_mean - mean) / variance.sqrt()).square().mean() + ((batch_variance / variance).sqrt() - 1).square().mean()
        else:
            gap = (batch_mean - mean).square().mean() + (batch_variance - variance).square().mean()
        terms.append(weight * gap.item())
    assert LayeredBatchNorm(relative=relative)(Watch(model, BN)(images)).item() == pytest.approx(np.mean(terms), rel=1e-3)


def statistics(model: Model, pixels: torch.Tensor, relative: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance over these images of what the deep layers are given, in their units or those of the record."""
    found = []
    for bn, x in inputs_of_batch_norm(model, pixels)[2:]:
        mean, variance = record(bn)
        x = (x - mean[:, None, None]) / variance.sqrt()[:, None, None] if relative else x
        found.append((x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)))
    return found


@pytest.mark.parametrize("relative", [False, True])
def test_centres_by_hand(relative: bool, model: Model) -> None:
    watch, live = Watch(model, BN), ClassCentre(relative).on(model)
    first = twelve_images(seed=8)[slice(0, 4)]  # classes 0 to 3
    images = replace(twelve_images(), labels=torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5, 6]))
    assert live(watch(images)).item() == 0
    live.remember(watch(first))
    terms = []
    for label in range(4):
        centre = statistics(model, first.pixels[label : label + 1], relative)
        mine = statistics(model, images.pixels[images.labels == label], relative)
        layers = [(m - c).square().mean() + (v - w).square().mean() for (m, v), (c, w) in zip(mine, centre, strict=True)]
        terms.append(torch.stack(layers).mean().item())
    value = live(watch(images)).item()
    assert value == pytest.approx(np.mean(terms), rel=2e-3)
    live.remember(watch(images))  # known classes keep their first centre
    again = live(watch(images[torch.arange(8)])).item()
    assert again == pytest.approx(value, rel=1e-4)
    assert live(watch(first)).item() == pytest.approx(0, abs=1e-6 * value), "the calibration images are their own centres"


def test_exemplars_are_one_of_each_class_and_fill_the_memory(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    part, kept = ClassCentre(True), list[Images]()
    live = part.on(model)
    monkeypatch.setattr(ClassCentre, "on", lambda self, model: live)
    real = OptimizePixels._exemplars

    def spied(self: OptimizePixels, model: Model, run: Run) -> list[Images]:
        kept.extend(found := real(self, model, run))
        return found

    monkeypatch.setattr(OptimizePixels, "_exemplars", spied)
    first = OptimizePixels(BatchNormDeviation(), count=3, batch=4, iterations=2)
    images = OptimizePixels(BatchNormDeviation() + part, count=12, batch=6, iterations=2, exemplars=first)(model, Run())
    labels = torch.cat([part.labels for part in kept])
    assert len(images) == 12 and sorted(labels.tolist()) == list(range(10))
    fresh = ClassCentre(True)
    monkeypatch.undo()
    alone = fresh.on(model)
    for exemplars in kept:
        alone.remember(Watch(model, BN)(exemplars))
    assert torch.equal(alone.centres, live.centres)  # type: ignore[attr-defined]


def test_texture_shares_by_loops() -> None:
    x = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    vectors = [np.array(v, float) / np.linalg.norm(v) for v in ((1, 4, 6, 4, 1), (-1, -2, 0, 2, 1), (-1, 0, 2, 0, -1), (1, -4, 6, -4, 1))]
    pairs = [(i, j) for i in range(4) for j in range(i, 4)][1:]
    for image, got in zip(x.numpy().mean(1), texture_shares(x), strict=True):
        padded = np.pad(image, 7, mode="edge")
        flat = np.array([[image[r, c] - padded[r : r + 15, c : c + 15].mean() for c in range(11)] for r in range(9)])
        padded = np.pad(flat, 2, mode="edge")

        def energy(down: np.ndarray, across: np.ndarray, padded: np.ndarray = padded) -> float:
            return float(np.mean([[abs(down @ padded[r : r + 5, c : c + 5] @ across) for c in range(11)] for r in range(9)]))

        raw = np.array([(energy(vectors[i], vectors[j]) + energy(vectors[j], vectors[i])) / 2 for i, j in pairs])
        assert np.allclose(got.numpy(), raw / raw.sum(), atol=1e-6)


def test_one_texture_element_may_not_have_it_all(model: Model) -> None:
    labels = torch.zeros(4, dtype=torch.long)
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    waves = torch.sin(torch.arange(32) * 0.5).expand(4, 3, 32, 32).clone().requires_grad_()  # level x edge and little else
    big = Model.from_module(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval(), (3, 32, 32), (0.0,) * 3, (1.0,) * 3
    )
    watch = Watch(big, frozenset())
    assert TextureBalance()(watch(Images(noise, labels))).item() == 0
    value = TextureBalance()(watch(Images(waves, labels)))
    assert value.item() > 0.005 and torch.autograd.grad(value, waves)[0].isfinite().all()
    flat = torch.zeros(4, 3, 32, 32)
    assert TextureBalance()(watch(Images(flat, labels))).item() == 0
