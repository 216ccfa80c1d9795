"""Methods that dream on pixels, side by side: `dreamquant bench experiments/dreaming.py:third_party --out experiments/results/dreaming`.

In `fast` all share images, steps and pace, so that what differs is the method. Networks, data and which number counts are
those of main_job.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dreamquant.job import Job

ROOT = Path(__file__).resolve().parent.parent
CIFAR = Path(os.environ.get("DREAMQUANT_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
METHODS = ("rtn", "zeroq", "dsg", "distill", "intraq", "hast", "texq", "plf", "ris", "synq", "dream")
LEARNING = ("zeroq", "dsg", "distill", "intraq", "hast", "texq", "plf", "ris", "dream")  # what synq_on is put on
BITS = ("w3a3", "w4a4")
SEEDS = (0, 1, 2)


def third_party_job(recipe: str, bits: str, seed: int, settings: Sequence[str] = ()) -> Job:
    """Third-party resnet20, measured on test.tar and lossless200."""
    return Job(
        model=f"{ROOT / 'experiments' / 'networks.py'}:resnet20",
        weights=str(CIFAR / "resnet20.safetensors"),
        shape=(3, 32, 32),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        recipe=recipe,
        bits=bits,
        seed=seed,
        set=tuple(settings),
        eval=str(CIFAR / "test.tar"),
        also=(str(CIFAR / "lossless200.npz"),),
    )


def matched_job(recipe: str, bits: str, seed: int) -> Job:
    """Our own resnet20, measured on images like those it was trained on."""
    return Job(model="zoo:resnet20-cifar10", recipe=recipe, bits=bits, seed=seed, eval=str(CIFAR / "test.tar"))


def third_party() -> list[Job]:
    """Every method on the third-party network."""
    return [third_party_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in METHODS]


def matched() -> list[Job]:
    """Every method on our own network."""
    return [matched_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in METHODS]


def plugged() -> list[Job]:
    """SynQ's ideas on every other method (its Table 7), third-party network."""
    return [third_party_job(f"synq_on:{method}", bits, seed) for seed in SEEDS for bits in BITS for method in LEARNING]
