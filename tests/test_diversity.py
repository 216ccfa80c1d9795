"""DSG's slack, IntraQ's spread and targets, soft labels: against loops; memories that last across batches and kills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from dreamquant import Images, Model, Run, recipes
from dreamquant.losses.diversity import BatchNormSlack, ClassSpread, InputNormal, NeighbourNorm, PixelNorm, SoftTarget
from dreamquant.losses.image import BatchNormDeviation, BatchNormPerImage, feature_width, features, grey_noise
from dreamquant.recipe import Recipe, changed
from dreamquant.run import Loop
from dreamquant.synthesis.labels import Balanced, SharedClasses, SoftTargets
from dreamquant.synthesis.pixels import OptimizePixels
from dreamquant.trace import Watch
from faults import Killed, killing_after
from oracles import FACTS, inputs_of_batch_norm, record, twelve_images


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def gaps(model: Model, pixels: torch.Tensor, relative: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Absolute gaps of means and deviations for every layer, (N, C) each, from what hooks saw."""
    found = []
    for bn, x in inputs_of_batch_norm(model, pixels):
        mean, variance = record(bn)
        unit = variance.sqrt() if relative else torch.ones(())
        found.append((((x.mean((2, 3)) - mean) / unit).abs(), ((x.std((2, 3)) - variance.sqrt()) / unit).abs()))
    return found


@pytest.mark.parametrize("relative", [False, True])
def test_slack_by_loops(relative: bool, model: Model) -> None:
    images = twelve_images()
    torch.manual_seed(5)
    live = BatchNormSlack(0.6, 1.0, relative, samples=70).on(model)
    torch.manual_seed(5)
    noise = torch.cat([grey_noise(model, 64), grey_noise(model, 6)])
    total = 0.0
    mine, measured = gaps(model, images.pixels, relative), gaps(model, noise, relative)
    for layer, (both, of_noise) in enumerate(zip(mine, measured, strict=True)):
        for gap, reference in zip(both, of_noise, strict=True):
            slack = np.quantile(reference.numpy(), 0.6)
            for number, row in enumerate(gap.tolist()):
                beyond = [max(value - slack, 0.0) ** 2 for value in row]
                weight = 2 if number % len(mine) == layer else 1
                total += weight * (sum(beyond) / len(beyond) / len(mine) if relative else sum(beyond)) / len(gap)
    assert live(Watch(model, frozenset({"bn"}))(images)).item() == pytest.approx(total, rel=2e-3)


def test_without_slack_and_stress_it_is_bns_a(model: Model) -> None:
    seen = Watch(model, frozenset({"bn"}))(twelve_images())
    live = BatchNormSlack(0.0, 0.0, samples=4).on(model)
    live.slack.zero_()  # type: ignore[attr-defined]
    assert live(seen).item() == pytest.approx(BatchNormPerImage(with_input=False)(seen).item(), rel=1e-5)
    assert InputNormal()(seen).item() + live(seen).item() == pytest.approx(BatchNormPerImage()(seen).item(), rel=1e-5)


def test_noise_is_within_its_own_slack(model: Model) -> None:
    watch, noise = Watch(model, frozenset({"bn"})), Images(grey_noise(model, 40), torch.zeros(40, dtype=torch.long))
    assert BatchNormSlack(1.0, samples=200).on(model)(watch(noise)) < 0.1 * BatchNormSlack(0.1, samples=200).on(model)(watch(noise))


def test_norms_of_the_image_prior(model: Model) -> None:
    images = twelve_images()
    x, seen = images.pixels.numpy(), Watch(model, frozenset())(images)
    shifts = (x[:, :, :, 1:] - x[:, :, :, :-1], x[:, :, 1:] - x[:, :, :-1], x[:, :, 1:, 1:] - x[:, :, :-1, :-1])
    total = sum(np.sqrt((d**2).sum()) for d in (*shifts, x[:, :, 1:, :-1] - x[:, :, :-1, 1:]))
    assert NeighbourNorm()(seen).item() == pytest.approx(total, rel=1e-5)
    assert PixelNorm()(seen).item() == pytest.approx(np.mean([np.sqrt((one**2).sum()) for one in x]), rel=1e-5)


def test_soft_targets(model: Model) -> None:
    images = twelve_images()
    with pytest.raises(ValueError, match="labels=SoftTargets"):
        SoftTarget()(Watch(model, frozenset())(images))
    targets = torch.linspace(0.1, 1, 12)
    seen = Watch(model, frozenset())(replace(images, facts={"target": targets}))
    p = seen.logits.softmax(1)
    by_hand = sum((float(p[i, images.labels[i]]) - float(targets[i])) ** 2 for i in range(12)) / 12
    assert SoftTarget()(seen).item() == pytest.approx(by_hand, rel=1e-5)


