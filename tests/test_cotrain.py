"""A generator and a student that learn in turns: who is changed by what, on which images, with which ranges, after any kill."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dreamquant import Images, Model, Run, load_model, recipes
from dreamquant.choose import chosen
from dreamquant.dream import Dream
from dreamquant.job import Job, quantize_job
from dreamquant.learn import Learn
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.losses.student import HardLabel, SaliencyMatch, SoftLabel
from dreamquant.optimizers import Adam, Sgd
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import Int, Scheme, scheme_of
from dreamquant.quant.student import Student, convert
from dreamquant.recipe import Recipe, dreams, reads_batch_norm
from dreamquant.recipes.synq import synq_on
from dreamquant.run import GENERATOR, Loop
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Learning, Meeting, OnDreams, Stage, Together
from dreamquant.synthesis.generator import Multiplied
from dreamquant.synthesis.pixels import NoImages
from dreamquant.synthesis.trained import TrainGenerator
from dreamquant.trace import Pair, Trace, Watch
from faults import Killed, killing_after

NONE = Images(torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.long))
DREAM = Dream(BatchNormDeviation() + ClassTarget(), Multiplied(8, 8), batch=8)
LEARN = Learn(SoftLabel(20.0) + HardLabel(), Adam(1e-3))
STAGES: tuple[Stage, ...] = (DreamOnly(3, track=0.9), Together(3), OnDreams(Calibrate(count=8), 8), Learning(2))


@dataclass(frozen=True)
class Disagreement(Loss[Pair]):
    """What an adversarial generator reads: the student's logits, with a gradient through both networks."""

    needs: ClassVar[frozenset[str]] = frozenset({"student"})

    def __call__(self, seen: Pair) -> Tensor:
        return -(seen.logits - seen.student.logits).square().mean()


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if isinstance(value, Tensor)}


def same(net: nn.Module, before: dict[str, Tensor]) -> bool:
    now = net.state_dict()
    return all(torch.equal(now[key].nan_to_num(), value.nan_to_num()) for key, value in before.items())


def met(model: Model, dream: Dream = DREAM, learn: Learn = LEARN) -> tuple[Student, Meeting]:
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    return student, Meeting(CoTrain(dream, learn, STAGES), student, model, Run())


def test_steps_of_weights_that_were_never_set_cannot_be_learned(model: Model) -> None:
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match="conv1: the step of its weights .* add a SetWeightRanges step"),
        student.training(weights=LearnSteps()),
    ):
        pass
    SetWeightRanges()(student, model, Images(torch.empty(0, 3, 16, 16), torch.empty(0)), Run())
    with student.training(weights=LearnSteps()):
        assert all(layer.quantizer.scale.requires_grad for layer in student.layers().values())


@pytest.mark.parametrize("reads_student", [False, True])
def test_each_side_changes_itself_alone(model: Model, reads_student: bool) -> None:
    dream = replace(DREAM, loss=DREAM.loss + Disagreement()) if reads_student else DREAM
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with student.observing(RunningMinMax()), torch.no_grad():
        student.net(torch.randn(8, 3, 16, 16))
    teacher = copied(model.net)
    with student.training(LEARN.activations):
        state = Meeting(CoTrain(dream, LEARN), student, model, Run())
        before, generator = copied(student.net), copied(state.dreamer.generator)
        seen = state.dreamer.step(0.0)
        assert same(student.net, before) and same(model.net, teacher), "the generator's step"
        assert not same(state.dreamer.generator, generator)
        assert all(p.grad is None for p in [*student.net.parameters(), *model.net.parameters()])
        generator = copied(state.dreamer.generator)
        state.learner.step(seen.images, 0.0, seen)
        assert same(state.dreamer.generator, generator) and same(model.net, teacher), "the student's step"
        assert not same(student.net, before)


def test_a_generator_feels_the_student(model: Model) -> None:
    """Item 9: the gradient of an adversarial loss reaches the generator through the quantized student."""
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with student.observing(RunningMinMax()), torch.no_grad():
        student.net(torch.randn(8, 3, 16, 16))
    gradients = []
    for shift in (0.0, 3.0):
        torch.manual_seed(3)
        dreamer = replace(DREAM, loss=Disagreement()).on(model, student)
        dict(student.net.named_parameters())["linear.bias"].data[0] += shift
        torch.manual_seed(4)
        dreamer.step(0.0)
        gradients.append(torch.cat([p.grad.flatten() for p in dreamer.mine if p.grad is not None]))
    assert gradients[0].abs().sum() > 0 and not torch.allclose(gradients[0], gradients[1])


