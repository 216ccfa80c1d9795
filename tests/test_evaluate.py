"""Reading real images, and the numbers that come of it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
from torch import Tensor

from dreamquant import LabelledImages, Model, evaluate, labelled


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
    for y in ([0, -1, 1], [0.0, 0.5, 1.0]):
        np.savez(tmp_path / "labels.npz", x=x, y=np.array(y))
        with pytest.raises(ValueError, match="wanted class numbers from 0"):
            LabelledImages.open(tmp_path / "labels.npz")
    for content in (b"", b"PK\x03\x04 cut short"):
        (tmp_path / "cut.npz").write_bytes(content)
        with pytest.raises(ValueError, match="no npz"):
            LabelledImages.open(tmp_path / "cut.npz")


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
    assert scores.predictions is not None and scores.predictions.tolist() == [0, 1, 1, 1, 0]
    assert json.loads(json.dumps(scores.as_dict())) == {**scores.as_dict()} and "predictions" not in scores.as_dict()
    first = evaluate(network, LabelledImages.open(tmp_path / "d.npz"), batch=2, limit=3)
    assert (first.images, first.reference_top1, first.kept, first.agreement) == (3, None, None, None)
    wrong = evaluate(network, LabelledImages.open(tmp_path / "d.npz"), Model.from_module(Table([1, 1, 0, 0, 0]), *facts))
    assert wrong.kept is None, "a reference that gets nothing right"


@pytest.mark.parametrize("archived", [False, True])
def test_unreadable_images_are_named_and_counted(archived: bool, model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "x", FILES)
    (source / "a" / "bad.png").write_bytes(b"no image")
    (source / "b" / "cut.png").write_bytes(png(colour(1))[:45])
    data = LabelledImages.open(packed(source) if archived else source)
    assert len(data) == 5 and len(data.unreadable) == 2 and all(name.endswith(("a/bad.png", "b/cut.png")) for name in data.unreadable)
    assert evaluate(model, data).unreadable == data.unreadable


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        image = tarfile.TarInfo("a/0.png")
        image.size = len(png(colour(0)))
        archive.addfile(image, io.BytesIO(png(colour(0))))
        for name, kind, target in (("a/1.png", tarfile.LNKTYPE, "a/0.png"), ("b/2.png", tarfile.SYMTYPE, "/etc/passwd")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    data = LabelledImages.open(tmp_path / "x.tar")
    assert data.names == ("a/0.png",) and data.unreadable == ("a/1.png", "b/2.png")


def test_decoding_is_bounded(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "x", {"0.png": 0, "1.png": 1})
    colour(2, (80, 80)).save(source / "2.png")
    (source / "3.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n")
    monkeypatch.setattr(labelled, "LARGEST_IMAGE", 1000)
    assert LabelledImages.open(source).unreadable == ("2.png", "3.jpg")
    (source / "1.png").write_bytes(png(colour(1)) + b" " * 5000)
    monkeypatch.setattr(labelled, "LARGEST_FILE", 4000)
    for path in (source, packed(source)):
        assert [Path(name).name for name in LabelledImages.open(path).unreadable] == ["1.png", "2.png", "3.jpg"]


@pytest.mark.parametrize("archived", [False, True])
def test_a_class_without_images_keeps_its_number(archived: bool, tmp_path: Path) -> None:
    source = write(tmp_path / "x", {"a/0.png": 0, "c/0.png": 2})
    (source / "b").mkdir()
    (source / ".cache").mkdir()
    data = LabelledImages.open(packed(source) if archived else source)
    assert sorted(data.labels) == [0, 2]


@pytest.mark.parametrize("archived", [False, True])
def test_numbered_images_beside_empty_folders_are_of_one_class(archived: bool, model: Model, tmp_path: Path) -> None:
    source = write(tmp_path / "x", {"b/0.png": 1, "b/1.png": 1, "b/2.png": 1})
    (source / "a").mkdir()
    (source / "c").mkdir()
    data = LabelledImages.open(packed(source) if archived else source)
    assert data.labels == (1, 1, 1) and data.folders == 3
    indexed = write(tmp_path / "y", {"0.png": 0, "2.png": 2})
    (indexed / "notes").mkdir()
    assert sorted(LabelledImages.open(indexed).labels) == [0, 2]


@pytest.mark.parametrize("archived", [False, True])
def test_hidden_folders_are_no_classes(archived: bool, tmp_path: Path) -> None:
    source = write(tmp_path / ".cache" / "x", {"a/0.png": 0, "b/0.png": 1, ".ipynb_checkpoints/0.png": 0, ".trash/a/9.png": 1})
    data = LabelledImages.open(packed(source) if archived else source)
    assert data.labels == (0, 1) and data.folders == 2


@pytest.mark.parametrize("archived", [False, True])
def test_folders_of_some_classes_are_refused(archived: bool, model: Model, tmp_path: Path) -> None:
    """Two of three colours would become classes 0 and 1, whichever they are."""
    source = write(tmp_path / "x", {"blue/0.png": 2, "green/0.png": 1})
    with pytest.raises(ValueError, match="has 2 class folders and the network 3 classes; .* empty where there are no images"):
        evaluate(model, LabelledImages.open(packed(source) if archived else source))
    (source / "amber").mkdir()
    data = LabelledImages.open(packed(source) if archived else source)
    data.check(model)
    assert data.folders == 3 and sorted(data.labels) == [1, 2]
    (source / "white").mkdir()
    with pytest.raises(ValueError, match="has 4 class folders and the network 3 classes"):
        LabelledImages.open(packed(source) if archived else source).check(model)
    LabelledImages.open(write(tmp_path / "indexed", {"0.png": 0, "2.png": 2})).check(model)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gz", "bz2", "xz"])
def test_a_truncated_archive_is_no_smaller_set(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    whole = packed(write(tmp_path / "x", FILES)).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        third = archive.getmembers()[-2]
    path = tmp_path / "cut.tar"
    path.write_bytes(compress(whole))
    assert len(LabelledImages.open(path)) == 5
    damaged = whole[: third.offset] + b"?" + whole[third.offset + 1 :]
    for part in (whole[: third.offset], whole[: third.offset + 100], damaged):
        path.write_bytes(compress(part))
        with pytest.raises(ValueError, match=r"cut\.tar is cut off or damaged after \d files; fetch it again"):
            LabelledImages.open(path)
    path.write_bytes(compress(whole[: third.offset_data + 10]))
    with pytest.raises(ValueError, match="unexpected end of data"):
        LabelledImages.open(path)
    path.write_bytes(compress(whole)[: len(compress(whole)) // 2])
    with pytest.raises(ValueError, match="no folder, tar or npz|is cut off"):
        LabelledImages.open(path)


def test_data_that_cannot_be_used(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation data"):
        LabelledImages.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        LabelledImages.open(tmp_path / "empty")
    (tmp_path / "all" / "a").mkdir(parents=True)
    (tmp_path / "all" / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of 1 images can be read, a/x\.png first \(not an image of a known format\)"):
        LabelledImages.open(tmp_path / "all")
    (tmp_path / "text.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"no folder, tar or npz of images \(file could not be opened successfully\)$"):
        LabelledImages.open(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a/0.png"))
        archive.add(__file__, "a/1.png")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tgz").read_bytes()[:-400])
    with pytest.raises(ValueError, match="no folder, tar or npz"):
        LabelledImages.open(tmp_path / "cut.tar")
    with pytest.raises(ValueError, match="so its class is not known"):
        LabelledImages.open(write(tmp_path / "loose", {"cat.png": 0, "dog.png": 1}))
    with pytest.raises(ValueError, match="class 9; the network knows 0 to 2"):
        evaluate(model, LabelledImages.open(write(tmp_path / "many", {"0.png": 0, "9.png": 1})))


def test_images_are_fitted_to_the_network(tmp_path: Path) -> None:
    write(tmp_path / "x", {"0.png": 0})
    colour(0, (40, 20)).convert("L").save(tmp_path / "x" / "1.png")
    data = LabelledImages.open(tmp_path / "x")
    ((same, _),) = data.batches(Model.from_module(Reads(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3))
    assert (same[0] * 255).round().unique().tolist() == [0, 200], "an image of the right size is left alone"
    for shape in ((3, 8, 8), (3, 96, 96), (1, 10, 12)):
        model = Model.from_module(
            nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)), shape, (0.0,) * shape[0], (1.0,) * shape[0]
        )
        ((x, labels),) = data.batches(model)
        assert x.shape == (2, *shape) and labels.tolist() == [0, 1]


def test_images_of_16_bits_keep_their_greys(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for number, suffix in enumerate(("png", "tif")):
        Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(tmp_path / "x" / f"{number}.{suffix}")
    ((x, _),) = LabelledImages.open(tmp_path / "x").batches(Model.from_module(Reads(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3))
    assert (x * 255).round().unique().tolist() == [30000 // 256]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_unknown_white_cannot_be_read(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), kind)).save(tmp_path / "0.tif")
    with pytest.raises(ValueError, match="pixels of more than 8 bits, of which it is not known what is white"):
        LabelledImages.open(tmp_path)


def test_real_images_and_third_party_weights(data_folder: Path) -> None:
    from dreamquant import load_model

    networks = Path(__file__).resolve().parent.parent / "experiments" / "networks.py"
    facts = {"shape": (3, 32, 32), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    model = load_model(f"{networks}:resnet20", weights=data_folder / "cifar10" / "resnet20.safetensors", **facts)  # type: ignore[arg-type]
    assert evaluate(model, LabelledImages.open(data_folder / "cifar10" / "lossless200.npz")).top1 == pytest.approx(0.90)
