"""What is measured of a set of images, by loops and on images made to measure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model, Run
from dreamquant.dream import Dream
from dreamquant.inspection import class_balance, inspect, spectrum, spectrum_slope
from dreamquant.job import Job, quantize_job
from dreamquant.learn import Learn
from dreamquant.losses.image import BatchNormDeviation, ClassTarget, features
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Adam
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.report.page import image_rows
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Together
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.pixels import NoImages, Noise
from dreamquant.synthesis.trained import TrainGenerator
from dreamquant.trace import Watch
from oracles import FACTS, twelve_images


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def test_similarity_by_loops(model: Model) -> None:
    images = twelve_images()
    found = features(Watch(model, frozenset({"features"}))(images))
    overall, within, between = [], [], []
    for i in range(12):
        for j in range(12):
            if i != j:
                cosine = float(found[i] @ found[j] / (found[i].norm() * found[j].norm()))
                overall.append(cosine)
                (within if images.labels[i] == images.labels[j] else between).append(cosine)
    got = inspect(model, images)
    assert got.similarity == pytest.approx(sum(overall) / len(overall), rel=1e-4)
    assert got.similarity_within_class == pytest.approx(sum(within) / len(within), rel=1e-4)
    assert got.similarity_between_classes == pytest.approx(sum(between) / len(between), rel=1e-4)
    spread = (1 - sum(within) / len(within)) / (1 - sum(between) / len(between))
    assert got.spread_within_class == pytest.approx(spread, rel=1e-2)


def test_copies_are_alike(model: Model) -> None:
    images = Images(twelve_images().pixels[:1].expand(6, -1, -1, -1), torch.arange(6) % 2)
    got = inspect(model, images)
    assert got.similarity == pytest.approx(1) and got.similarity_within_class == pytest.approx(1)


def reading(width: int = 4) -> Model:
    """A network whose features are the pixels of a row, unless negative."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(width, 3))
    nn.init.ones_(net[0].weight)
    return Model.from_module(net.eval(), (1, 1, width), (0.5,), (0.5,))


def rows(*features: tuple[float, ...]) -> Images:
    """Images that the network reads as these features, two classes in turn."""
    return Images(torch.tensor(features).float()[:, None, None], torch.arange(len(features)) % 2)


def test_collapse_is_found_by_hand() -> None:
    model = reading()
    # one image for each class, at right angles
    got = inspect(model, rows((1, 0, 0, 0), (0, 1, 0, 0), (2, 0, 0, 0), (0, 3, 0, 0)))
    assert got.spread_within_class == pytest.approx(0, abs=1e-5) and got.collapse and "of one class look alike" in got.collapse
    # images of a class 60 degrees apart, those of different classes 90
    third = (0.5, 0, 0.75**0.5, 0), (0, 0.5, 0, 0.75**0.5)
    got = inspect(model, rows((1, 0, 0, 0), (0, 1, 0, 0), *third))
    assert got.spread_within_class == pytest.approx(0.5) and got.collapse is None
    # all images alike but for brightness
    got = inspect(model, rows((1, 1, 0, 0), (2, 2, 0, 0), (3, 3, 0, 0), (1, 1, 0.05, 0)))
    assert got.similarity and got.similarity > 0.99 and got.collapse and "any two dreamed images" in got.collapse
    # nothing to compare
    assert inspect(model, rows((1, 0, 0, 0))).collapse is None
    assert inspect(model, rows((1, 0, 0, 0), (0, 1, 0, 0))).collapse is None


def test_a_threshold_lies_between() -> None:
    """Of random features with one direction for each class, more and more of it."""
    model, generator = reading(64), torch.Generator().manual_seed(0)
    random, own = torch.rand(40, 64, generator=generator), 10 * torch.eye(64)[torch.arange(40) % 2]
    spreads = []
    for share in (1.0, 0.5, 0.2, 0.05, 0.02):
        got = inspect(model, Images((share * random + own)[:, None, None], torch.arange(40) % 2))
        spreads.append(got.spread_within_class)
        assert got.spread_within_class is not None and (got.collapse is not None) == (got.spread_within_class < 0.02)
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > 0.02 > spreads[-1]


@dataclass(frozen=True)
class Gallery:
    """A generator that shows one of some pictures: by the class alone, or any of them."""

    pictures: int
    any: bool = False

    def on(self, model: Model) -> nn.Module:
        return _Gallery(self, model)


class _Gallery(nn.Module):
    def __init__(self, part: Gallery, model: Model) -> None:
        super().__init__()
        coarse = 2 * torch.randn(part.pictures, model.shape[0], 4, 4)
        self.any, self.pixels = part.any, nn.Parameter(nn.functional.interpolate(coarse, model.shape[1:]))

    def forward(self, condition: Condition) -> Tensor:
        chosen = torch.randint(len(self.pixels), (len(condition),)) if self.any else condition.labels % len(self.pixels)
        return self.pixels[chosen]


