"""What is measured of a set of images, by loops and on images made to measure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model
from dreamquant.inspection import class_balance, inspect, spectrum_slope
from dreamquant.job import Job, quantize_job
from dreamquant.losses.image import BatchNormDeviation, features
from dreamquant.report.page import image_rows
from dreamquant.trace import Watch
from oracles import FACTS, twelve_images


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def test_similarity_by_loops(model: Model) -> None:
    images = twelve_images()
    found = features(Watch(model, frozenset({"features"}))(images))
    overall, within = [], []
    for i in range(12):
        for j in range(12):
            if i != j:
                cosine = float(found[i] @ found[j] / (found[i].norm() * found[j].norm()))
                overall.append(cosine)
                if images.labels[i] == images.labels[j]:
                    within.append(cosine)
    got = inspect(model, images)
    assert got.similarity == pytest.approx(sum(overall) / len(overall), rel=1e-4)
    assert got.similarity_within_class == pytest.approx(sum(within) / len(within), rel=1e-4)


def test_copies_are_alike(model: Model) -> None:
    images = Images(twelve_images().pixels[:1].expand(6, -1, -1, -1), torch.arange(6) % 2)
    got = inspect(model, images)
    assert got.similarity == pytest.approx(1) and got.similarity_within_class == pytest.approx(1)


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


def test_what_cannot_be_measured_is_none() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    model = Model.from_module(net, (1, 4, 4), (0.5,), (0.5,))
    got = inspect(model, Images(torch.randn(3, 1, 4, 4), torch.arange(3)))
    assert got.batch_norm_deviation is None and got.similarity_within_class is None and got.spectrum_slope is None
    assert inspect(model, Images(torch.randn(1, 1, 4, 4), torch.zeros(1, dtype=torch.long))).similarity is None
    with pytest.raises(ValueError, match="no images"):
        inspect(model, Images(torch.empty(0, 1, 4, 4), torch.empty(0, dtype=torch.long)))
    assert len(image_rows(asdict(got))) == 4


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
    assert "spectrum slope" in page and "Measured on 128 of them" in page
