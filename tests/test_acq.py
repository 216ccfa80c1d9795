"""ACQ's parts by hand: where attention lies, twins, the teacher in train mode, generators that are told a position."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model, Run, recipes
from dreamquant.choose import chosen
from dreamquant.dream import Dream
from dreamquant.inspection import inspect
from dreamquant.losses.attention import (
    AttentionCentre,
    SameInTrainMode,
    TwinSimilarity,
    attention,
    cell_of,
    cells,
    grid_of,
    middle_of,
)
from dreamquant.losses.image import BatchNormMatch, ClassTarget, features
from dreamquant.optimizers import Adam
from dreamquant.run import Loop
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import Generator
from dreamquant.synthesis.positions import Placed, PlaceNormed, Twins
from dreamquant.trace import Trace, Watch
from faults import Killed, killing_after
from oracles import FACTS, inputs_of_batch_norm, record
from test_recipes import tiny

LOSS = ClassTarget() + 0.1 * AttentionCentre() + 0.1 * TwinSimilarity(0.5) + SameInTrainMode(ClassTarget() + 0.1 * BatchNormMatch())
GENERATORS = (Placed(8, 8), PlaceNormed(8, 8))


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def window(height: int = 4, width: int = 6) -> Model:
    """A network whose last feature map is its input, unless negative: what is seen there is put there by hand."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    nn.init.ones_(net[0].weight)
    return Model.from_module(net.eval(), (1, height, width), (0.5,), (0.5,))


def spots(model: Model, *places: tuple[int, int], others: float = 0.0) -> Tensor:
    """One image for each place (row, column): 2 there, `others` elsewhere."""
    pixels = torch.full((len(places), *model.shape), others)
    for image, (row, column) in zip(pixels, places, strict=True):
        image[0, row, column] = 2.0
    return pixels


def asked(*places: tuple[float, float]) -> dict[str, Tensor]:
    return {"position": torch.tensor(places)}


def seen_by(model: Model, pixels: Tensor, needs: frozenset[str], facts: dict[str, Tensor], labels: Tensor | None = None) -> Trace:
    return Watch(model, needs)(Images(pixels, torch.zeros(len(pixels), dtype=torch.long) if labels is None else labels, facts))


