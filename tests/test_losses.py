"""Losses against formulas written another way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model
from dreamquant.losses.algebra import Loss, Objective, Sum
from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch, BatchNormPerImage, BatchNormSum, ClassTarget, TotalVariation
from dreamquant.losses.student import (
    FeatureMatch,
    HardLabel,
    OnHarderImages,
    SaliencyMatch,
    SoftLabel,
    saliency,
)
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.trace import Pair, Watch, pair

IMAGE_LOSSES: list[Loss] = [BatchNormDeviation(), BatchNormMatch(), BatchNormPerImage(), BatchNormSum(), ClassTarget(2.0), TotalVariation()]
STUDENT_LOSSES: list[Loss] = [
    SoftLabel(),
    HardLabel(0.9),
    FeatureMatch(),
    SaliencyMatch(),
    OnHarderImages(SoftLabel()),
    OnHarderImages(SoftLabel(), climbs=HardLabel(), teacher=False),
]


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(3)
    return Images(torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 10)


def both(model: Model, images: Images, needs: frozenset[str]) -> Pair:
    student = convert(model, scheme_of("w3a3"))
    with student.observing(LpSearch()), torch.no_grad():
        student.net(images.pixels)
    for name, p in student.net.named_parameters():
        p.requires_grad_(name.endswith("conv1.weight"))
    images = replace(images, pixels=images.pixels.clone().requires_grad_())
    return pair(Watch(model, needs)(images), Watch(model, needs - {"bn"}, student.net)(images))


def inputs_of_batch_norm(model: Model, pixels: torch.Tensor) -> list[tuple[nn.BatchNorm2d, torch.Tensor]]:
    """By hooks, which the package itself does not use."""
    seen: list[tuple[nn.BatchNorm2d, torch.Tensor]] = []
    handles = [
        m.register_forward_hook(lambda m, i, o: seen.append((m, i[0]))) for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    model.net(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("loss", IMAGE_LOSSES, ids=repr)
def test_image_losses_are_finite_differentiable_and_indifferent_to_order(loss: Loss, model: Model, images: Images) -> None:
    watch = Watch(model, loss.wants())
    pixels = images.pixels.clone().requires_grad_()
    value = loss(watch(replace(images, pixels=pixels)))
    gradient = torch.autograd.grad(value, pixels)[0]
    assert value.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert loss(watch(images[order])).item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("loss", STUDENT_LOSSES, ids=repr)
def test_student_losses_are_finite_and_reach_the_student(loss: Loss, model: Model, images: Images) -> None:
    seen = both(model, images, loss.wants())
    value = loss(seen)
    weights = [p for name, p in seen.student.watch.source.named_parameters() if name.endswith("conv1.weight")]
    assert value.isfinite()
    gradients = torch.autograd.grad(value, weights, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_bns_b_by_hand(model: Model, images: Images) -> None:
    terms = []
    for bn, x in inputs_of_batch_norm(model, images.pixels):
        assert bn.running_mean is not None and bn.running_var is not None
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        terms.append(F.mse_loss(mean, bn.running_mean) + F.mse_loss(var, bn.running_var + bn.eps))
    got = BatchNormMatch()(Watch(model, frozenset({"bn"}))(images))
    assert got.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-3)


def test_bns_a_by_hand(model: Model, images: Images) -> None:
    total = torch.zeros(len(images))
    for bn, x in inputs_of_batch_norm(model, images.pixels):
        assert bn.running_mean is not None and bn.running_var is not None
        mean, deviation = x.mean((2, 3)), x.var((2, 3)).sqrt()
        total += (mean - bn.running_mean).square().sum(1) + (deviation - (bn.running_var + bn.eps).sqrt()).square().sum(1)
    got = BatchNormPerImage(with_input=False)(Watch(model, frozenset({"bn"}))(images))
    assert got.item() == pytest.approx(total.mean().item(), rel=1e-3)


def test_our_bns_does_not_change_when_layers_are_rescaled(model: Model, images: Images) -> None:
    watch = Watch(model, frozenset({"bn"}))
    ours, raw = BatchNormDeviation()(watch(images)).item(), BatchNormMatch()(watch(images)).item()
    for bn in model.net.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.eps = 0.0
    conv = next(m for m in model.net.modules() if isinstance(m, nn.Conv2d))
    bn = next(m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d))
    assert bn.running_mean is not None and bn.running_var is not None
    conv.weight.data *= 100
    bn.running_mean *= 100
    bn.running_var *= 100**2
    watch = Watch(model, frozenset({"bn"}))
    assert BatchNormDeviation()(watch(images)).item() == pytest.approx(ours, rel=2e-2)
    assert BatchNormMatch()(watch(images)).item() > 100 * raw


def test_genies_statistics_by_hand(model: Model, images: Images) -> None:
    """BNS-C: deviations, means over channels, the sum over layers and over the input, whose statistics are each image's own."""
    expected = 0.0
    for bn, x in inputs_of_batch_norm(model, images.pixels):
        assert bn.running_mean is not None and bn.running_var is not None
        values = x.detach().double().transpose(0, 1).flatten(1)
        mean, deviation = values.mean(1), values.std(1, unbiased=False)
        expected += float((mean - bn.running_mean).square().mean() + (deviation - (bn.running_var + bn.eps).sqrt()).square().mean())
    pixels = images.pixels.double().flatten(2)
    shown = float((pixels.mean(2).square().sum(1) + ((pixels.var(2) + 1e-6).sqrt() - 1).square().sum(1)).mean())
    watch = Watch(model, BatchNormSum().wants())
    assert BatchNormSum(with_input=False)(watch(images)).item() == pytest.approx(expected, rel=1e-4)
    assert BatchNormSum()(watch(images)).item() == pytest.approx(expected + shown, rel=1e-4)


