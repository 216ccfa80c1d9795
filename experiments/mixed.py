"""Mixed against uniform bits: `dreamquant bench experiments/mixed.py --out experiments/results/mixed`, from the repository's root.

Third-party resnet20 with the images, ranges and steps of the recipe `mixed`; only the bits differ. See methods.py for
the data and which number counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.quant.scheme import uniform
from dreamquant.recipe import Recipe
from dreamquant.recipes.mixed import mixed

METHODS = load_file(Path(__file__).with_name("methods.py"))
PAIRS = {"w4a32": "mixed:4.0a32", "w3a32": "mixed:3.0a32", "w4a4": "mixed:4.0a4.0", "w3a3": "mixed:3.0a3.0", "w4a8": "mixed:4.0"}


def same_bits(bits: str = "w4a32", effort: str = "fast", ends: int | None = None) -> Recipe:
    """The recipe `mixed` with the same bits everywhere."""
    return replace(mixed(effort=effort), name="same_bits", scheme=uniform(bits, ends))


def grid() -> list[Job]:
    """Each average, mixed and uniform, over all seeds."""
    jobs = []
    for seed in METHODS.SEEDS:
        for same, mixture in PAIRS.items():
            jobs += [METHODS.third_party_job("experiments/mixed.py:same_bits", same, seed), METHODS.third_party_job("mixed", mixture, seed)]
    return jobs
