"""The grids can be read, name recipes that exist, and tell no path of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn as nn

from dreamquant import Images, Model
from dreamquant.choose import load_file
from dreamquant.cli.bench import file_name, jobs_of, record
from dreamquant.job import Job, recipe_of_job
from dreamquant.losses.student import HardLabel, SaliencyMatch
from dreamquant.synthesis.transforms import LowPass

FOLDER = Path(__file__).resolve().parent.parent / "experiments"
METHODS = ("third_party", "matched", "edge", "pixels_third_party", "pixels_matched", "plugged", "rebuilt")
GRIDS = [f"methods.py:{name}" for name in (*METHODS, "generators_third_party", "generators_matched")]
GRIDS += ["enhancing.py:ideas"]
GRIDS += [f"ablations.py:{name}" for name in ("ideas", "maps", "thresholds", "cutoffs", "counts")]
GRIDS += [f"causal.py:{name}" for name in ("decoupling", "alignment", "weights", "thresholds")]


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_name_recipes_that_exist(grid: str) -> None:
    jobs = jobs_of(f"{FOLDER / grid}")
    made = {(job.recipe, job.bits, job.set): recipe_of_job(job) for job in jobs}
    names = [file_name(job) for job in jobs]
    assert len(set(names)) == len(jobs), "every job has its own file"
    assert len({repr(recipe) for recipe in made.values()}) == len(made), "every cell is another recipe"
    for job, name in zip(jobs, names, strict=True):
        published = record(job, {})["job"]
        assert str(FOLDER) not in repr([published[key] for key in ("model", "recipe", "weights", "eval", "also", "set")])
        assert "experiments" not in name and "/" not in name


def test_ideas_are_taken_out_one_by_one() -> None:
    module = load_file(FOLDER / "ablations.py")
    whole = recipe_of_job(Job("m", "synq", "w3a3"))
    assert module.with_ideas("123", "w3a3", "fast", None).steps == whole.steps
    for ideas in ("", "1", "2", "3", "12", "13", "23"):
        recipe = module.with_ideas(ideas, "w3a3", "fast", None)
        calibrate, tune = recipe.steps
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
        "s": ("ClassMeanLikeness", "PassedMatch", "LearnClips"),
    }
    for ideas in ("", *(row for row in module.ROWS if row != "none")):
        text = repr(module.with_ideas(ideas, "w3a3", "fast", None))
        for idea, words in marks.items():
            assert [word in text for word in words] == [idea in ideas] * len(words), (ideas, idea)
        assert "BatchNormDeviation" in text and "ClassTarget" in text and "SoftLabel" in text


def test_figures_of_sets_of_images(tiny_net: nn.Module) -> None:
    module = load_file(FOLDER / "enhancing.py")
    model = Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    sets = {name: Images(torch.randn(40, 3, 16, 16), torch.arange(40) % 10) for name in ("mine", "other's")}
    page = module.figures(model, sets, [0, 1, 2])
    assert page.count("<svg") == 2 + 3 and "other's, class 0" in page