def test_a_loss_that_reads_a_student_needs_one(model: Model) -> None:
    with pytest.raises(ValueError, match="use CoTrain"):
        replace(DREAM, loss=Disagreement()).on(model)


def test_the_student_learns_on_images_made_before_the_generators_update(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    student, state = met(model)
    with student.observing(RunningMinMax()), torch.no_grad():
        student.net(torch.randn(8, 3, 16, 16))
    taught: list[Images] = []
    monkeypatch.setattr(type(state.learner), "step", lambda self, images, done, seen: taught.append(images))
    first = DREAM.images(model, state.dreamer.generator, seeded(DREAM, model)).pixels.detach()
    Together(1)(state)
    after = DREAM.images(model, state.dreamer.generator, seeded(DREAM, model)).pixels.detach()
    assert torch.equal(taught[0].pixels, first) and not torch.equal(after, first)
    assert not taught[0].pixels.requires_grad


def seeded(dream: Dream, model: Model) -> object:
    """The condition that the loop's first iteration draws, its noise included."""
    run = Run()
    run.path.append("dreaming and learning.0")
    torch.manual_seed(run.number())
    return dream.conditioner(model, dream.batch)


@pytest.mark.parametrize("loss", [SoftLabel(20.0) + HardLabel(), SaliencyMatch() + SoftLabel(4.0)])
def test_a_shared_teacher_pass_changes_nothing(model: Model, loss: Loss[Pair]) -> None:
    """The student's update is the same with the generator's trace and with a pass of its own."""
    ends = []
    for shares in (True, False):
        student, state = met(model, learn=replace(LEARN, loss=loss, optimizer=Sgd(0.01)))
        torch.manual_seed(2)
        with student.observing(RunningMinMax()), torch.no_grad():
            student.net(torch.randn(8, 3, 16, 16))
        with student.training(LEARN.activations):
            state = Meeting(state.part, student, model, Run())
            seen = state.dreamer.step(0.0)
            state.learner.step(seen.images, 0.0, seen if shares else None)
        ends.append(copied(student.net))
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-6, equal_nan=True) for key in ends[0])


