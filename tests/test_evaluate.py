"""Reading real images, and the numbers that come of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
from torch import Tensor

from dreamquant import LabelledImages, Model, evaluate


class Reads(nn.Module):
    """Logits that say how red, green and blue an image is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * 10


@pytest.fixture
def model() -> Model:
    return Model.from_module(Reads(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)


def colour(channel: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    value = [0, 0, 0]
    value[channel] = 200
    return Image.new("RGB", size, tuple(value))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


FILES = {"b/1.png": 1, "a/0.png": 0, "c/2.png": 2, "a/7.png": 0, "c/3.png": 1}  # the last one is green but filed under c


def write(folder: Path, names: dict[str, int]) -> Path:
    for name, channel in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(colour(channel)))
    return folder


def packed(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, "data")
    return folder.with_suffix(".tar")


@pytest.mark.parametrize("archived", [False, True])
def test_class_folders(archived: bool, model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "x", FILES)
    data = LabelledImages.open(packed(source) if archived else source)
    assert len(data) == 5 and sorted(data.labels) == [0, 0, 1, 2, 2]
    assert evaluate(model, data).top1 == pytest.approx(0.8)


@pytest.mark.parametrize("archived", [False, True])
def test_files_named_by_their_class(archived: bool, model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "x", {"0.png": 0, "2.png": 2, "01.png": 1})
    data = LabelledImages.open(packed(source) if archived else source)
    assert sorted(data.labels) == [0, 1, 2] and evaluate(model, data).top1 == 1


def test_arrays(model: Model, tmp_path: Path) -> None:
    x = np.stack([np.array(colour(channel)) for channel in (0, 1, 2)])
    np.savez(tmp_path / "d.npz", x=x, y=np.array([0, 1, 1]))
    assert evaluate(model, LabelledImages.open(tmp_path / "d.npz")).top1 == pytest.approx(2 / 3)
    np.savez(tmp_path / "bad.npz", x=x.astype(np.float32), y=np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="float32"):
        LabelledImages.open(tmp_path / "bad.npz")
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object), y=np.array([0]))
    with pytest.raises(ValueError, match="no npz"):
        LabelledImages.open(tmp_path / "evil.npz")


def test_kept_and_agreement_by_hand(tmp_path: Path) -> None:
    class Table(nn.Module):
        """Looks the logits up by the red value of the first pixel."""

        def __init__(self, classes: list[int]) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.eye(3)[classes])

        def forward(self, x: Tensor) -> Tensor:
            return self.table[(x[:, 0, 0, 0] * 255).round().long().clamp(0, 4)]

    x = np.zeros((5, 4, 4, 3), np.uint8)
    x[:, :, :, 0] = np.arange(5)[:, None, None]
    np.savez(tmp_path / "d.npz", x=x, y=np.array([0, 0, 1, 1, 2]))
    facts = ((3, 4, 4), (0.0,) * 3, (1.0,) * 3)
    reference = Model.from_module(Table([0, 0, 1, 2, 0]), *facts)  # right on the first three
    network = Model.from_module(Table([0, 1, 1, 1, 0]), *facts)  # right on 0, 2, 3; agrees on 0, 2, 4
    scores = evaluate(network, LabelledImages.open(tmp_path / "d.npz"), reference)
    assert scores.top1 == pytest.approx(3 / 5) and scores.reference_top1 == pytest.approx(3 / 5)
    assert scores.kept == pytest.approx(2 / 3) and scores.agreement == pytest.approx(3 / 5)
    assert scores.standard_error == pytest.approx((0.6 * 0.4 / 5) ** 0.5)


@pytest.mark.parametrize("archived", [False, True])
def test_unreadable_images_are_named_and_counted(archived: bool, model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "x", FILES)
    (source / "a" / "bad.png").write_bytes(b"no image")
    (source / "b" / "cut.png").write_bytes(png(colour(1))[:45])
    data = LabelledImages.open(packed(source) if archived else source)
    assert len(data) == 5 and len(data.unreadable) == 2 and all(name.endswith(("a/bad.png", "b/cut.png")) for name in data.unreadable)
    assert evaluate(model, data).unreadable == data.unreadable


def test_data_that_cannot_be_used(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation data"):
        LabelledImages.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        LabelledImages.open(tmp_path / "empty")
    (tmp_path / "all" / "a").mkdir(parents=True)
    (tmp_path / "all" / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of 1 images can be read, a/x\.png"):
        LabelledImages.open(tmp_path / "all")
    (tmp_path / "text.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no folder, tar or npz"):
        LabelledImages.open(tmp_path / "text.tar")
    with pytest.raises(ValueError, match="class 9; the network knows 0 to 2"):
        evaluate(model, LabelledImages.open(write(tmp_path / "many", {"0.png": 0, "9.png": 1})))


def test_images_are_fitted_to_the_network(tmp_path: Path) -> None:
    write(tmp_path / "x", {"0.png": 0})
    colour(0, (40, 20)).convert("L").save(tmp_path / "x" / "1.png")
    data = LabelledImages.open(tmp_path / "x")
    for shape in ((3, 8, 8), (3, 96, 96), (1, 10, 12)):
        model = Model.from_module(
            nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)), shape, (0.0,) * shape[0], (1.0,) * shape[0]
        )
        ((x, labels),) = data.batches(model)
        assert x.shape == (2, *shape) and labels.tolist() == [0, 1]


def test_real_images_and_third_party_weights(data_folder: Path) -> None:
    from dreamquant import load_model

    networks = Path(__file__).resolve().parent.parent / "experiments" / "networks.py"
    facts = {"shape": (3, 32, 32), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    model = load_model(f"{networks}:resnet20", weights=data_folder / "cifar10" / "resnet20.safetensors", **facts)  # type: ignore[arg-type]
    assert evaluate(model, LabelledImages.open(data_folder / "cifar10" / "lossless200.npz")).top1 == pytest.approx(0.90)
