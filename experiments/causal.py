"""Causal-DFQ's three first experiments: `dreamquant bench experiments/causal.py:alignment --out experiments/results/causal`.

On zoo:tiny-raw-cifar10 in our `fast` setting; the "images" and the "cka" of every result file are what is asked about.
1. Does the generator keep content and style apart? Grid `decoupling`; and, on a folder that `dreamquant quantize --recipe
   causal_dfq` filled, pictures and shares of variance: `python experiments/causal.py FOLDER`.
2. Are the two networks aligned? Grid `alignment`: CKA of every layer's output on the dreamed images, mean over layers.
3. How much of the causal loss is best? Grid `weights` (lambda), and `thresholds` (tau).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamquant.cli.bench import commit
from dreamquant.folder import read_json, write_json
from dreamquant.generated import Trained, trained
from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.recipe import Recipe
from dreamquant.recipes.causal_dfq import causal_dfq
from dreamquant.report.pictures import sheet
from dreamquant.synthesis.conditions import Condition

BITS, SEEDS = ("w3a3", "w4a4"), (0, 1, 2)
CONTENTS, STYLES = 10, 8


def _weighed(weight: float, bits: str, effort: str, ends: int | None) -> Recipe:
    return replace(causal_dfq(bits, effort, ends, weight=weight), name=f"causal_dfq lambda {weight:g}")


def lambda_0(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Pairs of styles, and no causal loss."""
    return _weighed(0.0, bits, effort, ends)


def lambda_0_1(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A tenth of the usual weight."""
    return _weighed(0.1, bits, effort, ends)


def lambda_0_3(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A third of the usual weight."""
    return _weighed(0.3, bits, effort, ends)


def lambda_3(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Three times the usual weight."""
    return _weighed(3.0, bits, effort, ends)


def lambda_10(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Ten times the usual weight."""
    return _weighed(10.0, bits, effort, ends)


def styles_4(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Four styles of each content instead of two."""
    return replace(causal_dfq(bits, effort, ends, styles=4), name="causal_dfq 4 styles")


def _jobs(*functions: str, bits: tuple[str, ...] = ("w3a3",), settings: tuple[tuple[str, ...], ...] = ((),)) -> list[Job]:
    job = load_file(Path(__file__).with_name("methods.py")).tiny_job
    here = [f"{Path(__file__).resolve()}:{name}" if name in globals() and name != "causal_dfq" else name for name in functions]
    return [job(name, width, seed, setting) for seed in SEEDS for width in bits for setting in settings for name in here]


def decoupling() -> list[Job]:
    """First experiment: are images of one class what was asked for, and unlike each other?"""
    return _jobs("gdfq", "causal_dfq", "styles_4")


def alignment() -> list[Job]:
    """Second experiment: CKA of teacher and student, without learning, with GDFQ, and with the causal loss."""
    return _jobs("rtn", "gdfq", "causal_dfq", bits=BITS)


def weights() -> list[Job]:
    """Third experiment: lambda from 0 to 10."""
    return _jobs("lambda_0", "lambda_0_1", "lambda_0_3", "causal_dfq", "lambda_3", "lambda_10")


def thresholds() -> list[Job]:
    """What the paper warns of: a threshold tau that leaves nothing to learn."""
    path = "steps.CoTrain.learn.loss.StyleInvariance.threshold"
    return _jobs("causal_dfq", settings=tuple((f"{path}={tau}",) for tau in (0.0, 0.01, 0.1, 1.0)))


def shares(values: Tensor) -> dict[str, float]:
    """Of the variance of values (contents, styles, ...): what the content alone explains, the style alone, and both together."""
    values = values.double().flatten(2)
    centred = values - values.mean((0, 1))
    content, style = centred.mean(1, keepdim=True), centred.mean(0, keepdim=True)
    parts = {"content": content, "style": style, "both": centred - content - style}
    total = float(centred.square().sum())
    return {name: float(part.expand_as(centred).square().sum()) / total for name, part in parts.items()}


def contents_and_styles(found: Trained) -> tuple[Tensor, Tensor]:
    """Images (contents, styles, C, H, W), the same styles for each of up to ten classes, and their classes (contents,)."""
    classes = found.model.classes
    labels = torch.linspace(0, classes - 1, min(CONTENTS, classes)).round().long()
    torch.manual_seed(0)
    noise = torch.randn(STYLES, found.generator.embedding.embedding_dim)  # type: ignore[union-attr, arg-type]
    condition = Condition(labels.repeat_interleave(STYLES), noise=noise.repeat(len(labels), 1))
    with torch.no_grad():
        pixels = found.dream.images(found.model, found.generator, condition).pixels
    return pixels.unflatten(0, (len(labels), STYLES)), labels


def seen(found: Trained) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What content and style explain of pixels and logits, and how often the class is seen; with the images and classes."""
    images, labels = contents_and_styles(found)
    logits = found.model(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    hit = float((logits.argmax(2) == labels[:, None].to(logits.device)).float().mean())
    return {"pixels": shares(images), "logits": shares(logits), "labels_hit": hit}, images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    found = trained(folder)
    numbers, images, labels = seen(found)
    result = read_json(folder / "result.json")
    numbers["of"] = {key: result[key] for key in ("model", "recipe", "bits", "effort", "seed", "device", "seconds")}
    write_json(folder / "contents-and-styles.json", {**numbers, "commit": commit()})
    sheet(found.model.pixels(images.flatten(0, 1)), labels.repeat_interleave(STYLES), folder / "contents-and-styles.png", 80, STYLES)
    print(numbers)


if __name__ == "__main__":
    main()
