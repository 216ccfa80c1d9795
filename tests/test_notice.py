"""A student that training made worse is told of; watching it changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model, Recipe, Run
from dreamquant.learn import Learn
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Adam
from dreamquant.quant.freeze import freeze
from dreamquant.quant.program import Op
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.quant.ranges import MinMax
from dreamquant.quant.scheme import uniform
from dreamquant.quant.student import Student, convert
from dreamquant.steps import finetune, reconstruct
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.finetune import FineTune
from dreamquant.steps.notice import deployment_remark, distance, mixtures, noticing, relative, ruin_remark
from dreamquant.steps.reconstruct import Reconstruct
from dreamquant.synthesis.pixels import NoImages


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(3)
    return Images(torch.randn(48, 3, 16, 16, generator=generator), torch.arange(48) % 10)


def calibrated(model: Model, images: Images, bits: str = "w3a3") -> Student:
    student = convert(model, uniform(bits))
    Calibrate(MinMax())(student, model, images, Run())
    return student


def tuned(model: Model, images: Images, rate: float) -> tuple[list[str], Student]:
    student, run = calibrated(model, images), Run()
    FineTune(Learn(SoftLabel(4.0), Adam(rate)), iterations=25, batch=16)(student, model, images, run)
    return run.notes, student


def test_a_student_that_training_ruined_is_told_of_and_a_good_one_is_not(model: Model, images: Images) -> None:
    notes, bad = tuned(model, images, 1.0)
    assert len(notes) == 1 and notes[0].startswith("training made the student worse: ")
    notes, good = tuned(model, images, 1e-3)
    assert not notes
    unseen, start = mixtures(images), calibrated(model, images)
    assert distance(good, model, unseen) < distance(start, model, unseen) < distance(bad, model, unseen)


def test_reconstruction_is_watched_as_well(model: Model, images: Images) -> None:
    def rebuilt(step: Reconstruct) -> list[str]:
        student, run = calibrated(model, images, "w2a8"), Run()
        SetWeightRanges(MinMax())(student, model, images, run)
        step(student, model, images, run)
        return run.notes

    step = Reconstruct(30, batch=16)
    assert not rebuilt(replace(step, rounding=Adam(0.03)))
    assert rebuilt(replace(step, activation_steps=Adam(1.0), drop=0.0))


def test_a_network_that_is_lost_is_told_of(model: Model, images: Images) -> None:
    tune = FineTune(Learn(SoftLabel(4.0), Adam(1.0)), iterations=5, batch=16)
    recipe, run = Recipe("ruined", NoImages(), uniform("w8a8"), (Calibrate(MinMax()),)), Run()
    assert ruin_remark(recipe.quantize(model, images, Run()), model, images) is None
    replace(recipe, steps=(*recipe.steps, tune)).quantize(model, images, run)
    assert [note for note in run.notes if note.startswith("little is left of the network: quantized, it predicts")]


def test_a_deployment_that_computes_something_else_is_told_of(model: Model, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("rounded", NoImages(), uniform("w8a8"), (Calibrate(MinMax()),))
    sound, run = recipe.quantize(model, images, Run()), Run()
    assert deployment_remark(sound, images) is None

    def mirrored(op: Op) -> Op:
        return replace(op, tensors={**op.tensors, "scale": -op.tensors["scale"]}) if op.kind == "linear" else op

    broken = replace(sound.deployed(), program=tuple(mirrored(op) for op in sound.deployed().program))
    monkeypatch.setattr(QuantizedModel, "deployed", lambda _: broken)
    recipe.quantize(model, images, run)
    assert len(run.notes) == 1 and run.notes[0].startswith("deployment will do harm: integer kernels predict what")


def test_watching_changes_nothing(model: Model, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def looking_away(*_: object) -> Iterator[None]:
        yield

    _, watched = tuned(model, images, 1e-3)
    monkeypatch.setattr(finetune, "noticing", looking_away)
    monkeypatch.setattr(reconstruct, "noticing", looking_away)
    _, alone = tuned(model, images, 1e-3)
    one, other = freeze(watched, {}), freeze(alone, {})
    assert torch.equal(one(images.pixels), other(images.pixels))
    state = torch.random.get_rng_state()
    monkeypatch.undo()
    with noticing(watched, model, images, Run()):
        pass
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_student_that_is_its_teacher_has_no_error(model: Model, images: Images) -> None:
    student = convert(model, uniform("w8a32"))
    assert distance(student, model, mixtures(images)) < 0.01
    got, wanted = torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    assert relative(got, wanted) == 2 / 2  # squared errors 1 + 1, squared deviations 1 + 1


def test_mixtures_are_of_two_images_each(images: Images) -> None:
    found = mixtures(images).pixels
    assert found.shape == images.pixels.shape
    halves = images.pixels[:, None] / 2 + images.pixels[None] / 2
    apart = (found[0] - halves).flatten(2).abs().amax(2)
    assert (apart < 1e-6).sum() == 2 and not (apart.diagonal() < 1e-6).any()  # one pair, in two orders


def test_notes_survive_a_kill(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        for number in (run := Run(folder=tmp_path, save_every=0.0)).loop("x", 3):
            if number == 1:
                raise KeyboardInterrupt
            run.note("the student is worse")
    again = Run(folder=tmp_path)
    assert list(again.loop("x", 3)) == [1, 2] and again.notes == ["the student is worse"]
