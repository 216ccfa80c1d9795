"""Images of a generator that is learned with its latents, and convolutions that swing meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model, Run, graph
from dreamquant.losses.image import BatchNormDeviation, BatchNormSum, ClassTarget
from dreamquant.optimizers import Exponential
from dreamquant.run import Loop
from dreamquant.synthesis.generator import Upsampling
from dreamquant.synthesis.latents import OptimizeLatents
from dreamquant.synthesis.swing import Moved, Swing, Unchanged
from dreamquant.trace import Watch
from faults import Killed

SMALL = OptimizeLatents(BatchNormSum(), count=10, batch=6, iterations=3, generator=Upsampling(latent=8, width=8))


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def mirrored(position: int, length: int) -> int:
    """The place that a reflection at both ends shows."""
    position = abs(position)
    return position if position < length else 2 * (length - 1) - position


def test_a_move_by_hand() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    seen = set()
    for seed in range(200):
        torch.manual_seed(seed)
        seen.add(tuple(Moved((1, 1))(x).flatten().tolist()))
    expected = {
        tuple(float(3 * mirrored(i + down, 3) + mirrored(j + right, 3)) for i in range(3) for j in range(3))
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    assert seen == expected and (4.0, 3.0, 4.0, 1.0, 0.0, 1.0, 4.0, 3.0, 4.0) in seen


def test_moves_reach_no_further_than_a_reflection_can() -> None:
    point, row = torch.ones(2, 3, 1, 1), torch.randn(2, 3, 1, 5)
    assert torch.equal(Moved((1, 1))(point), point)
    assert {Moved((8, 8))(row).shape for _ in range(20)} == {row.shape}


def test_a_swing_of_zero_is_the_plain_network(model: Model) -> None:
    x = torch.randn(2, 3, 16, 16)
    code = model.net.code
    swung = Swing()(model.net)
    moved = [m for m in swung.modules() if isinstance(m, Moved)]
    strided = [n for n in graph.of_kind(model.net, "conv") if max(model.net.get_submodule(str(n.target)).stride) > 1]  # type: ignore[type-var, arg-type]
    assert len(moved) == len(strided) > 0 and all(m.reach == (1, 1) for m in moved)
    assert any(not torch.equal(swung(x), model.net(x)) for _ in range(5))
    for m in moved:
        m.reach = (0, 0)
    assert torch.equal(swung(x), model.net(x))
    assert model.net.code == code and {n.name for n in model.net.graph.nodes} <= {n.name for n in swung.graph.nodes}
    shared = dict(swung.named_parameters())
    assert all(shared[name] is p for name, p in model.net.named_parameters()), "weights are shared"
    assert Unchanged()(model.net) is model.net


def test_a_swung_network_can_be_watched(model: Model) -> None:
    images = Images(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))
    needs = frozenset({"bn", "blocks"})
    plain, swung = Watch(model, needs)(images), Watch(model, needs, Swing()(model.net))(images)
    first = model.points["bn"][0]
    assert torch.allclose(plain.moments[first].first, swung.moments[first].first, atol=1e-5), "nothing strided before it"
    assert swung.moments.keys() == plain.moments.keys() and len(swung.at["blocks"]) == len(plain.at["blocks"])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 96, 96), (3, 224, 224), (2, 33, 30), (1, 5, 7)])
def test_generators_make_images_of_every_size(shape: tuple[int, int, int], model: Model) -> None:
    class Facts:
        pass

    facts = Facts()
    facts.shape = shape  # type: ignore[attr-defined]
    generator = Upsampling(latent=4, width=2).on(facts)  # type: ignore[arg-type]
    made = generator(torch.randn(6, 4))
    assert made.shape == (6, *shape)
    assert torch.allclose(made.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    assert torch.allclose(made.std((0, 2, 3), correction=0), torch.ones(shape[0]), atol=0.05)
    assert all(key.rpartition(".")[2] in ("weight", "bias") for key in generator.state_dict()), "no running statistics"


def test_sizes_of_the_generator_are_those_published(model: Model) -> None:
    net = Upsampling().on(model)
    assert net.start.weight.shape == (128 * 4 * 4, 256) and net.convs[0].weight.shape[:2] == (64, 128)


@pytest.mark.parametrize("count", [10, 7, 13])
def test_any_number_of_images_is_dreamed(count: int, model: Model) -> None:
    part = OptimizeLatents(BatchNormDeviation() + 0.1 * ClassTarget(), count, 6, 2, Upsampling(8, 8))
    images = part(model, Run())
    assert images.pixels.shape == (count, 3, 16, 16) and images.pixels.isfinite().all()
    counts = images.labels.bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_dreaming_lowers_its_loss(model: Model) -> None:
    run = Run()
    OptimizeLatents(BatchNormDeviation(), count=16, batch=16, iterations=40, generator=Upsampling(16, 16))(model, run)
    curve = [values["BatchNormDeviation"] for _, values in next(iter(run.curves.values()))]
    assert curve[-1] < 0.7 * curve[0]


def test_batches_have_generators_of_their_own(model: Model) -> None:
    pixels = OptimizeLatents(BatchNormSum(), 8, 4, 1, Upsampling(4, 4))(model, Run()).pixels
    assert pixels[:4].mean((0, 2, 3)).abs().max() < 1e-4 and pixels[4:].mean((0, 2, 3)).abs().max() < 1e-4
    assert not torch.allclose(pixels[:4], pixels[4:], atol=0.1)


def test_pixels_in_units_of_the_image(tiny_net: nn.Module) -> None:
    raw = Model.from_module(tiny_net, (3, 16, 16), (0.0,) * 3, (1 / 255,) * 3)
    pixels = OptimizeLatents(BatchNormSum(), 6, 6, 1, Upsampling(4, 4), pixels=(0.5, 0.25))(raw, Run()).pixels
    assert pixels.mean().item() == pytest.approx(127.5, rel=1e-3) and pixels.std().item() == pytest.approx(63.75, rel=0.02)


@pytest.mark.parametrize("count", [0, 2, 4, 7])
def test_a_killed_dream_continues_to_the_same_bits(count: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dreamed(folder: str) -> Tensor:
        return SMALL(model, Run(1, tmp_path / folder, save_every=0.0)).pixels

    whole, real, left = dreamed("whole"), Loop.save, [count]

    def save(self: Loop, following: int) -> None:
        real(self, following)
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    monkeypatch.setattr(Loop, "save", save)
    with pytest.raises(Killed):
        dreamed("killed")
    monkeypatch.undo()
    assert torch.equal(whole, dreamed("killed"))


def test_rates_fall_exponentially() -> None:
    schedule = Exponential(0.128)
    assert schedule(0.0) == 1 and schedule(1.0) == pytest.approx(0.95**40, rel=0.01)
    assert schedule(0.5) ** 2 == pytest.approx(schedule(1.0))
