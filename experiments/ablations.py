"""SynQ taken apart: `dreamquant bench experiments/ablations.py:ideas --out experiments/results/ablations`.

Its Table 3 (the three ideas alone and together), Figure 6 (kinds of maps), Figure 7 (threshold, cut-off) and Figure 11
(number of images), in our `fast` setting on zoo:tiny-raw-cifar10 at W3A3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.losses.algebra import Sum
from dreamquant.losses.saliency import Cam, GradCam, GradCamPlusPlus, Saliency
from dreamquant.losses.student import SaliencyMatch, SoftLabel
from dreamquant.recipe import Recipe, changed
from dreamquant.recipes import _fast, find
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.transforms import LowPass, Transform

BITS, SEEDS = "w3a3", (0, 1, 2)
TUNE = "steps.FineTune.learn"
EASY = f"{TUNE}.loss.HardLabel.max_difficulty"
CUTOFF = ("steps.Calibrate.transforms.LowPass.cutoff", f"{TUNE}.transforms.LowPass.cutoff")


def with_ideas(ideas: str, bits: str, effort: str, ends: int | None) -> Recipe:
    """SynQ with the ideas named: 1 the filter, 2 the aligned maps, 3 hard labels for easy images only."""
    recipe = find("synq")(bits, effort, ends)
    if "3" not in ideas:
        recipe = changed(recipe, f"{EASY}=1.0")
    ranges, calibrate, tune = recipe.steps
    assert isinstance(calibrate, Calibrate) and isinstance(tune, FineTune) and isinstance(tune.learn.loss, Sum)
    learn = tune.learn
    if "2" not in ideas:
        learn = replace(learn, loss=Sum(tuple(term for term in learn.loss.terms if not isinstance(term[1], SaliencyMatch))))
    if "1" not in ideas:
        learn = replace(learn, transforms=unfiltered(learn.transforms))
        calibrate = replace(calibrate, transforms=unfiltered(calibrate.transforms))
    return replace(recipe, name=f"synq ideas {ideas or 'none'}", steps=(ranges, calibrate, replace(tune, learn=learn)))


def unfiltered(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    """Without the low-pass."""
    return tuple(transform for transform in transforms if not isinstance(transform, LowPass))


def none(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """SynQ's baseline: none of its ideas."""
    return with_ideas("", bits, effort, ends)


def i1(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """The filter."""
    return with_ideas("1", bits, effort, ends)


def i2(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Aligned maps."""
    return with_ideas("2", bits, effort, ends)


def i3(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Hard labels for easy images only."""
    return with_ideas("3", bits, effort, ends)


def i12(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """The filter and aligned maps."""
    return with_ideas("12", bits, effort, ends)


def i13(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """The filter and hard labels for easy images only."""
    return with_ideas("13", bits, effort, ends)


def i23(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Aligned maps and hard labels for easy images only."""
    return with_ideas("23", bits, effort, ends)


def tuned(name: str, bits: str, effort: str, ends: int | None) -> Recipe:
    """A recipe in which nothing learns, with the fine-tune that `synq_on` appends there, without SynQ's ideas."""
    recipe = find(name)(bits, effort, ends)
    return replace(recipe, name=f"{name} tuned", steps=_fast.taught_after(recipe.steps, 20 * SoftLabel(20.0)))


def tuned_zeroq(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """ZeroQ and a fine-tune."""
    return tuned("zeroq", bits, effort, ends)


def tuned_dsg(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """DSG and a fine-tune."""
    return tuned("dsg", bits, effort, ends)


def tuned_dream(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our own recipe and a fine-tune."""
    return tuned("dream", bits, effort, ends)


def with_map(name: str, by: Saliency, bits: str, effort: str, ends: int | None) -> Recipe:
    """SynQ with another kind of map."""
    recipe = find("synq")(bits, effort, ends)
    *ranges, tune = recipe.steps
    assert isinstance(tune, FineTune) and isinstance(tune.learn.loss, Sum)
    terms = ((weight, SaliencyMatch(by) if isinstance(term, SaliencyMatch) else term) for weight, term in tune.learn.loss.terms)
    tune = replace(tune, learn=replace(tune.learn, loss=Sum(tuple(terms))))
    return replace(recipe, name=f"synq by {name}", steps=(*ranges, tune))


def cam(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """CAM."""
    return with_map("cam", Cam(), bits, effort, ends)


def grad_cam_of_label(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Grad-CAM of the label's score, as in the paper; `synq` itself has the code's."""
    return with_map("grad-cam of label", GradCam(of_label=True), bits, effort, ends)


def grad_cam_plus_plus(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Grad-CAM++."""
    return with_map("grad-cam++", GradCamPlusPlus(), bits, effort, ends)


def _jobs(*functions: str, settings: tuple[tuple[str, ...], ...] = ((),)) -> list[Job]:
    job = load_file(Path(__file__).with_name("methods.py")).tiny_job
    names = [name if name == "synq" else f"{Path(__file__).resolve()}:{name}" for name in functions]
    return [job(name, BITS, seed, setting) for seed in SEEDS for setting in settings for name in names]


def ideas() -> list[Job]:
    """Table 3: the ideas alone and together."""
    return _jobs("none", "i1", "i2", "i3", "i12", "i13", "i23", "synq")


def plugged() -> list[Job]:
    """The fine-tune that `synq_on` appends where nothing learns, without its ideas: what the ideas add is beyond these."""
    return _jobs("tuned_zeroq", "tuned_dsg", "tuned_dream")


def maps() -> list[Job]:
    """Figure 6: CAM, Grad-CAM (of the own winner and of the label), Grad-CAM++."""
    return _jobs("cam", "synq", "grad_cam_of_label", "grad_cam_plus_plus")


def thresholds() -> list[Job]:
    """Figures 7b and 13: up to which difficulty hard labels are used."""
    return _jobs("synq", settings=tuple((f"{EASY}={tau}",) for tau in (0.1, 0.3, 0.5, 0.7, 0.9)))


def cutoffs() -> list[Job]:
    """Figure 7c: D0 as a share of the width: 4, 6, 8, 11.4, 16 and 32 cycles at 32 pixels."""
    return _jobs("synq", settings=tuple(tuple(f"{path}={cut}" for path in CUTOFF) for cut in (0.125, 0.188, 0.25, 0.357, 0.5, 1.0)))


def counts() -> list[Job]:
    """Figure 11: the number of images, doubled each time."""
    return _jobs("synq", settings=tuple((f"synthesis.count={count}",) for count in (64, 128, 256, 512, 1024)))
