"""Generators for any network, and what they are asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn as nn

from dreamquant import Model, Run
from dreamquant.dream import Dream
from dreamquant.losses.image import BatchNormDeviation, BatchNormMatch, ClassTarget
from dreamquant.synthesis.conditions import Condition, Uniform
from dreamquant.synthesis.generator import BySide, ClassNormed, Generator, Multiplied, Upsampling, of_class
from dreamquant.synthesis.trained import TrainGenerator
from dreamquant.trace import Watch

GENERATORS = (Multiplied(8, 8), ClassNormed(8, 8))


def network(shape: tuple[int, int, int], classes: int, raw: bool = False) -> Model:
    torch.manual_seed(0)
    layers = (nn.Conv2d(shape[0], 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    mean, std = ((0.0,), (1 / 255,)) if raw else ((0.5,), (0.25,))
    return Model.from_module(nn.Sequential(*layers).eval(), shape, mean * shape[0], std * shape[0])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 8, 8), 10), ((3, 32, 32), 2), ((3, 64, 48), 100), ((1, 96, 96), 2), ((3, 112, 112), 1000), ((3, 30, 31), 7), ((2, 5, 3), 3)],
)
def test_trunks_fit_any_network(generator: Generator, shape: tuple[int, int, int], classes: int) -> None:
    model = network(shape, classes)
    live = generator.on(model)
    unit = live(Uniform()(model, 6))
    assert unit.shape == (6, *shape)
    assert torch.allclose(unit.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(unit.var((0, 2, 3), unbiased=False), torch.ones(shape[0]), atol=0.05)
    shares = torch.rand(6, classes)
    assert live(Condition(shares / shares.sum(1, keepdim=True))).shape == (6, *shape)
    unit.square().mean().backward()
    assert not any("running" in name for name, _ in live.named_buffers()), "the statistics are the batch's, always"
    live.eval()
    noise = torch.randn(6, 8)
    labels = torch.zeros(6, dtype=torch.long)
    evaluated = live(Condition(labels, noise=noise))
    assert torch.equal(evaluated, live.train()(Condition(labels, noise=noise)))


def test_the_published_trunk_has_the_published_sizes() -> None:
    model = network((3, 32, 32), 10)
    count = sum(p.numel() for p in Multiplied().on(model).trunk.start.parameters())  # type: ignore[union-attr, attr-defined]
    assert count == 100 * 128 * 64 + 128 * 64  # 0.83 M (generators.md 0.5)
    tables = [p for name, p in ClassNormed(100, 128).on(network((3, 8, 8), 1000)).named_parameters() if name.endswith(("scale", "shift"))]
    assert sum(p.numel() for p in tables) == 2 * 1000 * (128 + 128 + 64)
    eps = [m.eps for m in Multiplied().on(model).modules() if isinstance(m, nn.BatchNorm2d)]
    assert eps == [1e-5, 0.8, 0.8, 1e-5]


def test_the_form_follows_the_side_of_the_images() -> None:
    part = BySide(Multiplied(8, 8), ClassNormed(8, 8))
    names = [type(part.on(network((3, side, 32), 4))).__name__ for side in (64, 65)]
    assert names == ["_Multiplied", "_ClassNormed"]


def test_one_hot_shares_are_labels() -> None:
    labels = torch.tensor([2, 0, 1, 2])
    table = torch.randn(3, 5)
    assert torch.allclose(of_class(table, labels), of_class(table, nn.functional.one_hot(labels, 3).float()))
    model, noise = network((3, 8, 8), 3), torch.randn(4, 8)
    for part in GENERATORS:
        live = part.on(model)
        for p in live.parameters():
            nn.init.normal_(p, std=0.3)
        one, other = (live(Condition(asked, noise=noise)) for asked in (labels, nn.functional.one_hot(labels, 3)))
        assert torch.allclose(one, other, atol=1e-5)
        assert not torch.allclose(one, live(Condition(labels.flip(0), noise=noise)), atol=1e-3), "the class matters"


def test_latents_are_decoded_as_by_genie() -> None:
    model = network((3, 10, 7), 3)
    live = Upsampling(8, 6).on(model)
    assert live(torch.randn(4, 8)).shape == (4, 3, 10, 7)
    assert [(m.in_channels, m.out_channels) for m in live.modules() if isinstance(m, nn.Conv2d)] == [(6, 3), (3, 3)]


@pytest.mark.parametrize("raw", [False, True])
def test_pixels_reach_networks_of_any_input_scale_alike(raw: bool) -> None:
    model = network((3, 8, 8), 4, raw)
    dream = Dream(ClassTarget(), Multiplied(8, 8), batch=16, pixels=(0.5, 0.25))
    torch.manual_seed(1)
    images = dream.images(model, dream.generator.on(model), Uniform()(model, 16))
    shown = images.pixels * torch.tensor(model.std).view(1, 3, 1, 1) + torch.tensor(model.mean).view(1, 3, 1, 1)
    assert torch.allclose(shown.mean((0, 2, 3)), torch.full((3,), 0.5), atol=1e-3)
    assert torch.allclose(shown.std((0, 2, 3)), torch.full((3,), 0.25), atol=1e-2)


def test_the_last_scale_is_learned_only_if_asked() -> None:
    model = network((3, 8, 8), 4)
    plain, learned = (len(list(Multiplied(8, 8, affine).on(model).parameters())) for affine in (False, True))
    assert learned == plain + 2


def test_drawn_images_have_full_batches_and_the_labels_asked_for(tiny_net: nn.Module) -> None:
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    dream = Dream(ClassTarget(), Multiplied(8, 8), batch=8)
    generator = dream.generator.on(model)
    sizes: list[int] = []
    generator.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    asked = torch.tensor([3, 5, 3, 5, 3])
    images = dream.draw(model, generator, asked, Run(), companions=6)
    assert torch.equal(images.labels, asked) and len(images) == 5 and sizes == [8, 8, 8]
    assert not images.pixels.requires_grad
    again = dream.draw(model, generator, asked, Run(), companions=6)
    assert torch.equal(images.pixels, again.pixels), "a run draws the same images again"


def test_a_generator_alone_makes_balanced_images_and_is_kept(tiny_net: nn.Module) -> None:
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    run = Run()
    part = TrainGenerator(Dream(BatchNormDeviation() + 0.1 * ClassTarget(), Multiplied(16, 16), batch=16), iterations=40, count=25)
    images = part(model, run)
    assert len(images) == 25 and int(images.labels.bincount(minlength=10).max()) == 3
    assert all(torch.equal(value, before[key]) for key, value in model.net.state_dict().items())
    curve = [values["BatchNormDeviation"] for _, values in run.curves["training the generator"]]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    live = part.dream.generator.on(model)
    live.load_state_dict(dict(run.kept.generator))
    other = part.dream.draw(model, live, torch.arange(3), Run(5))
    assert other.pixels.shape == (3, 3, 16, 16)


def test_statistics_that_match_give_no_loss(tiny_net: nn.Module) -> None:
    """Item 3 of generators.md 11.7: images that have exactly the recorded mean and variance."""
    x = torch.randn(16, 3, 6, 6)
    bn = nn.BatchNorm2d(3).eval()
    bn.running_mean, bn.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    net = nn.Sequential(bn, nn.Conv2d(3, 2, 6), nn.Flatten())
    model = Model.from_module(net.eval(), (3, 6, 6), (0.5,) * 3, (0.25,) * 3)
    pixels = x.clone().requires_grad_()
    seen = Watch(model, frozenset({"bn"}))(Condition(torch.zeros(16, dtype=torch.long)).images(pixels))
    assert float(BatchNormMatch()(seen).detach()) < 1e-8
    other = replace(seen.images, pixels=(x + 1).requires_grad_())
    loss = BatchNormMatch()(Watch(model, frozenset({"bn"}))(other))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0, rel=1e-3) and other.pixels.grad is not None and other.pixels.grad.abs().sum() > 0