def test_statistics_do_not_cancel() -> None:
    bn = nn.BatchNorm2d(1, eps=0.0)
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean.fill_(5.0)
    bn.running_var.fill_(1e-8)
    net = nn.Sequential(bn, nn.Flatten(), nn.Linear(64, 2)).eval()
    model = Model.from_module(net, (1, 8, 8), (0.5,), (0.5,))
    x = 5 + 1e-4 * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (moments,) = Watch(model, frozenset({"bn"}))(Images(x, torch.zeros(16, dtype=torch.long))).moments.values()
    true = x.double().var(unbiased=False).item()
    assert (moments.batch()[1].item() * 1e-8) == pytest.approx(true, rel=0.05)


def test_soft_labels_are_centred_logit_errors_at_high_temperature(model: Model, images: Images) -> None:
    seen = both(model, images, frozenset())
    seen = replace(seen, logits=seen.logits.double(), student=replace(seen.student, logits=seen.student.logits.double()))
    difference = (seen.student.logits - seen.logits).detach()
    centred = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / (2 * model.classes)
    assert SoftLabel(1000.0)(seen).item() == pytest.approx(centred.item(), rel=0.02)


def test_difficult_images_have_no_hard_label(model: Model, images: Images) -> None:
    seen = both(model, images, frozenset())
    p = seen.logits.softmax(1)[torch.arange(len(images)), images.labels]
    loss = F.cross_entropy(seen.student.logits, images.labels, reduction="none")
    threshold = (1 - p).median().item()
    by_hand = loss[(1 - p) <= threshold].sum() / len(images)
    assert HardLabel(threshold)(seen).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert HardLabel(0.0)(seen).item() == 0