def same(net: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def test_cells_and_positions_are_counted_alike() -> None:
    for grid in ((8, 8), (7, 7), (4, 6), (1, 3), (2, 2)):
        every = torch.arange(math.prod(grid))
        assert torch.equal(cell_of(middle_of(every, grid), grid), every)
    assert cell_of(torch.tensor([[0.0, 0.0], [0.0, 0.99], [0.99, 0.0], [1.0, 1.0], [0.3, 0.5]]), (4, 6)).tolist() == [0, 5, 18, 23, 9]


def test_attention_is_the_sum_of_squares_over_channels(model: Model) -> None:
    seen = seen_by(model, torch.randn(3, 3, 16, 16), frozenset({"map"}), {})
    (found,) = seen.at["map"]
    by_hand = sum(found[:, c] ** 2 for c in range(found.shape[1]))
    assert torch.allclose(attention(seen), torch.as_tensor(by_hand)) and found.shape[1:] == (16, 4, 4)
    assert grid_of(model) == (4, 4)


def test_large_maps_have_eight_cells_a_side() -> None:
    large = torch.rand(2, 24, 5)
    got = cells(large).view(2, 8, 5)
    by_hand = torch.stack([large[:, 3 * i : 3 * i + 3].mean(1) for i in range(8)], 1)
    assert torch.allclose(got, by_hand / by_hand.sum((1, 2), keepdim=True))
    assert grid_of(window(24, 5)) == (8, 5)


def test_the_centre_costs_how_far_the_asked_cell_is_behind_it() -> None:
    model = window()
    pixels = spots(model, (1, 2), (1, 2), others=1.0)  # 4 of the attention there, 1 in each of 23 other cells
    loss = AttentionCentre()
    for place, times in (((1, 2), 1), ((0, 5), 4)):
        facts = asked(*[((place[0] + 0.5) / 4, (place[1] + 0.5) / 6)] * 2)
        assert float(loss(seen_by(model, pixels, loss.needs, facts))) == pytest.approx(math.log(times), rel=1e-5)
    facts = asked((1.5 / 4, 2.5 / 6), (0.1, 0.1))
    assert float(loss(seen_by(model, pixels, loss.needs, facts))) == pytest.approx(math.log(4) / 2, rel=1e-5)


def test_its_gradient_moves_the_centre_there_and_leaves_the_rest() -> None:
    model = window()
    pixels = spots(model, (1, 2), others=1.0).requires_grad_()
    AttentionCentre()(seen_by(model, pixels, frozenset({"map"}), asked((0.1, 0.9)))).backward()
    assert pixels.grad is not None
    gradient, centre = pixels.grad.flatten(), 1 * 6 + 2
    assert gradient[5] < 0 < gradient[centre]
    assert (gradient[[n for n in range(24) if n not in (5, centre)]].abs() < 1e-6).all()


@pytest.mark.parametrize(("each", "count"), [(2, 8), (2, 7), (3, 8), (1, 5), (2, 1)])
def test_twins_share_all_but_the_noise(each: int, count: int, model: Model) -> None:
    condition = Twins(each)(model, count)
    number, position = condition.facts["twins"], condition.facts["position"]
    assert len(condition) == len(number) == len(position) == count and condition.noise is None
    for twin in number.unique():
        mine = number == twin
        assert mine.sum() <= each and len(condition.labels[mine].unique()) == 1 and len(position[mine].unique(dim=0)) == 1
    assert len(number.unique()) == -(-count // each)


def test_every_class_and_every_place_is_asked_for(model: Model) -> None:
    condition = Twins()(model, 4000)
    cell = cell_of(condition.facts["position"], (4, 4))
    both = torch.zeros(10, 16).index_put_((condition.labels, cell), torch.ones(()), accumulate=True)
    expected = 4000 / 160
    assert (both > 0).all() and float((both - expected).square().sum() / expected) < 2 * 250  # pairs count twice; df = 159
    single = Twins().of(model, torch.tensor([3, 3, 5]))
    assert single.labels.tolist() == [3, 3, 5] and len(single.facts["twins"].unique()) == 3


@pytest.mark.parametrize(("each", "count"), [(2, 8), (3, 8), (1, 4)])
def test_twins_are_compared_by_loops(each: int, count: int, model: Model) -> None:
    facts = dict(Twins(each)(model, count).facts)
    seen = seen_by(model, torch.randn(count, 3, 16, 16), frozenset({"features"}), facts)
    found, total, pairs = features(seen), 0.0, 0
    for i in range(count):
        for j in range(count):
            if i != j and facts["twins"][i] == facts["twins"][j]:
                total, pairs = total + float(F.cosine_similarity(found[i], found[j], dim=0)), pairs + 1
    assert float(TwinSimilarity()(seen)) == pytest.approx(total / max(pairs, 1), rel=1e-4)


def test_twins_are_pushed_apart_more_and_more(model: Model) -> None:
    facts = {"twins": torch.zeros(2, dtype=torch.long)}
    pixels = torch.randn(2, 3, 16, 16)
    values = []
    for _ in range(5):
        pixels = pixels.detach().requires_grad_()
        loss = TwinSimilarity()(seen_by(model, pixels, frozenset({"features"}), facts))
        loss.backward()
        assert pixels.grad is not None
        values.append(float(loss.detach()))
        pixels = pixels - 0.3 * pixels.grad / pixels.grad.norm()
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    seen = seen_by(model, pixels.detach(), frozenset({"features"}), facts)
    whole = float(TwinSimilarity()(seen))
    for done, share in ((0.0, 0.0), (0.15, 0.5), (0.3, 1.0), (0.9, 1.0)):
        assert float(TwinSimilarity(0.3)(replace(seen, done=done))) == pytest.approx(share * whole, rel=1e-5)


@pytest.mark.parametrize("loss", [AttentionCentre(), TwinSimilarity()])
def test_images_without_the_facts_are_refused(loss: AttentionCentre | TwinSimilarity, model: Model) -> None:
    with pytest.raises(ValueError, match=r"conditioner=Twins\(\)"):
        loss(seen_by(model, torch.randn(2, 3, 16, 16), loss.needs, {}))


def test_train_mode_as_torch_has_it(model: Model, tiny_net: nn.Module) -> None:
    """Item 10: against the untouched network in train mode; afterwards every buffer of the teacher has its old bits."""
    pixels, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    logits = model(pixels)
    inner = ClassTarget() + 0.1 * BatchNormMatch()
    loss = SameInTrainMode(inner, attention=3.0)
    got = loss(seen_by(model, pixels, loss.wants(), {}, labels))

    records = [record(bn) for bn, _ in inputs_of_batch_norm(model, pixels)]
    oracle, maps, inputs = copy.deepcopy(tiny_net), list[Tensor](), list[Tensor]()
    oracle.get_submodule("layer3").register_forward_hook(lambda m, args, out: maps.append(out))
    oracle(pixels)
    for module in oracle.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    trained = oracle.train()(pixels)
    terms = [
        (x.mean((0, 2, 3)) - mu).square().mean() + (x.var((0, 2, 3), unbiased=False) - var).square().mean()
        for x, (mu, var) in zip(inputs, records, strict=True)
    ]
    mine, theirs = (F.normalize(m.square().sum(1).flatten(1), dim=1) for m in maps)
    apart = sum(float((a - b).detach().square().sum()) for a, b in zip(mine, theirs, strict=True)) / 8
    expected = F.cross_entropy(trained, labels) + 0.1 * torch.stack(terms).mean() + 3.0 * apart
    assert apart > 1e-4
    assert float(got) == pytest.approx(float(expected.detach()), rel=1e-3)
    assert same(model.net, before) and torch.equal(model(pixels), logits)


def test_a_batch_like_the_record_is_the_same_in_train_mode() -> None:
    x = torch.randn(16, 3, 6, 6)
    bn = nn.BatchNorm2d(3).eval()
    bn.running_mean, bn.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    net = nn.Sequential(bn, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    model, loss = Model.from_module(net, (3, 6, 6), (0.5,) * 3, (0.25,) * 3), SameInTrainMode(BatchNormMatch())
    assert float(loss(seen_by(model, x, loss.wants(), {}))) == pytest.approx(0, abs=1e-6)
    assert float(loss(seen_by(model, 1 + x * torch.rand(16, 1, 1, 1), loss.wants(), {}))) > 0.1


def test_gradients_come_through_both_modes_and_enter_no_teacher(model: Model) -> None:
    """Row g6 of the routing table."""
    pixels = torch.randn(6, 3, 16, 16, requires_grad=True)
    loss = SameInTrainMode(0.0 * ClassTarget())
    seen = seen_by(model, pixels, loss.wants(), {})
    (both,) = torch.autograd.grad(loss(seen), pixels, retain_graph=True)
    frozen = replace(seen, at={"map": tuple(t.detach() for t in seen.at["map"])})
    (train_alone,) = torch.autograd.grad(loss(frozen), pixels)
    assert train_alone.abs().sum() > 0 and not torch.allclose(both, train_alone, atol=1e-7)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())


def test_the_generators_step_leaves_the_teacher_as_it_was(model: Model) -> None:
    before, x = {key: value.clone() for key, value in model.net.state_dict().items()}, torch.randn(2, 3, 16, 16)
    logits = model(x)
    dreamer = Dream(LOSS, Placed(8, 8), conditioner=Twins(), batch=8).on(model)
    old = copy.deepcopy(dreamer.generator.state_dict())
    seen = dreamer.step(0.5)
    assert same(model.net, before) and torch.equal(model(x), logits)
    assert all(not torch.equal(old[key], value) for key, value in dreamer.generator.state_dict().items() if "places" in key)
    assert set(seen.images.facts) == {"position", "twins"} and not seen.images.pixels.requires_grad


def network(shape: tuple[int, int, int], classes: int) -> Model:
    layers = (nn.Conv2d(shape[0], 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    return Model.from_module(nn.Sequential(*layers).eval(), shape, (0.5,) * shape[0], (0.25,) * shape[0])


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 2), ((3, 64, 48), 1000), ((3, 30, 31), 7), ((2, 5, 3), 3)])
def test_generators_fit_any_network(generator: Generator, shape: tuple[int, int, int], classes: int) -> None:
    model = network(shape, classes)
    live = generator.on(model)
    condition = Twins()(model, 7)
    assert live(condition).shape == (7, *shape)
    shares = F.one_hot(condition.labels, classes).float()
    noise = torch.randn(7, 8)
    one, other = (live(replace(condition, labels=labels, noise=noise)) for labels in (condition.labels, shares))
    assert torch.allclose(one, other, atol=1e-5)
    live(condition).square().mean().backward()
    assert all(p.grad is not None for p in live.parameters() if p.requires_grad)


@pytest.mark.parametrize("generator", GENERATORS)
def test_class_position_and_noise_matter(generator: Generator, model: Model) -> None:
    torch.manual_seed(0)
    live = generator.on(model)
    for p in live.parameters():
        nn.init.normal_(p, std=0.3)
    noise, labels = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    position = middle_of(torch.tensor([0, 5, 10, 15]), (4, 4))
    whole = live(Condition(labels, {"position": position}, noise))
    for changed in (
        Condition(labels.flip(0), {"position": position}, noise),
        Condition(labels, {"position": position.flip(0)}, noise),
        Condition(labels, {"position": position}, noise.flip(0)),
    ):
        assert not torch.allclose(whole, live(changed), atol=1e-3)
    near = Condition(labels, {"position": position + 0.1}, noise)
    assert torch.equal(whole, live(near)), "a position is as good as another one in its cell"


def test_a_network_that_sees_no_places_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(ValueError, match="no feature map whose centre of attention"):
        tiny(recipes.find("acq")())(Model.from_module(net, (1, 4, 4), (0.5,), (0.5,)))


def test_centres_are_measured() -> None:
    model = window()
    pixels = spots(model, (0, 0), (1, 2), (3, 5), (3, 5))
    facts = asked((0.1, 0.1), (1.5 / 4, 2.5 / 6), (0.1, 0.9), (3.5 / 4, 3.5 / 6))  # twice right, three rows off, two columns off
    got = inspect(model, Images(pixels, torch.arange(4) % 2, facts))
    assert got.centres_hit == 0.5 and got.centre_distance == pytest.approx((3 / 4 + 2 / 6) / 4)
    other = inspect(model, Images(pixels, torch.arange(4) % 2))
    assert other.centres_hit is None and other.centre_distance is None


@pytest.mark.parametrize(("generator", "updates"), [(Placed(32, 16), 250), (PlaceNormed(32, 16), 50)])
def test_attention_follows_when_it_is_trained_to(generator: Generator, updates: int) -> None:
    """The generator, the loss and the measure together, where the answer is easy: a bright spot is the centre."""
    model = window(4, 4)
    torch.manual_seed(0)
    dreamer = Dream(AttentionCentre(), generator, Adam(4e-3, (0.5, 0.999)), Twins(), 32).on(model)
    start = inspect(model, dreamer.draw(torch.arange(64) % 2, Run())).centres_hit
    for _ in range(updates):
        dreamer.step(0.0)
    end = inspect(model, dreamer.draw(torch.arange(64) % 2, Run())).centres_hit
    assert start is not None and end is not None and start < 0.2 and end > 0.5


@pytest.mark.parametrize("count", [1, 4])
def test_a_killed_job_continues_to_the_same_bits(count: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, x = tiny(recipes.find("acq")(bits="w3a3")), torch.randn(4, 3, 16, 16)
    run = Run(1, tmp_path / "whole", save_every=0.0)
    whole = recipe(model, run=run)(x)
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        recipe(model, run=Run(1, tmp_path / "killed", save_every=0.0))
    monkeypatch.undo()
    again = Run(1, tmp_path / "killed", save_every=0.0)
    assert torch.equal(whole, recipe(model, run=again)(x))
    assert run.kept.images and again.kept.images
    assert torch.equal(run.kept.images.facts["position"], again.kept.images.facts["position"])


def test_synq_goes_onto_it(model: Model) -> None:
    recipe = tiny(chosen("synq_on:acq", "w3a3", "fast", None))
    step = recipe.steps[-1]
    assert "SaliencyMatch" in repr(step.learn.loss) and step.learn.transforms  # type: ignore[attr-defined]
    assert recipe(model)(torch.randn(2, 3, 16, 16)).isfinite().all()
