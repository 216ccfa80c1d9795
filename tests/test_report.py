"""The report: a page that stands alone, from what is in a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from PIL import Image

from dreamquant import Images, Model
from dreamquant.quant.freeze import freeze
from dreamquant.quant.scheme import uniform
from dreamquant.report import write_report
from dreamquant.report.layers import bits_of_sums, decibels, layer_rows
from dreamquant.report.likeness import likeness, plane, similarity
from dreamquant.report.page import headline, kilobytes, left_out, percent
from dreamquant.report.pictures import bits_chart, curve_chart, noise_chart, plane_chart, sheet, similarity_chart, spectrum_chart
from test_quantized import small, student_of

RESULT: dict[str, Any] = {
    "model": "zoo:<b>net</b>",
    "recipe": "rtn",
    "bits": "w4a4",
    "ends": None,
    "effort": "fast",
    "seed": 3,
    "device": "cpu",
    "seconds": {"synthesis": 61.0, "quantize": 9.5, "total": 70.5},
    "size_bytes": {"fp32": 1_200_000, "quantized": 150_000},
    "fp": {"top1": 0.9123},
    "quantized": {"top1": 0.8876},
    "agreement": 0.93,
    "kept": 0.951,
    "deployed": {"top1": 0.8811, "agreement_with_simulation": 0.99},
    "eval": "digits.npz",
    "unreadable": [],
    "notes": ["the student ended below round-to-nearest"],
    "left_in_float": {},
    "layers": 2,
    "provenance": {"recipe": "Recipe(name='rtn')", "seed": 3},
}
LAYERS = [
    {"name": "conv1", "kind": "conv2d", "shape": [16, 3, 3, 3], "weight_bits": 4, "activation_bits": 8, "bytes": 300, "sqnr_db": 24.25},
    {"name": "fc", "kind": "linear", "shape": [10, 64], "weight_bits": 4, "activation_bits": None, "bytes": 400, "sqnr_db": None},
]
DETAILS: dict[str, Any] = {
    "command": "dreamquant quantize zoo:net",
    "device": "cpu",
    "seconds": {"synthesis": 61.0, "quantize": 9.5},
    "notes": [],
    "curves": {"pixels": [[0, {"BatchNorm": 3.0}], [50, {"BatchNorm": 1.0}], [100, {"BatchNorm": 0.5}]], "one point": [[0, {"a": 1.0}]]},
    "placement": "paper",
    "images": {"count": 20, "digest": "abc123"},
    "left_in_float": {"head.norm": "a layer norm has no integer form"},
    "layers": LAYERS,
    "measured_on": "64 dreamed images",
}


def make_folder(folder: Path, result: dict[str, Any] = RESULT, details: dict[str, Any] = DETAILS) -> Path:
    (folder / "images").mkdir(parents=True)
    sheet(torch.rand(20, 1, 8, 8), torch.arange(20) % 10, folder / "images" / "preview.png")
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "report.json").write_text(json.dumps(details))
    return folder


def test_the_page_tells_numbers_layers_and_provenance(tmp_path: Path) -> None:
    page = write_report(make_folder(tmp_path / "job")).read_text()
    for expected in (
        "91.2 %",
        "88.8 %",
        "88.1 %",
        "95.1 %",
        "conv1",
        "24.2",
        "16 × 3 × 3 × 3",
        "8.0 times less",
        "1 min 10 s",
        "head.norm",
    ):
        assert expected in page, expected
    assert "the student ended below round-to-nearest" in page
    assert "as in the papers" in page
    assert "Recipe(name=" in page and "dreamquant quantize zoo:net" in page


def test_the_page_stands_alone_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    page = write_report(make_folder(tmp_path / "job")).read_text()
    assert "zoo:<b>net" not in page and "zoo:&lt;b&gt;net" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<script" not in page and "@import" not in page
    assert page.count("<svg") == 2  # layers, and the one phase that has a curve


def test_without_evaluation_the_page_says_how_to_get_it(tmp_path: Path) -> None:
    nothing = {"fp": None, "quantized": None, "agreement": None, "kept": None, "deployed": None, "eval": None}
    page = write_report(make_folder(tmp_path / "job", {**RESULT, **nothing})).read_text()
    assert "--eval DATA" in page and "agreement" not in page


def test_accuracies_are_told_with_their_images_and_error(tmp_path: Path) -> None:
    found = {**RESULT, "eval_images": 200, "eval_classes": 10, "standard_error": 0.02236}
    assert ("test images", "200", "of 10 classes; accuracies ± 2.2 points") in headline(found)
    page = write_report(make_folder(tmp_path / "job", found)).read_text()
    assert "<code>digits.npz</code> (200 images of 10 classes; accuracies ± 2.2 points, the standard error), which was" in page
    before = write_report(make_folder(tmp_path / "before")).read_text()
    assert "<code>digits.npz</code>, which was" in before and "test images" not in before


@pytest.mark.parametrize(
    ("source", "lead", "title"),
    [
        ("OptimizePixels", "without any data", "What the network dreamed"),
        ("GivenImages", "on the images that were given", "The images that it was quantized on"),
        ("Noise", "without any data", "The noise that ranges were measured on"),
    ],
)
def test_the_page_tells_where_images_came_from(source: str, lead: str, title: str, tmp_path: Path) -> None:
    details = {**DETAILS, "images": {**DETAILS["images"], "source": source}}
    page = write_report(make_folder(tmp_path / "job", details=details)).read_text()
    assert f"quantized {lead}</p>" in page and f"<h2>{title}</h2>" in page


def test_the_page_tells_what_is_in_float_when_it_is_deployed(tmp_path: Path) -> None:
    layers = [{**layer, "activation_bits": None, "deployed_bits": None} for layer in LAYERS]
    page = write_report(make_folder(tmp_path / "job", {**RESULT, "bits": "w4a32"}, {**DETAILS, "layers": layers})).read_text()
    assert "activations are in float, when deployed too" in page and "activations in float, folded BatchNorm" in page
    eight = [{**layer, "activation_bits": None, "deployed_bits": 8} for layer in LAYERS]
    page = write_report(make_folder(tmp_path / "other", details={**DETAILS, "layers": eight})).read_text()
    assert "as in the papers" in page and page.count('<td class="n">float</td><td class="n">8</td>') == 2


def test_layers_tell_the_bits_they_read_when_deployed() -> None:
    """The image, and the mean that the last layer reads, are in float as the papers have them."""
    student = student_of(small(), uniform("w4a3"))
    rows = layer_rows(student.source, freeze(student, {}), torch.empty(0, 3, 16, 16))["layers"]
    assert [(row["activation_bits"], row["deployed_bits"]) for row in (rows[0], rows[1], rows[-1])] == [(None, 8), (3, 3), (None, 8)]


def test_equal_folders_give_equal_pages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = make_folder(tmp_path / "a")
    torch.manual_seed(0)
    second = make_folder(tmp_path / "b")
    assert write_report(first).read_bytes() == write_report(second).read_bytes()


def test_files_that_could_not_be_read_are_counted_and_named(tmp_path: Path) -> None:
    page = write_report(make_folder(tmp_path / "job", {**RESULT, "unreadable": [f"cat/{n}.png" for n in range(6)]})).read_text()
    assert "6 files of the evaluation data could not be read: cat/0.png" in page and "and 2 more (all in result.json)" in page


def test_a_name_that_is_no_utf_8_is_told_in_any_locale(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "job", {**RESULT, "unreadable": [os.fsdecode(b"cat/\xff.png")]})
    script = "import sys; from dreamquant.report import write_report; write_report(sys.argv[1])"
    assert left_out([os.fsdecode(b"\xff.png")]).endswith(r"could not be read: \udcff.png")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=plain | {"PYTHONPATH": os.pathsep.join(sys.path)})
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "could not be read: cat/\\udcff.png" in page and "×" in page


@pytest.mark.parametrize(("residual", "bits"), [(None, [3]), (8, [8])])
def test_the_page_tells_what_sums_read(residual: int | None, bits: list[int], tmp_path: Path) -> None:
    found = bits_of_sums(freeze(student_of(small(), replace(uniform("w3a3"), residual=residual)), {}))
    page = write_report(make_folder(tmp_path / "job", details={**DETAILS, "bits_of_sums": found})).read_text()
    assert found == bits and f"through shortcuts has {bits[0]} bits." in page
    assert bits_of_sums(freeze(student_of(small(), uniform("w3a32")), {})) == []


def test_a_folder_without_a_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="result.json is missing"):
        write_report(tmp_path)


def test_headline_leaves_out_what_was_not_measured() -> None:
    rows = headline({**RESULT, "fp": None})
    assert [what for what, _, _ in rows] == ["size", "time"]
    assert percent(None) == "–" and percent(1.0) == "100.0 %"
    assert kilobytes(1_500_000) == "1.50 MB" and kilobytes(2_500) == "2.5 kB"


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_sheet_is_sorted_by_class_and_enlarged(tmp_path: Path, channels: int) -> None:
    classes = torch.tensor([1, 0, 1, 0])
    pixels = classes.float().view(-1, 1, 1, 1).expand(4, channels, 8, 8)  # class 1 is white
    sheet(pixels, classes, tmp_path / "p.png", columns=2)
    picture = Image.open(tmp_path / "p.png").convert("L")
    width, height = picture.size
    assert min(width, height) > 2 * 40
    assert picture.getpixel((5, 5)) == picture.getpixel((width - 5, 5)) == 0
    assert picture.getpixel((5, height - 5)) == 255


def test_charts() -> None:
    assert noise_chart([{"name": "a", "sqnr_db": None}]) == ""
    assert "layer&lt;1&gt;" in noise_chart([{"name": "layer<1>", "sqnr_db": 12.0}])
    assert curve_chart("x", [(0, {"a": 1.0})]) == ""
    assert "<svg" in curve_chart("x", [(0, {"a": 1.0}), (1, {"a": -1.0, "b": 2.0}), (2, {})])


@pytest.mark.parametrize("name", ["b$}{$", "a$b$c", "one$"])
def test_dollars_in_names_are_no_mathematics(name: str) -> None:
    layers = [{**LAYERS[0], "name": name}]
    assert f">{name}</text>" in noise_chart(layers) and f">{name}</text>" in bits_chart(layers)


def test_a_curve_names_what_is_counted() -> None:
    points = [(0, {"a": 1.0}), (1, {"a": 0.5})]
    assert ">tensors</text>" in curve_chart("steps.0/sensitivity: tensors", points)
    assert ">iterations</text>" in curve_chart("images.0/dreaming: batches.2/dreaming", points)


def test_decibels() -> None:
    signal = torch.full((100,), 10.0)
    assert decibels(signal, signal + 1.0) == pytest.approx(20.0)
    assert decibels(signal, signal) is None
    assert decibels(torch.zeros(3), torch.ones(3)) is None
    assert decibels(signal, signal * torch.nan) is None


def test_likeness_is_measured_in_pairs_and_in_a_plane(tiny_net: nn.Module) -> None:
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    labels = torch.tensor([1] * 30 + [0] * 20 + [5])
    found = likeness(model, Images(torch.randn(51, 3, 16, 16), labels))
    assert found["class"] == 1 and len(found["similarity"]) == 24
    assert sorted(found["points"]) == ["0", "1", "5"] and sum(map(len, found["points"].values())) == 51
    assert json.loads(json.dumps(found)) == found
    alone = likeness(model, Images(torch.randn(1, 3, 16, 16), torch.tensor([3])))
    assert alone["similarity"] == [[pytest.approx(1.0)]] and alone["points"] == {"3": [[0.0, 0.0]]}


def test_cosines_and_components_by_hand() -> None:
    rows = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    half = 0.5**0.5
    assert torch.allclose(similarity(rows), torch.tensor([[1, half, 0], [half, 1, half], [0, half, 1]]), atol=1e-6)
    torch.manual_seed(0)
    found = torch.randn(30, 5) * torch.tensor([1.0, 9.0, 0.1, 4.0, 0.1]) + 3
    values, vectors = torch.linalg.eigh(torch.cov(found.T))
    by_hand = (found - found.mean(0)) @ vectors[:, [4, 3]]
    assert torch.allclose(plane(found).abs(), by_hand.abs(), atol=1e-3)
    assert torch.allclose(plane(found + 100), plane(found), atol=1e-3)
    assert plane(torch.randn(3, 1)).shape == (3, 2)


def test_the_page_shows_likeness_where_there_is_one(tmp_path: Path) -> None:
    found = {"class": 2, "similarity": [[1.0, 0.25], [0.25, 1.0]], "points": {"2": [[0.0, 1.0], [2.0, 3.0]]}}
    page = write_report(make_folder(tmp_path / "job", details={**DETAILS, "likeness": found})).read_text()
    assert page.count("<svg") == 4 and "images of class 2" in page and "mean 0.25" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    with_spectrum = {**DETAILS, "spectrum": [8.0, 4.0, 2.0]}
    assert "1/f" in write_report(make_folder(tmp_path / "other", details=with_spectrum)).read_text() and "1/f" not in page
    assert spectrum_chart("x", {"a": [1.0]}) == spectrum_chart("x", {"a": [1.0, 0.0]}) == ""
    assert similarity_chart("x", [[1.0]]) == plane_chart("x", {}) == plane_chart("x", {"a": []}) == ""
