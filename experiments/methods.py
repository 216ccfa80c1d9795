"""Methods side by side: `dreamquant bench experiments/methods.py:third_party --out experiments/results/methods`.

In `fast` methods of one family share images, steps and pace, so that what differs is the method. All grids of this file go
into one folder, where a job that two of them ask for is done once.

Real data and third-party weights are read from the folder in DREAMQUANT_DATA (default: ../shared/data beside the
repository). Third-party networks count by `kept` on test.tar and by their drop on lossless200; our own by their drop on
test.tar, which is like what they were trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dreamquant.cli.demo import write_digits
from dreamquant.evaluate import LabelledImages
from dreamquant.folder import replacing
from dreamquant.job import Job
from dreamquant.zoo import SUPERCLASS_OF_CIFAR10

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DREAMQUANT_DATA", ROOT.parent / "shared" / "data"))
CIFAR = DATA / "cifar10"
MAIN = ("rtn", "zeroq", "distill", "dream", "synq")
PIXELS = ("rtn", "zeroq", "dsg", "distill", "intraq", "hast", "texq", "plf", "ris", "synq", "genie", "dream")
LEARNING = ("zeroq", "dsg", "distill", "intraq", "hast", "texq", "plf", "ris", "dream")  # what synq_on is put on
GENERATORS = ("gdfq", "arc", "qimera", "ait", "adasg", "adadfq", "causal_dfq", "acq", "enhancing_dfq")
BITS = ("w3a3", "w4a4")
SEEDS = (0, 1, 2)


def third_party_job(recipe: str, bits: str, seed: int, settings: Sequence[str] = (), ends: int | None = None) -> Job:
    """Third-party resnet20, measured on test.tar and lossless200."""
    return Job(
        model=f"{ROOT / 'experiments' / 'networks.py'}:resnet20",
        weights=str(CIFAR / "resnet20.safetensors"),
        shape=(3, 32, 32),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        recipe=recipe,
        bits=bits,
        ends=ends,
        seed=seed,
        set=tuple(settings),
        eval=str(CIFAR / "test.tar"),
        also=(str(CIFAR / "lossless200.npz"),),
    )


def matched_job(
    recipe: str,
    bits: str,
    seed: int,
    settings: Sequence[str] = (),
    ends: int | None = None,
    model: str = "resnet20-cifar10",
    data: Path = CIFAR / "test.tar",
) -> Job:
    """A network of ours, measured on images like those it was trained on."""
    return Job(model=f"zoo:{model}", recipe=recipe, bits=bits, ends=ends, seed=seed, set=tuple(settings), eval=str(data))


def tiny_job(recipe: str, bits: str, seed: int, settings: Sequence[str] = ()) -> Job:
    """Our network of 20,000 parameters, on which a job takes one or two minutes of one thread: for grids that take a method apart."""
    return matched_job(recipe, bits, seed, settings, model="tiny-raw-cifar10")


def imagenet_job(recipe: str, bits: str, seed: int, settings: Sequence[str] = ()) -> Job:
    """EfficientNet-Lite0 on 500 images of ImageNet: a GPU takes minutes where a core takes an hour."""
    return Job(
        model=f"{ROOT / 'experiments' / 'networks.py'}:efficientnet_lite0",
        shape=(3, 224, 224),
        mean=(0.498,) * 3,
        std=(0.502,) * 3,
        recipe=recipe,
        bits=bits,
        seed=seed,
        set=tuple(settings),
        eval=str(DATA / "imagenet" / "odd500.tar"),
    )


def digits() -> Path:
    """scikit-learn's digits that training did not see, written where they are not yet."""
    path = ROOT / "experiments" / ".work" / "digits.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_digits(path)
    return path


def animals() -> Path:
    """test.tar with the two classes of zoo:depthwise-animals, written where there is a test.tar and this is not yet."""
    path = ROOT / "experiments" / ".work" / "animals.npz"
    if not path.exists() and (CIFAR / "test.tar").exists():
        data = LabelledImages.open(CIFAR / "test.tar")
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            images = np.stack([np.array(data.read(number)) for number in range(len(data))])
            np.savez(file, x=images, y=SUPERCLASS_OF_CIFAR10.numpy()[list(data.labels)])
    return path


def third_party() -> list[Job]:
    """The main job on the third-party network, W8A8 by default too."""
    jobs = [third_party_job(recipe, bits, seed) for seed in SEEDS for bits in BITS for recipe in MAIN]
    return [*jobs, *(third_party_job("dream", "w8a8", seed) for seed in SEEDS)]


def matched() -> list[Job]:
    """The main job on our own network, whose training images were JPEG too."""
    return [matched_job(recipe, bits, seed) for seed in SEEDS for bits in BITS for recipe in MAIN]


def edge() -> list[Job]:
    """Two classes and depthwise convolutions; 20,000 parameters and inputs of 0..255."""
    models = {"depthwise-animals": animals(), "tiny-raw-cifar10": CIFAR / "test.tar"}
    return [matched_job("dream", bits, seed, model=model, data=data) for seed in SEEDS for model, data in models.items() for bits in BITS]


def pixels_third_party() -> list[Job]:
    """Every method that dreams on pixels, on the third-party network."""
    return [third_party_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in PIXELS]


