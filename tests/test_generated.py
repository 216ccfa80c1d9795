"""A result's generator dreams again: which images, for whom, again the same, and what is told when it cannot."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import failing
from dreamquant import Images, recipes
from dreamquant.cli import main
from dreamquant.generated import trained
from dreamquant.loading import load_file as load_python
from dreamquant.losses.algebra import Sum
from dreamquant.losses.image import ClassTarget
from dreamquant.reading import parts, read
from dreamquant.recipe import dreams

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--set", "steps.CoTrain.stages.0.iterations=3", "--set", "steps.CoTrain.stages.2.iterations=2", "--set", "steps.CoTrain.count=24"),
    *("--set", "steps.CoTrain.dream.generator.width=8", "--set", "steps.CoTrain.dream.batch=12", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short job that trained a generator."""
    folder = tmp_path_factory.mktemp("job") / "out"
    assert main(["quantize", "zoo:resnet-digits", "--recipe", "causal_dfq", "--bits", "w4a4", *SMALL, "--out", str(folder)]) == 0
    return folder


def dream(folder: Path, out: Path, *more: str) -> Images:
    assert main(["dream", str(folder), "--out", str(out), "--device", "cpu", *more]) == 0
    return Images.load(out)


def test_more_images_of_the_classes_asked_for(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # nothing is broken over lines
    some = dream(made, tmp_path / "some", "--count", "7", "--labels", "3,5")
    assert some.labels.tolist() == [3, 5, 3, 5, 3, 5, 3] and some.pixels.shape == (7, 1, 8, 8)
    said = capsys.readouterr().out
    assert "7 images" in said and "images in which the network sees the class" in said and str(tmp_path / "some") in said
    assert {entry.name for entry in (tmp_path / "some").iterdir()} >= {"images.safetensors", "preview.png"}
    assert not (tmp_path / "some" / ".work").exists()
    every = dream(made, tmp_path / "every", "--count", "25")
    assert sorted(every.labels.bincount(minlength=10).tolist()) == [2] * 5 + [3] * 5


def test_the_generator_is_the_one_that_was_trained(made: Path) -> None:
    found = trained(made)
    state = found.generator.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_file(made / "generator.safetensors").items())
    (whole,) = dreams(recipes.find("causal_dfq")("w4a4"))
    assert found.dream == replace(whole, batch=12, generator=replace(whole.generator, width=8))
    assert found.model.classes == 10


def test_seeds_make_images_and_make_them_again(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, other = dream(made, tmp_path / "a", "--count", "5"), dream(made, tmp_path / "b", "--count", "5", "--seed", "1")
    assert first.digest == dream(made, tmp_path / "c", "--count", "5").digest != other.digest
    stamp = (tmp_path / "a" / "images.safetensors").stat().st_mtime_ns
    dream(made, tmp_path / "a", "--count", "5")
    assert (tmp_path / "a" / "images.safetensors").stat().st_mtime_ns == stamp, "what is there is not made again"
    said = failing(["dream", str(made), "--out", str(tmp_path / "a"), "--count", "6"], capsys)
    assert "holds the result of another command (count differs)" in said


def test_any_other_recipe_uses_them(made: Path, tmp_path: Path) -> None:
    assert main(["dream", str(made), "--count", "16", "--device", "cpu"]) == 0
    images = Images.load(made / "dreamed")  # the usual place
    argv = ["quantize", "zoo:resnet-digits", "--recipe", "zeroq", "--device", "cpu", "--images", str(made / "dreamed")]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    used = json.loads((tmp_path / "out" / "report.json").read_text())["images"]
    assert used == {"count": 16, "digest": images.digest, "source": "GivenImages"}


def test_mistakes_are_told_in_a_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*more: str, folder: Path = made) -> str:
        out = tmp_path / "never"
        said = failing(["dream", str(folder), "--out", str(out), *more], capsys)
        assert len(said.strip().splitlines()) == 1 and not out.exists()
        return said

    assert "--count 0: ask for one image" in told("--count", "0")
    assert "--labels 10: " in told("--labels", "3,10") and "10 classes, 0 to 9" in told("--labels", "3,10")
    for text in ("3;5", "-1", "", "3,"):
        assert f"--labels {text!r}" in told("--labels", text)
    assert "choose auto, cpu, cuda" in told("--device", "tpu")
    plain = tmp_path / "plain"
    plain.mkdir()
    said = told(folder=plain)
    assert "holds no generator.safetensors" in said and "gdfq" in said and "causal_dfq" in said and "zeroq" not in said
    assert "holds no generator" in told(folder=tmp_path / "absent")


