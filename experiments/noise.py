"""Noise on dreamed images (SynQ's Table 9): `dreamquant bench experiments/noise.py --out experiments/results/noise`.

Gaussian, speckle, salt and pepper, uniform: once on each image, before anything is measured or learned from it. Compared
are TexQ, SynQ, and SynQ without its filter, in our `fast` setting on zoo:tiny-raw-cifar10 at W3A3. The paper leaves the
strengths open; ours change a pixel by about a tenth of its range (root of the mean square).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dreamquant.images import Images
from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.model import Model
from dreamquant.quant.student import Student
from dreamquant.recipe import Recipe, Step
from dreamquant.recipes import find
from dreamquant.run import Run

HERE = Path(__file__).resolve()
BITS, SEEDS = "w3a3", (0, 1, 2)
STRENGTHS = {"gaussian": 0.1, "speckle": 0.2, "salt_and_pepper": 0.04, "uniform": 0.17}


@dataclass(frozen=True)
class Noise:
    """On pixels of [0, 1]: deviations of what is added and (speckle) of what is multiplied by, the share of pixels that turn
    white or black in all channels, and the largest uniform change."""

    gaussian: float = 0.0
    speckle: float = 0.0
    salt_and_pepper: float = 0.0
    uniform: float = 0.0

    def __call__(self, pixels: Tensor) -> Tensor:
        draw = torch.rand_like(pixels[:, :1])
        added = self.gaussian * torch.randn_like(pixels) + self.uniform * (2 * torch.rand_like(pixels) - 1)
        noisy = pixels * (1 + self.speckle * torch.randn_like(pixels)) + added
        half = self.salt_and_pepper / 2
        return noisy.masked_fill(draw < half, 0.0).masked_fill(draw > 1 - half, 1.0).clamp(0, 1)


@dataclass(frozen=True)
class OnNoisyImages:
    """A step on images with noise, the same for all steps of a run; the images themselves stay as they are."""

    step: Step
    noise: Noise = Noise()

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        torch.manual_seed(run.seed)
        pixels = self.noise(teacher.pixels(images.pixels))
        self.step(student, teacher, replace(images, pixels=teacher.normalise(pixels)), run)


def _noisy(recipe: Recipe) -> Recipe:
    return replace(recipe, name=f"{recipe.name} on noisy images", steps=tuple(OnNoisyImages(step) for step in recipe.steps))


def texq(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """TexQ, ready for noise."""
    return _noisy(find("texq")(bits, effort, ends))


def synq(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """SynQ, ready for noise."""
    return _noisy(find("synq")(bits, effort, ends))


def unfiltered(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """SynQ without its filter, ready for noise."""
    return _noisy(load_file(HERE.with_name("ablations.py")).i23(bits, effort, ends))


def grid() -> list[Job]:
    """Each method without noise, and with each of the four."""
    job = load_file(HERE.with_name("methods.py")).tiny_job
    both = [tuple(f"steps.{step}.noise.{kind}={strength}" for step in (0, 1, 2)) for kind, strength in STRENGTHS.items()]
    return [job(f"{HERE}:{name}", BITS, seed, noise) for seed in SEEDS for noise in ((), *both) for name in ("texq", "synq", "unfiltered")]
