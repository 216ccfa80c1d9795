"""EnhancingDFQ taken apart: `dreamquant bench experiments/enhancing.py:ideas --out experiments/results/enhancing`.

Its Table 3 (the four ideas: all, each left out, each alone, none), in our `fast` setting on zoo:tiny-raw-cifar10 at W3A3.
Its Figures 4 and 7, of the images in folders that `dreamquant quantize` wrote:
`python experiments/enhancing.py experiments/results/alike enhancing_dfq=FOLDER qimera=FOLDER [--real DATA]`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dreamquant.evaluate import LabelledImages
from dreamquant.images import Images
from dreamquant.job import Job, float_model_of
from dreamquant.loading import load_file
from dreamquant.losses.activated import ClassMeanAngle, PassedMatch
from dreamquant.losses.algebra import Sum
from dreamquant.model import Model
from dreamquant.recipe import Recipe
from dreamquant.recipes import find
from dreamquant.report.likeness import PAIRED, plane, seen_features, similarity
from dreamquant.report.pictures import plane_chart, similarity_chart
from dreamquant.steps.cotrain import CoTrain
from dreamquant.steps.embeddings import ExtractEmbeddings
from dreamquant.synthesis.conditions import Uniform
from dreamquant.synthesis.embedded import AddNoise, Blend, ClassEmbedded

BITS, SEEDS = "w3a3", (0, 1, 2)
ROWS = ("none", "e", "m", "f", "s", "mfs", "efs", "ems", "emf")
KINDS = 4  # classes in Figure 7


def with_ideas(ideas: str, bits: str, effort: str, ends: int | None) -> Recipe:
    """EnhancingDFQ with the ideas named: e embeddings from layers, m the mixer, f flow and attention, s the two similarity losses.

    Without the mixer every image is of one class; without the flow noise is added. All learn steps, as `fast` does.
    """
    recipe = find("enhancing_dfq")(bits, effort, ends)
    *ranges, step = recipe.steps
    assert isinstance(step, CoTrain) and isinstance(step.dream.generator, ClassEmbedded), "the grid is of the fast effort"
    dream, generator, learn, stages = step.dream, step.dream.generator, step.learn, step.stages
    if "e" not in ideas:
        stages = tuple(stage for stage in stages if not isinstance(stage, ExtractEmbeddings))
    if "m" not in ideas:
        dream, generator = replace(dream, conditioner=Uniform()), replace(generator, mixing=Blend())
    if "f" not in ideas:
        generator = replace(generator, noising=AddNoise())
    if "s" not in ideas:
        dream = replace(dream, loss=without(dream.loss, ClassMeanAngle))
        learn = replace(learn, loss=without(learn.loss, PassedMatch))
    step = replace(step, dream=replace(dream, generator=generator), learn=learn, stages=stages)
    return replace(recipe, name=f"enhancing_dfq ideas {ideas or 'none'}", steps=(*ranges, step))


def without(loss: object, kind: type) -> Sum:
    """The sum without the terms of a kind."""
    assert isinstance(loss, Sum)
    return Sum(tuple(term for term in loss.terms if not isinstance(term[1], kind)))


def none(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """None of the four ideas."""
    return with_ideas("", bits, effort, ends)


def e(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Embeddings from layers alone."""
    return with_ideas("e", bits, effort, ends)


def m(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """The mixer alone."""
    return with_ideas("m", bits, effort, ends)


def f(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Flow and attention alone."""
    return with_ideas("f", bits, effort, ends)


def s(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """The two similarity losses alone."""
    return with_ideas("s", bits, effort, ends)


def mfs(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Without embeddings from layers."""
    return with_ideas("mfs", bits, effort, ends)


def efs(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Without the mixer."""
    return with_ideas("efs", bits, effort, ends)


def ems(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Without flow and attention."""
    return with_ideas("ems", bits, effort, ends)


def emf(bits: str = BITS, effort: str = "fast", ends: int | None = None) -> Recipe:
    """Without the two similarity losses."""
    return with_ideas("emf", bits, effort, ends)


def ideas() -> list[Job]:
    """Table 3."""
    job = load_file(Path(__file__).with_name("methods.py")).tiny_job
    names = ["enhancing_dfq", *(f"{Path(__file__).resolve()}:{name}" for name in ROWS)]
    return [job(name, BITS, seed) for seed in SEEDS for name in names]


def real_images(model: Model, data: str, kinds: Sequence[int]) -> Images:
    """Up to 24 images of each class."""
    pixels, labels = (torch.cat(parts) for parts in zip(*LabelledImages.open(data).batches(model), strict=True))
    return of_kinds(Images(pixels, labels), kinds)


def of_kinds(images: Images, kinds: Sequence[int]) -> Images:
    """Up to 24 images of each class."""
    return images[torch.cat([(images.classes == kind).nonzero()[:PAIRED, 0] for kind in kinds])]


def figures(model: Model, sets: Mapping[str, Images], kinds: Sequence[int]) -> dict[str, str]:
    """SVG by name: for each set the similarity matrix of the first class, for each class all sets in one plane."""
    sets = {name: of_kinds(images, kinds) for name, images in sets.items()}
    found = {name: seen_features(model, images.to(model.device)).cpu() for name, images in sets.items()}
    charts = {
        f"similarity-{name}": similarity_chart(f"{name}, class {kinds[0]}", similarity(found[name][part.classes == kinds[0]]).tolist())
        for name, part in sets.items()
    }
    for kind in kinds:
        mine = {name: found[name][images.classes == kind] for name, images in sets.items()}
        points = plane(torch.cat(list(mine.values()))).split([len(part) for part in mine.values()])
        groups = {name: part.tolist() for name, part in zip(mine, points, strict=True)}
        charts[f"plane-{kind}"] = plane_chart(f"class {kind}", groups)
    return charts


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(description=figures.__doc__)
    parser.add_argument("out", type=Path, help="a folder for the figures")
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--real", help="labelled images of the network's own task, for comparison")
    chosen = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (part.partition("=") for part in chosen.sets)}
    model = float_model_of(next(iter(folders.values())))
    if model is None:
        parser.error("the float network of the first folder cannot be loaded here")
    kinds = list(range(min(KINDS, model.classes)))
    sets = {name: Images.load(folder / "images") for name, folder in folders.items()}
    if chosen.real:
        sets = {"real": real_images(model, chosen.real, kinds), **sets}
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, chart in figures(model, sets, kinds).items():
        (chosen.out / f"{name}.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