def test_a_teacher_pass_is_shared_where_it_will_do(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    real = Watch.__call__

    def counted(self: Watch, images: Images, batch_statistics: bool = False) -> Trace:
        passes.append(self.source is model.net)
        return real(self, images, batch_statistics)

    monkeypatch.setattr(Watch, "__call__", counted)
    for loss, expected in ((LEARN.loss, 1), (LEARN.loss + SaliencyMatch(), 2)):
        student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
        with student.observing(RunningMinMax()), torch.no_grad():
            student.net(torch.randn(8, 3, 16, 16))
        with student.training(LEARN.activations):
            state = Meeting(CoTrain(DREAM, replace(LEARN, loss=loss)), student, model, Run())
            passes.clear()
            Together(1)(state)
        assert sum(passes) == expected and len(passes) == expected + 1


def test_ranges_follow_while_a_stage_says_so_and_then_stand_still(model: Model) -> None:
    """Items 2 and 7: the running mean by hand; frozen afterwards; statistics kept, affine parameters learned."""
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    q = student.activation_quantizers()
    first = next(name for name, part in q.items() if part.live)
    with student.tracking(0.9), torch.no_grad():
        for _ in range(3):
            q[first](torch.tensor([0.0, 2.0]))
        assert float(q[first].scale) * 7 == pytest.approx(2.0), "a constant stream gives its own range"
        q[first](torch.tensor([0.0, 5.0]))
    weights = [0.9**3, 0.9**2, 0.9, 1.0]
    expected = (2 * sum(weights[:3]) + 5) / sum(weights)
    assert float(q[first].scale) * 7 == pytest.approx(expected, rel=1e-5)

    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    run, grids, before = Run(), [], copied(student.net)
    with student.training(LEARN.activations):
        state = Meeting(CoTrain(DREAM, LEARN, STAGES), student, model, run)
        DreamOnly(2, track=0.9)(state)
        assert all(not part.scale.isnan() for part in student.activation_quantizers().values()), "those for deployment, too"
        for _ in range(2):
            grids.append([float(part.scale) for part in student.activation_quantizers().values()])
            Together(2)(state)
        grids.append([float(part.scale) for part in student.activation_quantizers().values()])
    after = copied(student.net)
    assert grids[0] == grids[1] == grids[2]
    assert all(torch.equal(after[key], before[key]) for key in before if "running" in key)
    assert not torch.equal(after["bn1.weight"], before["bn1.weight"])


@pytest.mark.parametrize("reads_student", [False, True])
def test_tracking_looks_once_an_update(model: Model, reads_student: bool) -> None:
    dream = replace(DREAM, loss=DREAM.loss + Disagreement()) if reads_student else DREAM
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    weights: list[float] = []
    with student.training(LEARN.activations):
        state = Meeting(CoTrain(dream, LEARN), student, model, Run())
        part = next(iter(student.activation_quantizers().values()))
        part.register_forward_hook(lambda m, args, out: weights.append(float(m.rule.seen[2])))
        DreamOnly(3, track=0.9)(state)
    assert weights == pytest.approx([0.1, 0.19, 0.271], rel=1e-5)


@pytest.mark.parametrize("stages", [(Together(1),), (DreamOnly(1), Together(1)), (Learning(1),)])
def test_ranges_that_were_never_measured_are_named(model: Model, stages: tuple[Stage, ...]) -> None:
    student = convert(model, scheme_of("w3a3"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never measured; begin with DreamOnly"):
        CoTrain(DREAM, LEARN, stages)(student, model, NONE, Run())


def test_activations_in_float_need_no_ranges(model: Model) -> None:
    student = convert(model, Scheme(Int(4, "channel"), None))
    CoTrain(DREAM, LEARN, (Together(1),), count=4)(student, model, NONE, Run())


def test_schedules_follow_one_clock(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    student, state = met(model)
    done: list[float] = []
    real = type(state.dreamer).step
    monkeypatch.setattr(type(state.dreamer), "step", lambda self, share: (done.append(share), real(self, share))[1])
    CoTrain(DREAM, LEARN, (DreamOnly(2, track=0.9), Together(2)), count=4)(student, model, NONE, Run())
    assert done == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("count", [0, 2, 3, 5, 8, 10, 14, 16])
def test_a_killed_cotraining_continues_to_the_same_bits(
    count: int, learned: bool, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = replace(LEARN, activations=LearnSteps()) if learned else LEARN
    dream = replace(DREAM, loss=DREAM.loss + Disagreement()) if learned else DREAM
    recipe = Recipe("x", NoImages(), scheme_of("w3a3"), (CoTrain(dream, learn, STAGES, count=12),))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    run = Run(1, tmp_path / "whole", save_every=0.0)
    whole = recipe(model, run=run)(x)
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        recipe(model, run=Run(1, tmp_path / "killed", save_every=0.0))
    monkeypatch.undo()
    again = Run(1, tmp_path / "killed", save_every=0.0)
    assert torch.equal(whole, recipe(model, run=again)(x))
    assert run.kept.images and again.kept.images and run.kept.images.digest == again.kept.images.digest
    assert all(torch.equal(value, again.kept.generator[key]) for key, value in run.kept.generator.items())


def test_a_finished_cotraining_is_not_forgotten(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the step: the generator and the images come from the checkpoint of the steps."""
    recipe = Recipe("x", NoImages(), scheme_of("w3a3"), (CoTrain(DREAM, LEARN, STAGES, count=12),))
    first, second = Run(1, tmp_path, save_every=0.0), Run(1, tmp_path, save_every=0.0)
    made = recipe(model, run=first)
    monkeypatch.setattr(CoTrain, "__call__", lambda *all: pytest.fail("it was trained again"))
    again = recipe(model, run=second)
    assert second.curves == first.curves
    assert first.kept.images and second.kept.images and first.kept.images.digest == second.kept.images.digest
    assert second.kept.generator.keys() == first.kept.generator.keys() != set()
    assert made.provenance["images"] == again.provenance["images"] == first.kept.images.digest


def test_the_divergence_per_class_is_that_per_image_shared_out(model: Model) -> None:
    """Item 4: reductions differ by the number of classes; at T = 20 it is half the variance of the difference."""
    torch.manual_seed(0)
    teacher = torch.randn(6, 10)
    student = teacher + 0.5 * torch.randn(6, 10)
    images = Images(torch.zeros(6, 3, 16, 16), torch.zeros(6, dtype=torch.long))
    watch = Watch(model, frozenset())

    def traced(logits: Tensor) -> Trace:
        return Trace(images, logits, {}, {}, watch, lambda: None)

    both = Pair(images, teacher, {}, {}, watch, lambda: None, student=traced(student))
    whole, shared = float(SoftLabel(20.0)(both)), float(SoftLabel(20.0, per_class=True)(both))
    assert shared * 10 == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(float((teacher - student).var(1, unbiased=False).mean() / 2), rel=0.05)
    by_hand = F.softmax(teacher / 20, 1) * (F.log_softmax(teacher / 20, 1) - F.log_softmax(student / 20, 1))
    assert whole == pytest.approx(400 * float(by_hand.sum(1).mean()), rel=1e-4)


def test_a_teacher_in_train_mode_is_left_as_it_was(model: Model) -> None:
    """Item 10: ACQ's second pass with the batch's statistics."""
    before, x = copied(model.net), torch.randn(8, 3, 16, 16)
    logits = model(x)
    seen = Watch(model, frozenset({"bn"}))(Images(x, torch.zeros(8, dtype=torch.long)))
    other = seen.again(batch_statistics=True)
    assert not torch.allclose(other.logits, logits) and same(model.net, before) and torch.equal(model(x), logits)
    assert all(torch.allclose(seen.moments[name].first, other.moments[name].first) for name in list(seen.moments)[:1])


def test_synq_goes_onto_cotraining(model: Model) -> None:
    recipe = synq_on(recipes.find("gdfq")(bits="w3a3"))
    step = recipe.steps[-1]
    assert isinstance(step, CoTrain) and step.learn.transforms and "SaliencyMatch" in repr(step.learn.loss)


TINY = tuple(
    f"steps.CoTrain.{setting}"
    for setting in (
        "dream.batch=8",
        "count=12",
        "stages.DreamOnly.iterations=2",
        "stages.OnDreams.count=16",
        "stages.Together.iterations=2",
    )
)


def test_the_folder_gets_images_and_a_generator_that_makes_more(tmp_path: Path) -> None:
    quantize_job(Job("zoo:resnet-digits", "gdfq", "w4a4", device="cpu", set=TINY), tmp_path / "out")
    images = Images.load(tmp_path / "out" / "images")
    assert images.pixels.shape == (12, 1, 8, 8) and (tmp_path / "out" / "images" / "preview.png").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["images"]["digest"] == images.digest
    model, (dream,) = load_model("zoo:resnet-digits"), dreams(chosen("gdfq", "w4a4", "fast", None, TINY))
    generator = dream.generator.on(model)
    generator.load_state_dict(load_file(tmp_path / "out" / GENERATOR))
    more = dream.draw(model, generator, torch.tensor([3, 5, 3]), Run(7), companions=6)
    assert more.pixels.shape == (3, 1, 8, 8) and more.labels.tolist() == [3, 5, 3]


def test_a_cached_set_of_images_brings_its_generator(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("x", TrainGenerator(DREAM, iterations=2, count=8), scheme_of("w3a3"), ())
    first, second = Run(0, images_cache=tmp_path), Run(0, images_cache=tmp_path)
    images = recipe.dream(model, first)
    monkeypatch.setattr(TrainGenerator, "__call__", lambda *all: pytest.fail("it was trained again"))
    assert recipe.dream(model, second).digest == images.digest and second.curves == first.curves
    assert first.kept.generator and all(torch.equal(value, second.kept.generator[key]) for key, value in first.kept.generator.items())


def test_a_network_without_batch_norm_is_told_so() -> None:
    for recipe in (recipes.find("gdfq")(), Recipe("x", TrainGenerator(DREAM), scheme_of("w3a3"), ())):
        assert reads_batch_norm(recipe)
    assert not reads_batch_norm(Recipe("x", TrainGenerator(replace(DREAM, loss=ClassTarget())), scheme_of("w3a3"), ()))
