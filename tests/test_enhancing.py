"""EnhancingDFQ: each idea against its formula, who gets gradients, and resuming between stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from dreamquant import Images, Model, Run, recipes
from dreamquant.dream import Dream
from dreamquant.learn import Learn
from dreamquant.losses.activated import ClassMeanLikeness, PassedMatch
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Adam, Sgd
from dreamquant.quant.quantizer import LearnClips, Quantizer, acting
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import Int, scheme_of
from dreamquant.quant.student import Student, convert
from dreamquant.recipe import Recipe, reads_batch_norm
from dreamquant.recipes.enhancing_dfq import without_batch_norm
from dreamquant.recipes.synq import synq_on
from dreamquant.run import Loop
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Meeting, OnDreams, Stage, Together
from dreamquant.steps.embeddings import Classifier, ExtractEmbeddings, disagreement, embedding_of, spread
from dreamquant.synthesis.conditions import Condition, Uniform
from dreamquant.synthesis.embedded import AddNoise, AttentionMixer, Blend, ClassEmbedded, FlowAttention, MixedClasses, Planar
from dreamquant.synthesis.generator import ClassNormed, Multiplied
from dreamquant.synthesis.pixels import NoImages
from dreamquant.trace import Trace, Watch, pair
from faults import Killed, killing_after

SMALL = ClassEmbedded(8, 8)
DREAM = Dream(ClassTarget() + ClassMeanLikeness() + BatchNormDeviation(), SMALL, conditioner=MixedClasses(0.5), batch=8)
LEARN = Learn(SoftLabel(1.0) + PassedMatch(), Adam(1e-3), activations=LearnClips())
STAGES: tuple[Stage, ...] = (DreamOnly(2), ExtractEmbeddings(3, 2), DreamOnly(1), OnDreams(Calibrate(count=8), 8), Together(3))
NONE = Images(torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.long))


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def small_network(shape: tuple[int, int, int], classes: int) -> Model:
    torch.manual_seed(0)
    layers = (nn.Conv2d(shape[0], 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes))
    return Model.from_module(nn.Sequential(*layers).eval(), shape, (0.5,) * shape[0], (0.25,) * shape[0])


def a_student(model: Model, bits: str = "w3a3") -> Student:
    student = convert(model, scheme_of(bits))  # type: ignore[arg-type]
    with student.observing(RunningMinMax()), torch.no_grad():
        student.net(torch.randn(8, *model.shape, generator=torch.Generator().manual_seed(5)))
    return student


# what is asked for


@pytest.mark.parametrize(("classes", "number"), [(2, 2), (10, 2), (100, 25), (1000, 250)])
def test_mixed_batches_add_up(classes: int, number: int) -> None:
    """Item 5 of generators.md 11.7: shares sum to one, repeated classes add up, the batch is mixed whole or not at all."""
    model = small_network((1, 8, 8), classes)
    torch.manual_seed(1)
    asked = [MixedClasses()(model, 6) for _ in range(40)]
    mixed = [c for c in asked if c.labels.ndim == 2]
    assert 6 <= len(mixed) <= 28
    for c in mixed:
        among, mixture = c.facts["among"], c.facts["mixture"]
        assert among.shape == mixture.shape == (6, number)
        by_hand = (mixture[:, :, None] * F.one_hot(among, classes)).sum(1)
        assert torch.allclose(c.labels, by_hand, atol=1e-6) and torch.allclose(c.labels.sum(1), torch.ones(6))
    assert MixedClasses(0.0)(model, 3).labels.ndim == 1 and MixedClasses(1.0)(model, 3).labels.ndim == 2
    assert MixedClasses(1.0, 5)(model, 3).facts["among"].shape == (3, 5)


# the generator


@pytest.mark.parametrize("part", [SMALL, ClassEmbedded(8, 8, mixing=Blend(), noising=AddNoise(), class_norms=True)])
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 2), ((3, 32, 32), 10), ((3, 30, 31), 7), ((1, 112, 112), 1000)])
def test_generators_fit_any_network(part: ClassEmbedded, shape: tuple[int, int, int], classes: int) -> None:
    model = small_network(shape, classes)
    live = part.on(model)
    for condition in (Uniform()(model, 4), MixedClasses(1.0)(model, 4), Condition(torch.softmax(torch.randn(4, classes), 1))):
        pixels, labels = live(condition)
        assert pixels.shape == (4, *shape) and labels.shape == condition.labels.shape and not labels.requires_grad
        if labels.ndim == 2:
            assert torch.allclose(labels.sum(1), torch.ones(4), atol=1e-5)
    pixels.square().mul(torch.rand_like(pixels)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in live.named_parameters())


def test_the_mixer_is_the_papers_attention() -> None:
    """Eq. 6, one image and one head at a time."""
    torch.manual_seed(2)
    live, table = AttentionMixer(2).on(6), torch.randn(5, 6)
    for layer in (live.query, live.key, live.value):
        nn.init.normal_(layer.weight)  # type: ignore[arg-type, union-attr]
    among, mixture = torch.tensor([[0, 3, 3], [4, 1, 2]]), torch.softmax(torch.randn(2, 3), 1)
    mixed, labels = live(table, Condition(torch.zeros(2, 5), {"among": among, "mixture": mixture}))
    for n in range(2):
        embeddings = table[among[n]]
        query = live.query(mixture[n] @ embeddings)  # type: ignore[operator]
        keys, values = live.key(embeddings), live.value(embeddings)  # type: ignore[operator]
        share = torch.zeros(5)
        for half in (slice(0, 3), slice(3, 6)):
            sigma = torch.softmax(keys[:, half] @ query[half] / 3**0.5, 0)
            assert torch.allclose(mixed[n, half], sigma @ values[:, half], atol=1e-5)
            share.index_add_(0, among[n], sigma.detach() / 2)
        assert torch.allclose(labels[n], share, atol=1e-6)


def test_mixtures_begin_near_what_is_asked_for() -> None:
    live, table = AttentionMixer(4).on(100), F.layer_norm(torch.randn(10, 100), (100,))
    among, mixture = torch.tensor([[2, 7]]), torch.tensor([[0.75, 0.25]])
    _, labels = live(table, Condition(torch.zeros(1, 10), {"among": among, "mixture": mixture}))
    assert labels[0, 2] > 0.75 and float(labels[0, 2] + labels[0, 7]) == pytest.approx(1.0)
    one, _ = live(table, Condition(torch.tensor([7])))
    assert torch.allclose(one[0], table[7]), "an image of one class is a mixture of one"


def test_the_flow_can_be_inverted() -> None:
    """Determinants are positive even where u would fold space; far from the plane nothing but a shift happens."""
    torch.manual_seed(3)
    flow = Planar(4)
    flow.push.data = -3 * flow.weight.data / flow.weight.data.square().sum()  # w u = -3
    for z in torch.randn(50, 4):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0], z)
        assert torch.linalg.det(jacobian) > 0
    flow.push.data = torch.ones(4) / (flow.weight.data.sum())  # w u = 1
    z = torch.randn(6, 4)
    along = float((flow.weight @ flow.push).detach())
    inverse_of = torch.log1p(torch.exp(torch.tensor(along))) - 1
    u = flow.push + (inverse_of - along) * flow.weight / flow.weight.square().sum()
    by_hand = torch.stack([row + u * torch.tanh(flow.weight @ row + flow.bias) for row in z])
    assert torch.allclose(flow(z), by_hand, atol=1e-5)


def test_every_level_takes_in_its_own_noise() -> None:
    torch.manual_seed(4)
    live = FlowAttention(3, 2).on(8)
    latents, noise = torch.randn(5, 8), torch.randn(5, 8)
    one, two, three = live.flows  # type: ignore[misc]
    bent = [one(noise), two(one(noise)), three(two(one(noise)))]
    assert torch.allclose(live(latents, noise), latents + sum(bent), atol=1e-5), "a sum at first"
    for parameter in live.parameters():
        nn.init.normal_(parameter, std=0.3)
    step, z = latents, noise
    for flow, block in zip(live.flows, live.blocks, strict=True):  # type: ignore[arg-type]
        z = flow(z)
        step = block(step, z)
    assert torch.allclose(live(latents, noise), step)
    assert not torch.allclose(live(latents, noise), live(latents, noise.flip(0)), atol=1e-2), "the noise matters"
    with pytest.raises(ValueError, match="3 heads cannot share a latent of 8"):
        FlowAttention(heads=3).on(8)


# the losses


def test_the_student_is_compared_behind_its_quantizers(model: Model) -> None:
    student, x = a_student(model), torch.randn(4, 3, 16, 16)
    images = Images(x, torch.zeros(4, dtype=torch.long))
    needs = frozenset({"passed", "activations"})
    teacher, mine = Watch(model, needs)(images), Watch(model, needs, student.net)(images)
    assert all(torch.equal(a, b) for a, b in zip(teacher.at["passed"], teacher.at["activations"], strict=True))
    quantizers = [student.activation_quantizers()[name] for name in model.points["activations"]]
    for raw, passed, q in zip(mine.at["activations"], mine.at["passed"], quantizers, strict=True):
        assert len(passed.unique()) <= 8 and torch.equal(q(raw), passed)
    both = pair(teacher, mine)
    gaps = [(a - b).square().mean() for a, b in zip(teacher.at["passed"], mine.at["passed"], strict=True)]
    assert torch.allclose(PassedMatch()(both), torch.stack(gaps).sum())
    units = [gap / t.var() for gap, t in zip(gaps, teacher.at["passed"], strict=True)]
    assert torch.allclose(PassedMatch(relative=True)(both), torch.stack(units).sum(), rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_descent_moves_the_clip_value_as_itself(bits: int) -> None:
    """PACT by hand: d loss / d clip is the sum of the gradients beyond it; a step of size lr moves it by lr times that."""
    q, x = Quantizer(Int(bits)), torch.tensor([0.1, 0.9, 1.3, 2.0], requires_grad=True)
    steps = 2**bits - 1
    q.set(torch.tensor(1.0 / steps), torch.tensor(float(q.format.low)))
    q.scale.requires_grad_(True)
    with acting({q: LearnClips().on(q)}):
        y = q(x)
        assert float(y.detach().max()) == pytest.approx(1.0)
        (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]
    assert q.scale.grad is not None
    assert float(steps * (q.scale.detach() - 0.01 * q.scale.grad)) == pytest.approx(1.0 - 0.01 * 7.0, rel=1e-4)


def test_clips_learn_from_their_own_layer(model: Model) -> None:
    """Eq. 11 trains the ranges: those cut too short grow."""
    student = a_student(model)
    for q in student.activation_quantizers().values():
        q.set(q.scale * 0.3, q.zero)
    learn = Learn(PassedMatch(), Sgd(1e-2), activations=LearnClips())
    with student.training(learn.activations):
        before = {name: float(q.scale.detach()) for name, q in student.activation_quantizers().items() if q.live}
        learner = learn.on(student, model)
        for _ in range(3):
            learner.step(Images(torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.long)), 0.0)
        after = {name: float(student.activation_quantizers()[name].scale) for name in before}
    grown = [after[name] > before[name] for name in before]
    assert sum(grown) >= len(grown) - 1, (before, after)


# embeddings from layers


def test_classifiers_learn_label_and_prediction() -> None:
    logits, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    seen = Trace(Images(torch.zeros(5, 1), labels), teacher, {}, {}, None, lambda: None)  # type: ignore[arg-type]
    p, q = logits.softmax(1), teacher.softmax(1)
    by_hand = -p[range(5), labels].log().mean() + (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(disagreement(logits, seen), by_hand, atol=1e-6)
    assert spread(("a", "b", "c", "d", "e", "f", "g", "h", "i"), 4) == ["c", "e", "g", "i"] and spread(("a",), 4) == ["a"]
    assert Classifier(7, 4, 3)(1e3 * torch.randn(6, 7)).abs().max() < 10, "features of any scale"


def test_embeddings_are_extracted_from_every_layer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Classifier] = []
    real = Classifier.__init__

    def noted(self: Classifier, width: int, latent: int, classes: int) -> None:
        real(self, width, latent, classes)
        made.append(self)

    monkeypatch.setattr(Classifier, "__init__", noted)
    student, run = a_student(model), Run()
    with student.training(LEARN.activations):
        state = Meeting(CoTrain(DREAM, LEARN, STAGES), student, model, run)
        teacher = {key: value.clone() for key, value in model.net.state_dict().items()}
        generator = {key: value.clone() for key, value in state.dreamer.generator.state_dict().items()}
        ExtractEmbeddings(30, 3)(state)
    assert [head.first.in_features for head in made] == [8, 8, 16], "layers of different widths"
    mean = torch.stack([head.last.weight for head in made]).mean(0).detach()
    found = embedding_of(state.dreamer.generator).weight
    assert torch.allclose(found, F.layer_norm(mean, (8,)), atol=1e-5)
    now = state.dreamer.generator.state_dict()
    assert [key for key in now if not torch.equal(now[key], generator[key])] == ["embedding.weight"]
    assert all(torch.equal(model.net.state_dict()[key], value) for key, value in teacher.items())
    curve = [values["classifiers"] for _, values in run.curves["extracting embeddings"]]
    assert sum(curve[-5:]) < sum(curve[:5]) and state.clock == 30


def test_a_generator_without_embeddings_is_named(model: Model) -> None:
    assert embedding_of(Multiplied(8, 8).on(model)).embedding_dim == 8
    with pytest.raises(ValueError, match="no embeddings of classes; use ClassEmbedded"):
        embedding_of(ClassNormed(8, 8).on(model))


# all of it


def test_labels_are_those_of_the_attention(model: Model) -> None:
    student = a_student(model)
    with student.training(LEARN.activations):
        state = Meeting(CoTrain(replace(DREAM, conditioner=MixedClasses(1.0)), LEARN), student, model, Run())
        seen = state.dreamer.step(0.0)
        assert seen.images.labels.shape == (8, 10) and not seen.images.labels.requires_grad
        assert not torch.allclose(seen.images.labels.gather(1, seen.images.facts["among"]), seen.images.facts["mixture"])
        before = [p.clone() for p in state.dreamer.generator.parameters()]
        state.learner.step(seen.images, 0.0, seen)
        assert all(torch.equal(p, b) for p, b in zip(state.dreamer.generator.parameters(), before, strict=True))
        images = state.draw(10)
    assert images.labels.sort().values.tolist() == list(range(10)), "images are drawn of single classes"


@pytest.mark.parametrize("count", [3, 6, 7, 9, 18])
def test_a_killed_training_continues_to_the_same_bits(count: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers, class means, clips and the mixed labels included."""
    recipe = Recipe("x", NoImages(), scheme_of("w3a3"), (CoTrain(DREAM, LEARN, STAGES, count=8),))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = recipe(model, run=Run(1, tmp_path / "whole", save_every=0.0))(x)
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        recipe(model, run=Run(1, tmp_path / "killed", save_every=0.0))
    monkeypatch.undo()
    assert torch.equal(whole, recipe(model, run=Run(1, tmp_path / "killed", save_every=0.0))(x))


def tiny(recipe: Recipe) -> Recipe:
    *ranges, step = recipe.steps
    assert isinstance(step, CoTrain)
    stages = (DreamOnly(2), ExtractEmbeddings(2), OnDreams(Calibrate(count=8), 8), Together(2))
    return replace(recipe, steps=(*ranges, replace(step, dream=replace(step.dream, generator=SMALL, batch=8), stages=stages, count=8)))


@pytest.mark.parametrize("effort", ["fast", "paper"])
def test_synq_goes_onto_it(effort: str, model: Model) -> None:
    quantized = tiny(synq_on(recipes.find("enhancing_dfq")("w3a3", effort)))(model)
    assert quantized(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_networks_without_batch_norm_have_their_way() -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 7, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3))
    model = Model.from_module(nn.Sequential(*layers), (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    recipe = without_batch_norm(recipes.find("enhancing_dfq")("w4a4"))
    assert recipe.name == "without_batch_norm:enhancing_dfq" and not reads_batch_norm(recipe)
    assert tiny(recipe)(model)(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(ValueError, match="trains no generator to match"):
        without_batch_norm(recipe)
    with pytest.raises(ValueError, match="trains no generator"):
        without_batch_norm(recipes.find("rtn")("w4a4"))