def test_a_generator_that_cannot_be_had_any_more(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(folder: Path) -> str:
        return failing(["dream", str(folder), "--out", str(tmp_path / "never")], capsys)

    broken, strange, fitting, moved = (tmp_path / name for name in ("broken", "strange", "fitting", "moved"))
    for folder in (broken, strange, fitting, moved):
        shutil.copytree(made, folder, ignore=shutil.ignore_patterns("dreamed", ".lock"))
    weights = load_file(made / "generator.safetensors")
    (broken / "generator.safetensors").write_bytes(b"not a file of tensors")
    assert "not a whole safetensors file" in told(broken)
    call = "[__import__('os').mkdir('harm')]"
    save_file(weights, strange / "generator.safetensors", {"note": json.dumps({"dream": call})})
    assert "written by another version" in told(strange) and not Path("harm").exists()
    save_file(
        {"other": torch.zeros(1)}, fitting / "generator.safetensors", {"note": json.dumps({"dream": repr(dreams(recipes.find("gdfq")()))})}
    )
    assert "written by another version" in told(fitting)
    job = json.loads((moved / ".job.json").read_text())
    job["job"]["model"] = "zoo:gone"
    (moved / ".job.json").write_text(json.dumps(job))
    assert "cannot be had here any more" in told(moved)


@pytest.mark.parametrize("effort", ["fast", "paper"])
@pytest.mark.parametrize("name", recipes.names())
def test_every_dream_is_read_back(name: str, effort: str) -> None:
    made = dreams(recipes.find(name)("w3a3", effort=effort))
    assert read(repr(made), parts()) == made


def test_what_is_read_is_not_run() -> None:
    known = parts()
    assert read("-0.5 * ClassTarget() + ClassTarget(focus=1e-05)", known) == -0.5 * ClassTarget() + ClassTarget(1e-5)
    assert read("(Sum(()), inf, None, 'a', [True])", known) == (Sum(()), float("inf"), None, "a", [True])
    for text in (
        "open('x')",
        "ClassTarget().focus",
        "ClassTarget",
        "[x for x in (1,)]",
        "1 if True else 2",
        "ClassTarget(",
        "ClassTarget(nothing=1)",
    ):
        with pytest.raises(ValueError, match="part"):
            read(text, known)


def test_parts_of_a_users_own_file_are_known(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass, replace\n"
        "from dreamquant.losses.image import ClassTarget\n"
        "from dreamquant.recipes.gdfq import gdfq\n\n"
        "@dataclass(frozen=True)\nclass Mine(ClassTarget):\n    pass\n\n"
        "def mine(bits='w4a4'):\n"
        "    recipe = gdfq(bits)\n    step = recipe.steps[-1]\n"
        "    return replace(recipe, steps=(replace(step, dream=replace(step.dream, loss=Mine())),))\n"
    )
    folder = tmp_path / "out"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("dreamed", ".lock"))
    job = json.loads((folder / ".job.json").read_text())
    job["job"]["recipe"] = f"{file}:mine"
    (folder / ".job.json").write_text(json.dumps(job))
    note = json.dumps({"dream": repr([replace(trained(made).dream, loss=load_python(file).Mine())])})
    save_file(load_file(made / "generator.safetensors"), folder / "generator.safetensors", {"note": note})
    assert type(trained(folder).dream.loss).__name__ == "Mine"


def test_contents_and_styles_are_shown(made: Path) -> None:
    """Causal-DFQ's first experiment, on a folder."""
    module = load_python(ROOT / "experiments" / "causal.py")
    numbers, images, labels = module.seen(trained(made))
    assert images.shape == (10, 8, 1, 8, 8) and labels.tolist() == list(range(10))
    assert sum(numbers["pixels"].values()) == pytest.approx(1) and 0 <= numbers["labels_hit"] <= 1


def test_a_generator_that_dreams_its_own_images_used_none_that_were_given(made: Path, tmp_path: Path) -> None:
    assert main(["dream", str(made), "--count", "16", "--device", "cpu", "--out", str(tmp_path / "given")]) == 0
    again = json.loads((made / ".job.json").read_text())["job"]
    settings = [word for setting in again["set"] for word in ("--set", setting)]
    argv = ["quantize", "zoo:resnet-digits", "--recipe", again["recipe"], "--bits", again["bits"], *settings, "--device", "cpu"]
    assert main([*argv, "--images", str(tmp_path / "given"), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["images"]["source"] != "GivenImages"