def test_spread_by_loops_and_a_memory_that_adds_up(model: Model) -> None:
    watch, live = Watch(model, frozenset({"features"})), ClassSpread(0.3, 0.31).on(model)
    images, before = twelve_images(), [twelve_images(4, seed) for seed in (5, 6)]
    assert live(watch(images)).item() == 0, "nothing is remembered yet"
    for batch in before:
        live.remember(watch(batch))
    known: dict[int, list[torch.Tensor]] = {}
    for batch in before:
        for feature, label in zip(features(watch(batch)), batch.labels.tolist(), strict=True):
            known.setdefault(label, []).append(feature)
    terms = []
    for feature, label in zip(features(watch(images)), images.labels.tolist(), strict=True):
        if label in known:
            centre = torch.stack(known[label]).mean(0)
            distance = 1 - float(feature @ centre / (feature.norm() * centre.norm()))
            terms.append(max(0.3 - distance, 0) + max(distance - 0.31, 0))
    assert 0 < len(terms) < 12
    assert live(watch(images)).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_features_are_pooled_whatever_the_head(head: str) -> None:
    ends = {
        "linear": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)],
        "convolution": [nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    }
    model = Model.from_module(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *ends[head]).eval(), *FACTS)
    seen = Watch(model, frozenset({"features"}))(twelve_images(4))
    assert features(seen).shape == (12, feature_width(model)) == (12, 6)


def test_finished_batches_are_remembered_in_turn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    part = ClassSpread()
    live = part.on(model)
    monkeypatch.setattr(ClassSpread, "on", lambda self, model: live)
    images = OptimizePixels(BatchNormDeviation() + part, count=20, batch=8, iterations=1)(model, Run())
    seen = Watch(model, frozenset({"features"}))(images)
    total = F.one_hot(images.labels, 10).T.float() @ features(seen)
    assert torch.allclose(live.total, total, rtol=1e-3, atol=1e-3)  # type: ignore[attr-defined]
    assert live.count.sum() == 20  # type: ignore[attr-defined]


# --- what is asked of images


def test_targets_are_one_for_a_share() -> None:
    torch.manual_seed(0)
    asked = SoftTargets(0.6, 0.25)(4000, 10)
    target = asked.facts["target"]
    assert (target == 1).float().mean() == pytest.approx(0.25, abs=0.03)
    soft = target[target < 1]
    assert soft.min() >= 0.6 and soft.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("classes", "others"), [(10, 5), (2, 5), (7, 3)])
def test_shared_classes_overlap_as_little_as_can_be(classes: int, others: int) -> None:
    torch.manual_seed(0)
    asked = SharedClasses(0.3, others)(classes * 4, classes)
    shares, number = asked.labels, min(others, classes - 1)
    assert torch.allclose(shares.sum(1), torch.ones(len(shares))) and shares.max(1).values.min() >= 0.7
    assert asked.classes.bincount(minlength=classes).tolist() == [4] * classes
    for label in range(classes):
        given = (shares[asked.classes == label] > 0).sum(0)
        given[label] = 0
        turns = -(-4 * number // (classes - 1))
        assert given.max() <= turns and given.sum() == 4 * number, "no class is taken twice before every other was once"


@pytest.mark.parametrize("labels", [Balanced(), SoftTargets(), SharedClasses()], ids=repr)
def test_facts_and_shares_reach_the_images(labels: Balanced | SoftTargets | SharedClasses, model: Model) -> None:
    images = OptimizePixels(BatchNormDeviation(), count=20, batch=8, iterations=1, labels=labels)(model, Run())
    assert len(images) == 20 and images.pixels.shape[1:] == (3, 16, 16)
    assert {len(value) for value in images.facts.values()} <= {20} and images.classes.bincount().tolist() == [2] * 10


# --- kill and resume

SMALL = ("synthesis.count=12", "synthesis.batch=6", "synthesis.iterations=2")
PULLING = ("synthesis.loss.ClassSpread.low=0.0", "synthesis.loss.ClassSpread.high=0.0")  # towards the mean, always
MORE = {"texq": ("synthesis.exemplars.iterations=2",), "dsg": ("synthesis.loss.BatchNormSlack.samples=64",), "intraq": PULLING}


def small(name: str) -> Recipe:
    recipe = recipes.find(name)(bits="w3a3")
    for setting in (*SMALL, *MORE.get(name, ())):
        recipe = changed(recipe, setting)
    return recipe


@pytest.mark.parametrize("name", ["intraq", "texq", "ris", "dsg"])
def test_memories_survive_a_kill_anywhere(name: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(name).dream(model, Run(1, tmp_path / "whole", save_every=0.0)).pixels
    for count in (1, 3, 5, 6):
        folder = tmp_path / f"killed{count}"
        monkeypatch.setattr(Loop, "save", killing_after(count))
        with pytest.raises(Killed):
            small(name).dream(model, Run(1, folder, save_every=0.0))
        monkeypatch.undo()
        assert torch.equal(whole, small(name).dream(model, Run(1, folder, save_every=0.0)).pixels), count


@pytest.mark.parametrize(("name", "memory"), [("intraq", "diversity._ClassMeans"), ("texq", "texture._Centres")])
def test_a_memory_that_is_lost_is_noticed(name: str, memory: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without its memory, a loss gives other images."""
    whole = small(name).dream(model, Run(1)).pixels
    monkeypatch.setattr(f"dreamquant.losses.{memory}.remember", lambda self, seen: None)
    assert not torch.equal(whole, small(name).dream(model, Run(1)).pixels)
