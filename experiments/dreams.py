"""What blocks learn from kinds of dreams: `dreamquant bench experiments/dreams.py --out experiments/results/dreams`.

`genie` in our `fast` setting at W3A3 on zoo:tiny-raw-cifar10, whose images are pixels that were optimised; the same with
images the teacher finds hard (HAST's class loss), and with GENIE-D's, of a generator learned with its latents, where
strided convolutions swing and where they do not. Loss, number and bits are the same; latents have twice the updates,
for their generator begins with nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, find
from dreamquant.recipes.hast import HARD
from dreamquant.synthesis.latents import OptimizeLatents
from dreamquant.synthesis.pixels import Synthesis
from dreamquant.synthesis.swing import Rewrite, Swing, Unchanged

METHODS = load_file(Path(__file__).with_name("methods.py"))


def _genie(kind: str, synthesis: Synthesis, bits: str, effort: str, ends: int | None) -> Recipe:
    return replace(find("genie")(bits, effort, ends), name=f"genie of {kind}", synthesis=synthesis)


def _latents(rewrite: Rewrite) -> OptimizeLatents:
    few = _fast.FEWER_IMAGES
    return OptimizeLatents(few.loss, few.count, few.batch, 2 * few.iterations, rewrite=rewrite, pixels=_fast.PIXELS)


def hard(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Pixels, a class loss that weighs by difficulty."""
    return _genie("hard pixels", replace(HARD, count=_fast.FEWER_IMAGES.count), bits, effort, ends)


def latents(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Latents and their generator."""
    return _genie("latents", _latents(Unchanged()), bits, effort, ends)


def swinging(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Latents and their generator, seen by a network whose strided convolutions swing."""
    return _genie("swinging latents", _latents(Swing()), bits, effort, ends)


def grid() -> list[Job]:
    """`genie` itself and the three."""
    names = ["genie", *(f"{Path(__file__).resolve()}:{name}" for name in ("hard", "latents", "swinging"))]
    return [METHODS.tiny_job(name, "w3a3", seed) for seed in METHODS.SEEDS for name in names]
