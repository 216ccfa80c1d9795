"""The main job's numbers: `dreamquant bench experiments/main_job.py:third_party --out experiments/results/main_job`.

Real data and third-party weights are read from the folder in DREAMQUANT_DATA (default: ../shared/data beside the
repository). Third-party networks count by `kept` on test.tar and by their drop on lossless200; our own by their drop on
test.tar, which is like what they were trained on.
"""

from __future__ import annotations

import os
from pathlib import Path

from dreamquant.job import Job

ROOT = Path(__file__).resolve().parent.parent
CIFAR = Path(os.environ.get("DREAMQUANT_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
RECIPES = ("rtn", "zeroq", "distill", "dream", "synq")
SEEDS = (0, 1, 2)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _third_party(recipe: str, bits: str, seed: int) -> Job:
    return Job(
        model=f"{ROOT / 'experiments' / 'networks.py'}:resnet20",
        weights=str(CIFAR / "resnet20.safetensors"),
        shape=(3, 32, 32),
        recipe=recipe,
        bits=bits,
        seed=seed,
        eval=str(CIFAR / "test.tar"),
        also=(str(CIFAR / "lossless200.npz"),),
        **IMAGENET,
    )


def _ours(model: str, recipe: str, bits: str, seed: int) -> Job:
    return Job(model=f"zoo:{model}", recipe=recipe, bits=bits, seed=seed, eval=str(CIFAR / "test.tar"))


def third_party() -> list[Job]:
    """Third-party resnet20: every recipe at W3A3 and W4A4, and W8A8 by default."""
    jobs = [_third_party(recipe, bits, seed) for seed in SEEDS for bits in ("w3a3", "w4a4") for recipe in RECIPES]
    return [*jobs, *(_third_party("dream", "w8a8", seed) for seed in SEEDS)]


def matched() -> list[Job]:
    """Our own resnet20, whose training images were JPEG too."""
    return [_ours("resnet20-cifar10", recipe, bits, seed) for seed in SEEDS for bits in ("w3a3", "w4a4") for recipe in RECIPES]


def edge() -> list[Job]:
    """Two classes and depthwise convolutions; 20,000 parameters and inputs of 0..255."""
    return [
        _ours(model, "dream", bits, seed)
        for seed in SEEDS
        for model in ("depthwise-animals", "tiny-raw-cifar10")
        for bits in ("w4a4", "w3a3")
    ]
