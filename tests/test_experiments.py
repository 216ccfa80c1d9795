"""The grids can be read, name recipes that exist, and tell no path of this machine."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

from dreamquant import Images, Model, Run, recipes
from dreamquant.cli.bench import file_name, jobs_of, record
from dreamquant.evaluate import LabelledImages
from dreamquant.job import Job, recipe_of_job
from dreamquant.loading import load_file
from dreamquant.losses.student import HardLabel, SaliencyMatch
from dreamquant.steps.cotrain import CoTrain
from dreamquant.synthesis.transforms import LowPass

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
METHODS = ("third_party", "matched", "edge", "pixels_third_party", "pixels_matched", "plugged", "rebuilt", "pixels_tiny", "generators_tiny")
GRIDS = [
    f"methods.py:{name}"
    for name in (*METHODS, "generators_third_party", "generators_again", "generators_varied", "generators_matched", "halves", "imagenet")
]
GRIDS += ["enhancing.py:ideas", "noise.py", "dreams.py", "spread.py", "cells.py"]
GRIDS += [f"ablations.py:{name}" for name in ("ideas", "maps", "thresholds", "cutoffs", "counts", "plugged")]
GRIDS += [f"causal.py:{name}" for name in ("decoupling", "alignment", "weights", "thresholds")]


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_name_recipes_that_exist(grid: str) -> None:
    jobs = jobs_of(f"{FOLDER / grid}")
    made = {(job.recipe, job.bits, job.set): recipe_of_job(job) for job in jobs}
    names = [file_name(job) for job in jobs]
    assert len(set(names)) == len(jobs), "every job has its own file"
    assert len({repr(recipe) for recipe in made.values()}) == len(made), "every cell is another recipe"
    named = {(recipe.name, bits, settings) for (_, bits, settings), recipe in made.items()}
    assert len(named) == len(made), "tables know recipes by their names"
    for job, name in zip(jobs, names, strict=True):
        published = record(job, {})["job"]
        assert str(FOLDER) not in repr([published[key] for key in ("model", "recipe", "weights", "eval", "also", "set")])
        assert "experiments" not in name and "/" not in name


def test_a_paced_student_begins_at_its_whole_rate_and_ends_at_none() -> None:
    recipe = load_file(FOLDER / "spread.py").paced()
    step = recipe.steps[-1]
    assert isinstance(step, CoTrain)
    rate = step.learn.optimizer.schedule
    assert rate(0.0) == rate(300 / 650) == 1 and rate(475 / 650) == pytest.approx(0.5) and rate(1.0) == pytest.approx(0, abs=1e-9)


def test_ideas_are_taken_out_one_by_one() -> None:
    module = load_file(FOLDER / "ablations.py")
    whole = recipe_of_job(Job("m", "synq", "w3a3"))
    assert module.with_ideas("123", "w3a3", "fast", None).steps == whole.steps
    for ideas in ("", "1", "2", "3", "12", "13", "23"):
        recipe = module.with_ideas(ideas, "w3a3", "fast", None)
        _, calibrate, tune = recipe.steps
        terms = {type(term): term for _, term in tune.learn.loss.terms}
        filtered = [LowPass in {type(transform) for transform in part.transforms} for part in (calibrate, tune.learn)]
        assert filtered == ["1" in ideas] * 2
        assert (SaliencyMatch in terms) == ("2" in ideas)
        assert terms[HardLabel].max_difficulty == (0.7 if "3" in ideas else 1.0)
        assert recipe.synthesis == whole.synthesis


def test_variance_is_shared_out_between_content_and_style() -> None:
    """By sums of squares: effects of 3 and 1 that add, and one that needs both."""
    shares = load_file(FOLDER / "causal.py").shares
    content, style = torch.tensor([3.0, -3.0])[:, None, None], torch.tensor([1.0, -1.0])[None, :, None]
    assert shares(content + 0 * style) == pytest.approx({"content": 1, "style": 0, "both": 0})
    assert shares(7 + content + style) == pytest.approx({"content": 0.9, "style": 0.1, "both": 0}, abs=1e-6)
    assert shares(content * style) == pytest.approx({"content": 0, "style": 0, "both": 1})
    several = torch.randn(5, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert sum(shares(several).values()) == pytest.approx(1)


def test_enhancing_ideas_are_taken_out_one_by_one() -> None:
    """Table 3: what is left out is left out whole, the rest is as it was."""
    module = load_file(FOLDER / "enhancing.py")
    assert module.with_ideas("emfs", "w3a3", "fast", None).steps == recipe_of_job(Job("m", "enhancing_dfq", "w3a3")).steps
    marks = {
        "e": ("ExtractEmbeddings",),
        "m": ("AttentionMixer", "MixedClasses"),
        "f": ("FlowAttention",),
        "s": ("ClassMeanAngle", "PassedMatch"),
    }
    assert "activations=LearnClips()" in repr(recipes.find("enhancing_dfq")("w3a3", "paper"))
    for ideas in ("", *(row for row in module.ROWS if row != "none")):
        text = repr(module.with_ideas(ideas, "w3a3", "fast", None))
        for idea, words in marks.items():
            assert [word in text for word in words] == [idea in ideas] * len(words), (ideas, idea)
        assert "BatchNormDeviation" in text and "ClassTarget" in text and "SoftLabel" in text
        assert "activations=LearnSteps()" in text and "LearnClips" not in text


def test_figures_of_sets_of_images(tiny_net: nn.Module) -> None:
    module = load_file(FOLDER / "enhancing.py")
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    sets = {name: Images(torch.randn(40, 3, 16, 16), torch.arange(40) % 10) for name in ("mine", "other's")}
    charts = module.figures(model, sets, [0, 1, 2])
    assert list(charts) == ["similarity-mine", "similarity-other's", "plane-0", "plane-1", "plane-2"]
    assert all(chart.startswith("<svg") for chart in charts.values()) and "other's, class 0" in charts["similarity-other's"]


def test_noise_is_of_the_strength_that_it_says() -> None:
    """On grey and on nearly black pixels: root of the mean squared change, by hand."""
    module = load_file(FOLDER / "noise.py")
    torch.manual_seed(0)
    grey, dark = torch.full((4, 3, 64, 64), 0.5), torch.full((4, 3, 64, 64), 0.01)
    change = {
        kind: float((module.Noise(**{kind: strength})(grey) - grey).square().mean().sqrt()) for kind, strength in module.STRENGTHS.items()
    }
    assert change == pytest.approx({"gaussian": 0.1, "speckle": 0.1, "salt_and_pepper": 0.1, "uniform": 0.17 / 3**0.5}, rel=0.1)
    assert float((module.Noise(speckle=0.2)(dark) - dark).abs().max()) < 0.02, "speckle follows brightness"
    peppered = module.Noise(salt_and_pepper=0.5)(grey)
    assert set(peppered.unique().tolist()) == {0.0, 0.5, 1.0}
    assert (peppered.amax(1) == peppered.amin(1)).all(), "all channels at once"
    assert torch.equal(module.Noise()(grey), grey)


def test_noisy_images_are_the_same_for_every_step_and_leave_the_others_alone(tiny_net: nn.Module) -> None:
    module = load_file(FOLDER / "noise.py")
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    seen: list[torch.Tensor] = []
    step = module.OnNoisyImages(lambda student, teacher, images, run: seen.append(images.pixels), module.Noise(gaussian=0.1))
    images = Images(model.normalise(torch.rand(8, 3, 16, 16)), torch.zeros(8, dtype=torch.long))
    before = images.pixels.clone()
    for _ in range(2):
        step(None, model, images, Run(3))
    assert torch.equal(*seen) and torch.equal(images.pixels, before)
    assert float((model.pixels(seen[0]) - model.pixels(before)).std()) == pytest.approx(0.09, abs=0.015), "a little is clipped"


def test_animals_and_vehicles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load_file(FOLDER / "methods.py")
    data = tmp_path / "test.tar"
    with tarfile.open(data, "w") as archive:
        for number in range(10):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
            archive.add(tmp_path / f"{number}.png", f"{number}/0.png")
    monkeypatch.setattr(module, "CIFAR", tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "experiments").mkdir()
    found = LabelledImages.open(module.animals())
    assert found.labels == (0, 0, 1, 1, 1, 1, 1, 1, 0, 0) and [np.array(found.read(n))[0, 0, 0] for n in range(10)] == list(range(10))


def test_photographs_take_the_place_of_dreams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load_file(FOLDER / "photographs.py")
    x, y = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3), np.uint8), np.repeat(np.arange(10), 3)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    monkeypatch.setattr(module.METHODS, "ROOT", tmp_path)
    job = Job("zoo:tiny-raw-cifar10", "dream", "w3a3", eval=str(tmp_path / "data.npz"))
    with monkeypatch.context() as small:
        small.setattr(module.METHODS, "third_party_job", lambda *_: job)
        found, model = Images.load(module.photographs(10)), job.load()
    assert found.labels.tolist() == list(range(10)), "every class alike"
    wanted = torch.from_numpy(x[[0, 3, 6, 9, 12, 16, 19, 22, 25, 29]]).permute(0, 3, 1, 2) / 255
    assert torch.allclose(model.pixels(found.pixels), wanted, atol=1e-5)
    monkeypatch.setattr(module, "photographs", str)
    jobs = module.grid()
    residual, more = "scheme.residual=8", "steps.Reconstruct.iterations=1500"
    conventions = {(None, ()), (8, ()), (8, (residual,))}
    assert {job.recipe for job in jobs} == {"dream"} and {job.images for job in jobs} == {"512", "2048"}
    assert {(job.ends, job.set) for job in jobs if job.images == "512"} == conventions
    assert {(job.ends, job.set) for job in jobs if job.images == "2048"} == {(ends, (*settings, more)) for ends, settings in conventions}
    assert len({file_name(job) for job in jobs}) == len(jobs) == 18


def test_a_student_is_trained_with_data_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load_file(FOLDER / "photographs.py")
    monkeypatch.setattr(module.METHODS, "ROOT", tmp_path)
    monkeypatch.setattr(module.METHODS, "CIFAR", tmp_path)
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for number in range(10):
            Image.new("RGB", (32, 32), (20 * number,) * 3).save(tmp_path / "image.png")
            archive.add(tmp_path / "image.png", f"train/{number}/{number}.png")
    job = Job("zoo:tiny-raw-cifar10", "dream", "w3a3", 8, set=("scheme.residual=8",))
    monkeypatch.setattr(module.METHODS, "third_party_job", lambda recipe, *_: replace(job, recipe=recipe))
    found = Images.load(module.training_images(4))
    assert len(found) == 4 and len({float(x.mean()) for x in found.pixels}) == 4, "each of them once"
    (whole,) = module.whole()
    recipe = recipe_of_job(whole)
    assert len(Images.load(whole.images)) == 10 and recipe.scheme.residual == recipe.scheme.ends == 8
    assert [type(step).__name__ for step in recipe.steps] == ["Calibrate", "SetWeightRanges", "FineTune"]


def test_results_become_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plots = load_file(FOLDER / "plots.py")

    def result(recipe: str, kept: float, *settings: str) -> dict[str, object]:
        return {"recipe": recipe, "ends": None, "kept": kept, "job": {"set": list(settings)}}

    counted = [result("synq", 0.8 + 0.01 * n + s / 1000, f"synthesis.count={2**n}") for n in range(6, 12) for s in (0, 1)]
    swept = plots.sweep(counted, "kept")
    assert "synq: count" in swept and swept.count("<use") >= len(counted) and "nan" not in swept
    noisy = result("a", 0.4, "steps.0.noise.gaussian=0.1")
    drawn = plots.bars([result("a", 0.5), result("b", 0.7), result("a", 0.6), noisy, {**result("a", 0.9), "ends": 8}], "kept")
    assert all(f">{name}<" in drawn for name in ("a", "b", "a gaussian=0.1", "a ends 8", "kept"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(name))
    assert plots.read([str(tmp_path)]) == ["one", "two"] and plots.read([str(tmp_path / "two.json")]) == ["two"]
    dreamed = tmp_path / "images"
    Images(torch.randn(6, 3, 16, 16), torch.zeros(6, dtype=torch.long)).save(dreamed)
    np.savez(tmp_path / "real.npz", x=np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8), y=np.zeros(6, int))
    shown = plots.spectra([f"dreamed={dreamed}", f"real={tmp_path / 'real.npz'}"])
    assert all(f">{name}<" in shown for name in ("dreamed", "real", "1/f"))


def test_jobs_that_were_not_evaluated_are_left_out() -> None:
    tables, plots = load_file(FOLDER / "table.py"), load_file(FOLDER / "plots.py")
    nothing = dict.fromkeys(("fp", "quantized", "agreement", "kept", "deployed", "ends"))
    rest = {"model": "net", "recipe": "rtn", "effort": "fast", "device": "cpu", "job": {"set": ["count=2"]}}
    result = {**nothing, **rest, "bits": "w3a3", "seconds": {"synthesis": 0.0, "quantize": 1.0, "total": 1.0}}
    measured = [{**result, "kept": 0.5, "bits": bits} for bits in ("mixed:4.0a4", "w3a3", "w10a10")]
    assert "| rtn count=2 | fast | 1 |  |  |  |  |" in tables.table([result])
    assert tables.pivot([result, *measured], "kept").splitlines()[2:] == [
        "| recipe | effort | w10a10 | w3a3 | mixed:4.0a4 |",
        "|---|---|---|---|---|",
        "| rtn count=2 | fast | 50.0 | 50.0 | 50.0 |",
    ]
    unset = {**result, "job": {}}
    assert tables.compared([unset, {**unset, "kept": 0.5}], [("net", "w3a3", "kept", "")]).splitlines()[2:] == ["| `rtn` | 50.0 |"]
    for draw in (plots.bars, plots.sweep):
        assert draw([result, *measured], "kept") == draw(measured, "kept")
        with pytest.raises(ValueError, match="no result has a value in the column 'float'"):
            draw([result], "float")


def test_spectra_of_images_of_one_channel(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "grey.npz", x=x, y=np.zeros(6, int))
    assert ">grey<" in load_file(FOLDER / "plots.py").spectra([f"grey={tmp_path / 'grey.npz'}"])


def test_a_genotype_is_written_down_wherever_its_model_lies() -> None:
    module = load_file(FOLDER / "cells.py")
    assert module.file_of("zoo:resnet-digits") == module.RESULTS / "zoo-resnet-digits.json"
    assert module.file_of("../nets/net.py:make").parent == module.RESULTS


def test_rows_are_in_the_order_of_what_was_set() -> None:
    tables = load_file(FOLDER / "table.py")
    rising = [(), ("a.share=0.125",), ("a.share=0.25",), ("a.share=0.5",), ("count=64",), ("count=128",), ("mode=deep",), ("mode=flat",)]
    mixed = [rising[n] for n in (7, 2, 5, 0, 3, 6, 1, 4)]
    assert sorted(mixed, key=tables.in_order) == rising


def test_one_grid_leaves_out_what_is_not_of_it() -> None:
    """Known by what each job was, and not by where its data lay; settings count."""
    tables, grid = load_file(FOLDER / "table.py"), f"{FOLDER / 'ablations.py'}:thresholds"
    mine = [json.loads(json.dumps(record(job, {}))) for job in jobs_of(grid)]
    others = [record(job, {}) for name in ("ideas", "counts") for job in jobs_of(f"{FOLDER / 'ablations.py'}:{name}")]
    assert tables.of_grid([*others, *mine], grid) == mine and len(mine) == 15


def test_tables_keep_the_two_conventions_apart() -> None:
    tables = load_file(FOLDER / "table.py")

    def result(kept: float, ends: int | None, seed: int, also: float = 0.0) -> dict[str, object]:
        scores = {"fp": {"top1": 0.9}, "quantized": {"top1": 0.8}, "agreement": 0.7, "kept": kept, "deployed": None}
        seconds = {"synthesis": 1.0, "quantize": 2.0, "total": 3.0 + seed}
        further = {"b": {**scores, "fp": {"top1": 0.9 + also}}} if also else {}
        rest = {"ends": ends, "effort": "fast", "seed": seed, "seconds": seconds, "also": further}
        return {"model": "net", "recipe": "genie", "bits": "w3a3", "device": "cpu (1 thread)", **scores, **rest}

    results = [result(0.8, None, 0), result(0.82, None, 1, also=0.05), result(0.9, 8, 0)]
    assert tables.pivot(results, "kept").splitlines()[-3:] == [
        "| recipe | effort | w3a3 | w3a3 ends 8 |",
        "|---|---|---|---|",
        "| genie | fast | 81.0 (2.0) | 90.0 |",
    ]
    assert tables.pivot(results, "drop that counts").splitlines()[-1] == "| genie | fast | 12.5 (5.0) | 10.0 |"
    counted = [*results[:1], {**results[1], "job": {"set": ["synthesis.count=64"]}}]
    assert [line[:12] for line in tables.pivot(counted, "kept").splitlines()[-2:]] == ["| genie | fa", "| genie coun"], (
        "no seeds of each other"
    )
    rows = [line.split(" | ")[1:5] for line in tables.table(results).splitlines()[2:]]
    assert rows == [["w3a3", "genie", "fast", "2"], ["w3a3 ends 8", "genie", "fast", "1"]]
    assert tables.named("a", ["steps.0.n=1", "steps.1.n=1", "steps.1.m=2"]) == "a n=1 m=2" and tables.named("a", []) == "a"
    assert tables.named("a", ["steps.0.loss.Term.weight=1"]) == "a Term.weight=1"
    head, _, row, _ = tables.table(results, ("kept", "seconds")).splitlines()
    assert head == "| model | bits | recipe | effort | seeds | kept | seconds |"
    assert row.endswith("| 2 | 81.0 (2.0) | 3.0 |"), "of seconds the least"
    faster = [{**results[0], "device": "a GPU"}, results[1]]
    assert tables.cell("seconds", faster) == "4.0" and tables.cell("seconds", faster[:1]) == "", "seconds are those of a CPU"


@pytest.mark.parametrize(
    "name", ["methods", "ablations", "noise", "enhancing", "causal", "photographs", "dreams", "searched", "spread", "varied"]
)
def test_pages_say_what_their_files_say(name: str) -> None:
    tables, page = load_file(FOLDER / "table.py"), (FOLDER / "results" / f"{name}.md").read_text().splitlines()
    results = load_file(FOLDER / "plots.py").read([str(FOLDER / "results" / name)])
    columns = {tuple(line.strip("| ").split(" | ")[5:]) for line in page if line.startswith("| model |")}
    written = {line for shown in columns for line in tables.table(results, shown).splitlines()[2:]}
    told = {line for line in page if line.startswith(("| zoo:", "| networks.py:"))}
    assert told and told <= written


def test_photographs_are_tabulated_as_their_command_does() -> None:
    folder = FOLDER / "results" / "photographs"
    written = load_file(FOLDER / "table.py").table(load_file(FOLDER / "plots.py").read([str(folder)]))
    assert folder.with_suffix(".md").read_text().endswith(f"\n\n{written}\n")


def test_results_have_the_names_that_bench_gives() -> None:
    for path in (FOLDER / "results").glob("*/*-seed*.json"):
        noted = json.loads(path.read_text())["job"].items()
        settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in noted}
        assert path.name == file_name(Job(**settings))


def test_the_readme_compares_as_its_command_does() -> None:
    tables, readme = load_file(FOLDER / "table.py"), (FOLDER.parent / "README.md").read_text()
    _, between, after = readme.split("<!-- compared -->")
    command = re.search(r"table.py experiments/results/methods --compare ([^`]*)`", after)
    results = load_file(FOLDER / "plots.py").read([str(FOLDER / "results" / "methods")])
    assert command and between.strip() == tables.compared(results, [tables.shown(words) for words in command[1].split()])


def test_a_comparison_names_a_column_that_exists() -> None:
    tables = load_file(FOLDER / "table.py")
    assert tables.shown("net,w3a3,kept") == ("net", "w3a3", "kept", "") and tables.shown("net,w3a3,drop,synq_on")[3] == "synq_on"
    with pytest.raises(ValueError, match="no column 'lost'; choose from float"):
        tables.shown("net,w3a3,lost")
