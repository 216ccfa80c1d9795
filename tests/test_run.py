"""Loops: seeded, saved, resumed after a kill at any place; recipes give the same bits again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model, Run, recipes
from dreamquant.folder import write_tensors
from dreamquant.losses.image import BatchNormDeviation
from dreamquant.optimizers import Adam, Cosine, Decay, Sgd, pace
from dreamquant.recipe import Recipe, changed, scaled
from dreamquant.run import Loop
from dreamquant.synthesis.pixels import OptimizePixels, balanced
from faults import Killed, killing_after

SMALL = ("synthesis.count=20", "synthesis.batch=8", "synthesis.iterations=3")
STEPS = {"FineTune": 4, "Reconstruct": 1}


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def small(name: str, bits: str = "w3a3") -> Recipe:
    recipe = recipes.find(name)(bits=bits)
    learning = [name for step in recipe.steps if (name := type(step).__name__) in STEPS]
    for setting in (*SMALL, *(f"steps.{name}.iterations={STEPS[name]}" for name in learning)):
        recipe = changed(recipe, setting)
    return recipe


@pytest.mark.parametrize("name", ["synq", "dream"])
@pytest.mark.parametrize("count", [0, 2, 5, 9, 14])
def test_a_killed_run_continues_to_the_same_bits(
    name: str, count: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = small(name)(model, run=Run(1, tmp_path / "whole", save_every=0.0))(x)
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        small(name)(model, run=Run(1, tmp_path / "killed", save_every=0.0))
    monkeypatch.undo()
    resumed = small(name)(model, run=Run(1, tmp_path / "killed", save_every=0.0))(x)
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("count", [2, 5, 14, 20])
def test_a_resumed_run_tells_the_whole_story(count: int, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str) -> Run:
        made = Run(1, tmp_path / name, save_every=0.0)
        small("synq")(model, run=made)
        return made

    whole = run("whole")
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        run("killed")
    monkeypatch.undo()
    resumed = run("killed")
    assert resumed.curves == whole.curves and resumed.notes == whole.notes


def test_the_seconds_of_an_interrupted_run_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(run: Run) -> None:
        for phase in ("synthesis", "quantize"):
            with run.clock(phase):
                for _ in run.loop(phase, 6):
                    time.sleep(0.01)

    first, second, third = (Run(folder=tmp_path, save_every=0.0) for _ in range(3))
    for run, saves in ((first, 3), (second, 6)):  # in the first phase, then in the second one
        monkeypatch.setattr(Loop, "save", killing_after(saves))
        with pytest.raises(Killed):
            work(run)
        monkeypatch.undo()
    work(third)
    assert min(third.seconds.values()) >= 0.06
    assert second.seconds["synthesis"] <= third.seconds["synthesis"] < sum(run.seconds["synthesis"] for run in (first, second, third))


def test_the_seed_decides(model: Model) -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, same, other = (small("distill")(model, seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_iterations_are_seeded_by_their_place() -> None:
    def draws(run: Run, start: int) -> list[float]:
        return [float(torch.rand(())) for number in run.loop("x", 5) if number >= start]

    assert draws(Run(0), 0)[2:] == draws(Run(0), 2)
    assert draws(Run(0), 0) != draws(Run(1), 0)


def test_a_value_that_is_not_finite_stops_and_names_the_term() -> None:
    with pytest.raises(FloatingPointError, match="HardLabel"):
        for _ in (loop := Run().loop("fine-tuning", 3)):
            loop.show(SoftLabel=torch.tensor(1.0), HardLabel=torch.tensor(float("nan")))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a whole safetensors file .*delete it and run again"):
        list(Run(folder=tmp_path).loop("x", 3))


def test_loops_that_stop_early_stay_stopped(tmp_path: Path) -> None:
    seen = []
    for number in (loop := Run(folder=tmp_path).loop("x", 10)):
        seen.append(number)
        if number == 3:
            loop.stop()
    assert seen == [0, 1, 2, 3]
    assert list(Run(folder=tmp_path).loop("x", 10)) == []


@pytest.mark.parametrize("count", [100, 7, 128])
def test_any_number_of_images_is_dreamed_with_balanced_labels(count: int, model: Model) -> None:
    images = OptimizePixels(BatchNormDeviation(), count=count, batch=32, iterations=1)(model, Run())
    assert images.pixels.shape == (count, 3, 16, 16)
    counts = images.labels.bincount(minlength=10)
    assert counts.max() - counts.min() <= 1
    shown = model.pixels(images.pixels)
    assert torch.allclose(model.normalise(shown), images.pixels, atol=1e-5), "pixels stay within [0, 1]"


def test_batches_are_of_equal_size(model: Model) -> None:
    images = Images(torch.zeros(17, 3, 16, 16), torch.arange(17) % 10)
    assert [len(part) for part in OptimizePixels(BatchNormDeviation(), batch=4)._parts(images)] == [4, 4, 3, 3, 3]


def test_dreaming_lowers_its_loss_and_stops_early(model: Model) -> None:
    run = Run()
    OptimizePixels(BatchNormDeviation(), count=8, batch=8, iterations=40)(model, run)
    curve = [values["BatchNormDeviation"] for _, values in next(iter(run.curves.values()))]
    assert curve[-1] < 0.7 * curve[0]
    run = Run()
    OptimizePixels(BatchNormDeviation(), count=8, batch=8, iterations=200, optimizer=Adam(0.0), patience=3)(model, run)
    assert max(number for number, _ in next(iter(run.curves.values()))) <= 4


def test_batches_drop_nothing_and_are_full() -> None:
    images = Images(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    seen = torch.cat([images.batch(number, 4).labels for number in range(5)])
    assert len(seen) == 20 and seen.bincount().tolist() == [2] * 10
    assert torch.equal(images.batch(3, 4, seed=5).labels, images.batch(3, 4, seed=5).labels)


def test_images_keep_when_saved(tmp_path: Path) -> None:
    images = Images(torch.randn(5, 1, 4, 4), torch.arange(5), {"style": torch.arange(5)})
    images.save(tmp_path)
    back = Images.load(tmp_path)
    assert torch.equal(back.pixels, images.pixels) and back.digest == images.digest and torch.equal(back.facts["style"], torch.arange(5))
    with pytest.raises(ValueError, match="no dreamed images"):
        Images.load(tmp_path / "nowhere")


PIXELS, LABELS = torch.randn(3, 1, 4, 4), torch.arange(3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv.codes": PIXELS}, "holds no dreamed images: it has no pixels and no labels"),
        ({"pixels": PIXELS}, "it has no labels"),
        ({"pixels": PIXELS[0], "labels": LABELS}, r"pixels \(1, 4, 4\) of torch.float32"),
        ({"pixels": PIXELS.byte(), "labels": LABELS}, "of torch.uint8"),
        ({"pixels": PIXELS[:0], "labels": LABELS[:0]}, "with a label each"),
        ({"pixels": PIXELS, "labels": LABELS[:2]}, r"and labels \(2,\), not images \(N, C, H, W\) with a label each"),
        ({"pixels": PIXELS / torch.arange(3.0).view(3, 1, 1, 1), "labels": LABELS}, "1 of the 3 images in .*x.safetensors hold values"),
        (None, "not a whole safetensors file"),
    ],
)
def test_files_that_hold_no_images_are_refused(tensors: dict[str, torch.Tensor] | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, tensors or {"pixels": PIXELS, "labels": LABELS}, {})
    if tensors is None:
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{message}.*; give the folder of images") as caught:
        Images.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["images", "generator", "checkpoint"])
def test_files_are_as_readable_as_others_and_their_folder_is_made(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    images = Images(torch.randn(2, 1, 4, 4), torch.arange(2))
    if name == "images":
        file = images.save(folder)
    elif name == "generator":
        (run := Run()).kept.generator = images.tensors()
        run.kept.save_generator(folder)
        file = folder / "generator.safetensors"
    else:
        list(Run(folder=folder).loop("x", 1))
        file = folder / "x.safetensors"
    (plain := tmp_path / "plain").touch()
    assert file.stat().st_mode == plain.stat().st_mode
    assert list(folder.iterdir()) == [file]


def test_labels_are_balanced() -> None:
    assert balanced(25, 10).bincount(minlength=10).max() == 3


def test_settings_change_one_field_and_say_what_exists() -> None:
    recipe = recipes.find("synq")()
    assert changed(recipe, "steps.FineTune.learn.optimizer.lr=1e-5").steps[-1].learn.optimizer.lr == 1e-5
    assert changed(recipe, "synthesis.loss.ClassTarget.focus=2").synthesis.loss.terms[1][1].focus == 2.0
    assert changed(recipe, "scheme.residual=8").scheme.residual == 8
    assert changed(recipe, "synthesis.iterations=0").synthesis.iterations == 0
    assert (
        changed(recipes.find("qimera")(), "steps.CoTrain.dream.generator.of_classifier=False").steps[-1].dream.generator.of_classifier
        is False
    )
    for bad, message in (
        ("synthesis.itterations=3", "it has loss, count"),
        ("synthesis.iterations=many", "wants int"),
        ("scheme.residual=many", "residual wants int, got"),
        ("scheme.residual=9", "residual of 9 bits"),
        ("steps.Reconstruct.batch=3", "choose one of SetWeightRanges, Calibrate, FineTune"),
        ("synthesis.optimizer=3", "is a part"),
        ("synthesis.count=-3", "--set synthesis.count=-3: count is 1 at least, not -3"),
        ("synthesis.count=0", "count is 1 at least"),
        ("synthesis.batch=0", "batch is 1 at least"),
        ("steps.Calibrate.count=0", "count is 1 at least"),
        ("synthesis.iterations=-4", "iterations is 0 at least, not -4"),
        ("synthesis.patience=-1", "patience is 0 at least"),
        ("steps.Calibrate.ranges.candidates=0", "candidates is 1 at least"),
        ("synthesis", "part.field=value"),
    ):
        with pytest.raises(ValueError, match=message):
            changed(recipe, bad)


def test_scaled_changes_every_iterations_field() -> None:
    recipe = scaled(recipes.find("distill")(), 0.1)
    assert (recipe.synthesis.iterations, recipe.steps[-1].iterations) == (15, 40)


def test_schedules() -> None:
    assert [round(Decay((0.5,), 0.1)(done), 3) for done in (0.0, 0.49, 0.5, 1.0)] == [1, 1, 0.1, 0.1]
    assert Cosine()(0.0) == 1 and abs(Cosine()(1.0)) < 1e-9 and abs(Cosine()(0.5) - 0.5) < 1e-9
    part = Sgd(0.2, schedule=Cosine())
    live = part.on([torch.zeros(1, requires_grad=True)])
    pace(live, part, 0.5)
    pace(live, part, 0.5)
    assert abs(live.param_groups[0]["lr"] - 0.1) < 1e-9


def test_cached_images_are_not_dreamed_again(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, run = Run(0, images_cache=tmp_path), Run(0, images_cache=tmp_path)
    first = small("distill").dream(model, before)
    monkeypatch.setattr(OptimizePixels, "__call__", lambda *all: pytest.fail("they were dreamed again"))
    again = small("distill").dream(model, run)
    assert torch.equal(first.pixels, again.pixels)
    assert run.curves == before.curves != {} and run.seconds["synthesis"] > 0, "the curves and the time are those of the first dreaming"


def test_a_step_is_shortened_to_a_share_of_what_it_moves() -> None:
    """By hand: |w| = 5, rate 0.1, so a gradient longer than 0.01 * 5 / 0.1 = 0.5 has length 0.5; shorter ones stay."""
    for length, expected in ((10.0, 0.5), (0.25, 0.25)):
        weights = [torch.tensor([3.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)]
        optimizer = Sgd(0.1, momentum=0.0, weight_decay=0.0, nesterov=False, most=0.01).on(weights)
        for w, share in zip(weights, (0.6, 0.8), strict=True):
            w.grad = torch.tensor([share * length])
        optimizer.step()
        moved = [before - w.item() for before, w in zip((3.0, 4.0), weights, strict=True)]
        assert moved == pytest.approx([0.1 * expected * 0.6, 0.1 * expected * 0.8], rel=1e-4)