@pytest.mark.parametrize(("generator", "line"), [(Gallery(1), "any two"), (Gallery(10), "of one class"), (Gallery(200, any=True), None)])
@pytest.mark.parametrize("together", [False, True])
def test_a_recipe_says_that_its_generator_collapsed(generator: Gallery, line: str | None, together: bool, model: Model) -> None:
    dream = Dream(ClassTarget(), generator, Adam(1e-6), batch=20)
    if together:
        step = CoTrain(dream, Learn(SoftLabel(), Adam(1e-6)), (DreamOnly(1, track=0.9), Together(1)), count=40)
        recipe = Recipe("x", NoImages(), scheme_of("w4a4"), (step,))
    else:
        recipe = Recipe("x", TrainGenerator(dream, 1, 40), scheme_of("w4a4"), (Calibrate(),))
    run = Run()
    recipe(model, run=run)
    assert len(run.notes) == (line is not None)
    assert all(note.startswith("mode collapse") and str(line) in note and "\n" not in note for note in run.notes)


def test_images_of_no_generator_are_not_called_collapsed(model: Model) -> None:
    run = Run()
    Recipe("x", Noise(40), scheme_of("w4a4"), (Calibrate(),))(model, run=run)
    assert not run.notes


def test_statistics_left_are_those_of_the_whole_set(model: Model) -> None:
    pixels = torch.randn(150, 3, 16, 16, generator=torch.Generator().manual_seed(0))  # more than one chunk
    images = Images(pixels, torch.arange(150) % 10)
    want = BatchNormDeviation()(Watch(model, frozenset({"bn"}))(images)).item()
    assert inspect(model, images).batch_norm_deviation == pytest.approx(want, rel=1e-4)


def test_labels_and_certainty(model: Model) -> None:
    images = twelve_images()
    logits = model(images.pixels)
    wrong = (logits.argmax(1) + 1) % 10
    labels = torch.cat([logits.argmax(1)[:9], wrong[9:]])
    got = inspect(model, Images(images.pixels, labels))
    p = logits.softmax(1)
    assert got.labels_hit == pytest.approx(0.75)
    assert got.teacher_entropy == pytest.approx(float(-(p * p.log()).sum(1).mean()) / math.log(10), rel=1e-4)
    shares = torch.nn.functional.one_hot(labels, 10) * 0.8 + 0.02
    assert inspect(model, Images(images.pixels, shares)).labels_hit == got.labels_hit, "shares of classes count by the largest"


def test_balance() -> None:
    assert class_balance(torch.arange(20) % 10, 10) == pytest.approx(1)
    assert class_balance(torch.arange(3), 10) == pytest.approx(1), "three images cannot show ten classes"
    assert class_balance(torch.zeros(7, dtype=torch.long), 10) == 0
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert class_balance(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("slope", [0.0, -1.0, -2.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
def test_slopes_of_made_spectra_are_found(slope: float, size: tuple[int, int]) -> None:
    noise = torch.randn(40, 3, *size, generator=torch.Generator().manual_seed(0))
    down, across = (torch.fft.fftfreq(length) for length in size)
    radius = (down[:, None].square() + across.square()).sqrt()
    radius[0, 0] = 1
    made = torch.fft.ifft2(torch.fft.fft2(noise) * radius**slope).real
    assert spectrum_slope(made) == pytest.approx(slope, abs=0.06)
    assert spectrum_slope(255 * made + 100) == pytest.approx(slope, abs=0.06), "neither scale nor middle matters"


def test_a_wave_is_seen_at_its_frequency() -> None:
    """Cosines of 3 cycles across and 5 down, one to each ring: amplitude N / 2 in two places of the ring."""
    across, down = torch.arange(16) * (2 * math.pi / 16), torch.arange(24) * (2 * math.pi / 24)
    waves = (3 * across).cos().expand(24, 16)[None, None] + (6 * down).cos()[:, None].expand(24, 16)[None, None]
    found = spectrum(waves)  # 6 cycles in 24 pixels are 4 in 16, the shorter side
    assert len(found) == 8
    assert [int(r) + 1 for r in found.topk(2).indices.sort().values] == [3, 4]
    assert found[[0, 1, 4, 5, 6, 7]].max() < 1e-3 * found[2]


def test_what_cannot_be_measured_is_none() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    model = Model.from_module(net, (1, 4, 4), (0.5,), (0.5,))
    got = inspect(model, Images(torch.randn(3, 1, 4, 4), torch.arange(3)))
    assert got.batch_norm_deviation is None and got.similarity_within_class is None and got.spectrum_slope is None
    assert inspect(model, Images(torch.randn(1, 1, 4, 4), torch.zeros(1, dtype=torch.long))).similarity is None
    with pytest.raises(ValueError, match="no images"):
        inspect(model, Images(torch.empty(0, 1, 4, 4), torch.empty(0, dtype=torch.long)))
    assert got.spread_within_class is None and got.centres_hit is None and len(image_rows(asdict(got))) == 5


def test_many_images_are_sampled_evenly(model: Model) -> None:
    images = twelve_images()
    some = inspect(model, images, most=4)
    assert some.inspected == 4
    assert some == replace(inspect(model, images[torch.tensor([0, 4, 7, 11])]), inspected=4)


def test_a_job_records_and_shows_it(tmp_path: Path) -> None:
    result, _ = quantize_job(Job("zoo:resnet-digits", "rtn", "w4a4", device="cpu"), tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "result.json").read_text())["images"]
    assert kept == result["images"] and kept["inspected"] == 128 and kept["class_balance"] > 0.99
    assert kept["spectrum_slope"] == pytest.approx(0, abs=0.1), "rtn's images are white noise"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "spectrum slope" in page and "cycles per image" in page and "Measured on 128 of them" in page
