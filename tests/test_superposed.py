"""Qimera's mixtures: what is asked for, what is superposed, and how large the generator gets."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from dreamquant import Model, recipes
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.superposed import Mixtures, Superposed, embeddings
from test_generator import network

SMALL = network((3, 8, 8), 10)


def wide(features: int, side: int, classes: int = 1000) -> Model:
    layers = (nn.Conv2d(3, features, 3, 16), nn.BatchNorm2d(features), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Model.from_module(nn.Sequential(*layers, nn.Linear(features, classes)).eval(), (3, side, side), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {1}), (1.0, {2}), (0.4, {1, 2})])
def test_whole_batches_are_mixed_or_not(share: float, kinds: set[int]) -> None:
    torch.manual_seed(0)
    asked = [Mixtures(share, classes=4)(SMALL, 6) for _ in range(40)]
    assert {condition.labels.ndim for condition in asked} == kinds and all(len(condition) == 6 for condition in asked)
    if len(kinds) == 2:
        assert sum(condition.labels.ndim == 2 for condition in asked) / 40 == pytest.approx(0.4, abs=0.2)


def test_shares_are_the_weights_of_the_classes_repeats_included() -> None:
    torch.manual_seed(1)
    condition = Mixtures(1.0, classes=20)(SMALL, 5)  # twenty draws of ten classes: some repeat
    expected = torch.zeros(5, 10)
    for i in range(5):
        for slot, weight in zip(condition.facts["slots"][i], condition.facts["weights"][i], strict=True):
            expected[i, slot] += weight
    assert torch.allclose(condition.labels, expected) and torch.allclose(expected.sum(1), torch.ones(5))


@pytest.mark.parametrize(("classes", "mixed"), [(2, 2), (10, 2), (100, 10), (1000, 100)])
def test_how_many_classes_follows_the_network(classes: int, mixed: int) -> None:
    assert Mixtures(1.0)(network((3, 8, 8), classes), 3).facts["slots"].shape == (3, mixed)


def test_latents_are_weighted_sums_of_standardised_embeddings() -> None:
    live = Superposed(8).on(SMALL)
    slots, weights, noise = torch.tensor([[1, 4], [3, 3]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.randn(2, 4)
    condition = Condition(torch.zeros(2, 10), {"slots": slots, "weights": weights}, noise)

    def standardised(row: int, label: int) -> torch.Tensor:
        h = live.table[label] + noise[row]  # type: ignore[index]
        return (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()

    expected = torch.stack([0.25 * standardised(0, 1) + 0.75 * standardised(0, 4), standardised(1, 3)])
    assert torch.allclose(live.superposed(condition), expected, atol=1e-6)  # type: ignore[operator]
    single = Condition(torch.tensor([1, 3]), noise=noise)
    assert torch.allclose(live.superposed(single)[1], expected[1], atol=1e-6), "one class is a mixture of one"  # type: ignore[operator]
    shares = Condition(F.one_hot(torch.tensor([1, 3]), 10), noise=noise)
    assert torch.allclose(live.superposed(shares), live.superposed(single), atol=1e-6)  # type: ignore[operator]


def test_each_class_of_a_mixture_has_noise_of_its_own() -> None:
    live = Superposed(8).on(SMALL)
    slots = torch.tensor([[3, 3]])
    weights = torch.tensor([[0.5, 0.5]])
    latent = live.superposed(Condition(torch.zeros(1, 10), {"slots": slots, "weights": weights}))  # type: ignore[operator]
    assert float(latent.detach().var(unbiased=False)) < 0.99, "two equal standardised vectors would add up to one of variance 1"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 30, 31), (3, 64, 48)])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("classes", [2, 1000])
def test_it_fits_any_network(shape: tuple[int, int, int], by_class: bool, classes: int) -> None:
    model = network(shape, classes)
    for bound in (10**9, 1):
        live = Superposed(8, by_class=by_class, bound=bound, narrow=3).on(model)
        for share in (0.0, 1.0):
            images = live(Mixtures(share)(model, 4))
            assert images.shape == (4, *shape)
        images.square().sum().backward()
        gradients = [p.grad for name, p in live.named_parameters() if "start" not in name and "convs" not in name]
        assert all(g is not None and g.isfinite().all() for g in gradients)


def test_embeddings_begin_as_the_classifier() -> None:
    last = SMALL.net.get_submodule("5")
    assert isinstance(last, nn.Linear)
    assert torch.equal(embeddings(SMALL, True), last.weight)
    assert not torch.equal(embeddings(SMALL, False), last.weight)
    conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 5, 1), nn.Flatten())
    model = Model.from_module(conv.eval(), (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    assert embeddings(model, True).shape == (5, 6)
    live = Superposed(8).on(SMALL)
    before = last.weight.clone()
    live.table.data.add_(1)  # type: ignore[operator, union-attr]
    assert torch.equal(last.weight, before), "a copy"


@pytest.mark.parametrize("features", [512, 2048])
def test_a_wide_teacher_gets_no_huge_layer(features: int) -> None:
    """The published form has 206 and 822 million weights in its first layer alone."""
    large, small = wide(features, 224), wide(features, 32, 10)
    with torch.device("meta"):  # sizes without memory
        counts = [sum(p.numel() for p in _trunk(latent).parameters()) for latent in (features, 100)]
        count = sum(p.numel() for p in Superposed().on(large).parameters())
        unmapped = sum(p.numel() for p in Superposed().on(small).parameters())
    assert counts[0] > 128 * 56 * 56 * features > 200_000_000
    assert count == counts[1] + features * 1000 + features * 100 < 45_000_000
    assert unmapped > features * 128 * 64, "small images need no map"


def test_recipes_build_no_huge_layer_either() -> None:
    models = {features: wide(features, 224) for features in (512, 2048)}
    for effort, most in (("fast", 50_000_000), ("paper", 260_000_000)):
        generator = recipes.find("qimera")(effort=effort).steps[-1].dream.generator  # type: ignore[attr-defined]
        with torch.device("meta"):
            counts = {features: sum(p.numel() for p in generator.on(model).parameters()) for features, model in models.items()}
        assert max(counts.values()) < most
        assert (counts[512] > 205_000_000) == (effort == "paper"), "ResNet-18's is built as published"


def _trunk(latent: int) -> nn.Module:
    from dreamquant.synthesis.generator import Norm, Trunk, gdfq_widths

    return Trunk(latent, gdfq_widths(128), (3, 224, 224), Norm)


def test_the_map_of_the_sum_is_the_sum_of_the_maps() -> None:
    """So the narrow form is the paper's learnable map of each embedding before mixing."""
    live = Superposed(8, bound=1, narrow=3).on(SMALL)
    condition = Mixtures(1.0, classes=3)(SMALL, 4)
    noise = torch.randn(4, 4)
    facts = condition.facts
    single = [live.superposed(Condition(facts["slots"][:, k], noise=noise)) for k in range(3)]  # type: ignore[operator]
    apart = sum(facts["weights"][:, k, None] * live.mapping(h) for k, h in enumerate(single))  # type: ignore[operator]
    together = live.mapping(live.superposed(Condition(condition.labels, facts, noise)))  # type: ignore[operator]
    assert torch.allclose(together, apart, atol=1e-5)