def pixels_matched() -> list[Job]:
    """The same on our own network."""
    return [matched_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in PIXELS]


def plugged() -> list[Job]:
    """SynQ's ideas on every other method (its Table 7), third-party network."""
    return [third_party_job(f"synq_on:{method}", bits, seed) for seed in SEEDS for bits in BITS for method in LEARNING]


def rebuilt() -> list[Job]:
    """Reconstruction, and our own recipe, with first and last layers at 8 bits as papers on reconstruction have them."""
    return [
        job(recipe, bits, seed, ends=8)
        for seed in SEEDS
        for bits in ("w3a3", "w2a4")
        for job in (third_party_job, matched_job)
        for recipe in ("genie", "dream")
    ]


def halves() -> list[Job]:
    """What low bits of weights and of activations cost each: one of the two at 3 bits, the other at more."""
    return [third_party_job("genie", bits, 0, ends=8) for bits in ("w3a8", "w8a3")]


def residual() -> list[Job]:
    """The same as `rebuilt` where sums read 8 bits, and only what layers read has fewer."""
    return [replace(job, set=("scheme.residual=8",)) for job in rebuilt()]


def longer() -> list[Job]:
    """`genie` with three times the images and updates of a block."""
    more = ("synthesis.count=768", "steps.Reconstruct.iterations=1500")
    kinds = (("w2a4", more), ("w3a3", ("scheme.residual=8", *more)))
    return [third_party_job("genie", bits, seed, settings, ends=8) for seed in SEEDS for bits, settings in kinds]


def generators_third_party() -> list[Job]:
    """Every method that trains a generator, on the third-party network."""
    return [third_party_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in GENERATORS]


def generators_again() -> list[Job]:
    """Seven more seeds at W3A3, where equal runs differ by more than methods."""
    return [third_party_job(method, "w3a3", seed) for seed in range(3, 10) for method in GENERATORS]


def generators_varied() -> list[Job]:
    """Parts of three methods turned up or down, against the same seeds of the grid above (into a folder of their own)."""
    dream = "steps.CoTrain.dream."
    changes = {
        "qimera": ("conditioner.share=0.2", "conditioner.share=0.7", "generator.of_classifier=False"),
        "adadfq": ("loss.AdaptabilityMargin.low=0.3", "loss.DisagreementTarget.weight=0.0005", "loss.AdaptabilityMargin.weight=0.3"),
        "acq": ("loss.AttentionCentre.weight=0.1", "loss.TwinSimilarity.weight=0.02", "loss.SameInTrainMode.weight=0.3"),
    }
    cells = [(method, (dream + change,)) for method, several in changes.items() for change in several]
    gentle = (dream + "loss.TwinSimilarity.weight=0.02", dream + "loss.SameInTrainMode.weight=0.3")
    more = [("qimera", 0, (dream + "generator.of_classifier=False",)), *(("acq", seed, gentle) for seed in (2, 3))]
    jobs = [third_party_job(method, "w3a3", seed, how) for seed in range(4, 10) for method, how in cells]
    return [*jobs, *(third_party_job(method, "w3a3", seed, how) for method, seed, how in more)]


def generators_matched() -> list[Job]:
    """The same on our own network."""
    return [matched_job(method, bits, seed) for seed in SEEDS for bits in BITS for method in GENERATORS]


def pixels_tiny() -> list[Job]:
    """Methods that dream on pixels, each alone and with SynQ's ideas on it, on a network small enough for three seeds of all."""
    names = [*PIXELS, *(f"synq_on:{method}" for method in LEARNING)]
    return [tiny_job(name, bits, seed) for bits in BITS for seed in SEEDS for name in names]


def generators_tiny() -> list[Job]:
    """Methods that train a generator, on the same network."""
    return [tiny_job(method, bits, seed) for bits in BITS for seed in SEEDS for method in GENERATORS]


def paper() -> list[Job]:
    """The published lengths on 8x8 digits, beside ours (a core, 15 to 40 minutes each), and `dream` on the ResNet-20s (eight)."""
    ours = [job("dream", bits, 0) for job in (third_party_job, matched_job) for bits in BITS]
    names = ("zeroq", "distill", "intraq", "synq", "adadfq", "dream")
    small = [matched_job(name, "w3a3", 0, model="resnet-digits", data=digits()) for name in names]
    return [*(replace(job, effort="paper") for job in (*ours, *small)), *small]


def bounds() -> list[Job]:
    """The first 100 updates of students at published rates, each step bounded as in recipes/_paper.py, and not."""
    short = ("synthesis.count=512", "synthesis.iterations=100", "steps.FineTune.iterations=100")
    settings = [(*short, f"steps.FineTune.learn.optimizer.most={most}") for most in ("0.001", "1e9")]
    return [replace(matched_job(name, "w3a3", 0, how), effort="paper") for name in ("distill", "intraq") for how in settings]


def imagenet() -> list[Job]:
    """The main job on a network of 1,000 classes and depthwise convolutions."""
    jobs = [imagenet_job(recipe, "w4a4", 0) for recipe in ("rtn", "zeroq", "distill", "synq", "genie", "dream")]
    return [*jobs, imagenet_job("dream", "w4a4", 0, ("synthesis.count=64", "synthesis.batch=64"))]