def test_hard_labels_hold_where_the_teacher_is_sure_of_another_class(model: Model, images: Images) -> None:
    """A probability that is no number of float32 beside one is a difficulty of exactly 1."""
    seen = both(model, images, frozenset())
    sure = torch.zeros(12, 10)
    sure[torch.arange(12), (images.labels + 1) % 10] = 30.0
    expected = F.cross_entropy(seen.student.logits, images.labels)
    assert HardLabel()(replace(seen, logits=sure)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_harder_images_are_one_sign_step_up_the_loss_that_is_climbed(model: Model, images: Images) -> None:
    """By hand: up through both networks, or with the teacher's logits as they were."""
    climbs, follows, eps = 20 * SoftLabel(20.0), SoftLabel(4.0), 0.01
    loss = OnHarderImages(follows, eps, climbs=climbs)
    seen = both(model, images, loss.wants())
    pixels = seen.images.pixels

    def stepped(teacher: bool) -> torch.Tensor:
        fixed = seen.logits.detach()
        fresh = seen.again(leaf := pixels.detach().clone().requires_grad_())
        net = model.net(leaf) if teacher else fixed
        gradient = torch.autograd.grad(climbs(replace(fresh, logits=net)), leaf)[0]
        return (pixels + eps * gradient.sign()).detach()

    for teacher in (True, False):
        got = replace(loss, teacher=teacher)(seen)
        assert got.item() == pytest.approx(follows(seen.again(stepped(teacher))).item(), rel=1e-3)
    assert not torch.equal(stepped(True), stepped(False))
    assert OnHarderImages(climbs)(seen).item() > climbs(seen).item()


def test_channel_attention_by_hand(model: Model, images: Images) -> None:
    seen = both(model, images, FeatureMatch().wants())
    total = 0.0
    for teacher, student in zip(seen.at["blocks"], seen.student.at["blocks"], strict=True):
        maps = [np.square(x.detach().double().numpy()).reshape(*x.shape[:2], -1).mean(2) for x in (teacher, student)]
        a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
        total += float(np.square(a - b).mean())
    assert FeatureMatch()(seen).item() == pytest.approx(total, rel=1e-4)
    assert len(seen.at["blocks"]) > 1


def test_channels_of_tokens_are_the_channels_of_maps(model: Model, images: Images) -> None:
    seen = both(model, images, FeatureMatch().wants())

    def tokens(maps: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
        return {"blocks": tuple(x.flatten(2).transpose(1, 2) for x in maps["blocks"])}

    other = replace(seen, at=tokens(seen.at), student=replace(seen.student, at=tokens(seen.student.at)))
    assert FeatureMatch()(other).item() == pytest.approx(FeatureMatch()(seen).item(), rel=1e-5)


def test_an_image_with_one_place_has_no_deviation_to_match() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model = Model.from_module(net, (3, 2, 2), (0.5,) * 3, (0.25,) * 3)
    pixels = torch.randn(5, 3, 2, 2)
    x = net[1](pixels.flatten(1))
    got = BatchNormPerImage(with_input=False)(Watch(model, frozenset({"bn"}))(Images(pixels, torch.zeros(5).long())))
    assert got.item() == pytest.approx(x.square().sum(1).mean().item(), rel=1e-4), "means of 0, and nothing of deviations"


def test_focus_zero_is_cross_entropy_and_certainty_is_finite(model: Model, images: Images) -> None:
    seen = Watch(model, frozenset())(images)
    assert ClassTarget(0.0)(seen).item() == pytest.approx(F.cross_entropy(seen.logits, images.labels).item())
    sure = torch.zeros(12, 10)
    sure[torch.arange(12), images.labels] = 200.0
    sure.requires_grad_()
    value = ClassTarget(0.5)(replace(seen, logits=sure))
    assert value.isfinite() and torch.autograd.grad(value, sure)[0].isfinite().all()


def test_saliency_is_the_closed_form_of_resnets(model: Model, images: Images) -> None:
    seen = Watch(model, frozenset({"saliency"}))(images)
    maps = saliency(seen)
    first, *rest = (t.detach() for t in seen.at["saliency"])
    leaf = first.clone().requires_grad_()
    weight = torch.autograd.grad(seen.watch.tail(leaf, *rest).max(1).values.sum(), leaf)[0].mean((2, 3), keepdim=True)
    raw = F.relu((weight.clamp_min(1e-10) * first).sum(1))
    for got, want in zip(maps, raw, strict=True):
        assert torch.allclose(got, (want - want.min()) / (want.max() - want.min() + 1e-10), atol=1e-5)
    assert maps.min() >= 0 and maps.max() <= 1


def test_losses_print_as_equations_and_print_back() -> None:
    loss = 20 * SoftLabel(20.0) + 0.5 * HardLabel(0.5) + OnHarderImages(3 * SoftLabel())
    assert eval(repr(loss)) == loss
    assert repr(SoftLabel(4.0) + HardLabel()) == "SoftLabel(temperature=4.0, per_class=False) + HardLabel(max_difficulty=1.0)"
    assert isinstance(2 * (SoftLabel() + HardLabel()), Sum)
    with pytest.raises(TypeError):
        SoftLabel() + 1  # type: ignore[operator]


def test_an_objective_names_its_terms(model: Model, images: Images) -> None:
    objective = Objective(BatchNormDeviation() + 0.1 * ClassTarget(), model)
    total = objective(Watch(model, objective.needs)(images))
    assert set(objective.values) == {"BatchNormDeviation", "ClassTarget"}
    assert sum(v.item() for v in objective.values.values()) == pytest.approx(total.item(), rel=1e-5)
    twice = Objective(ClassTarget() + BatchNormDeviation() + 0.5 * ClassTarget(2.0), model)
    twice(Watch(model, twice.needs)(images))
    assert list(twice.values) == ["ClassTarget", "BatchNormDeviation", "ClassTarget2"]
