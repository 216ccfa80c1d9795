"""A small search for ARC's cells: `python experiments/cells.py MODEL [ITERATIONS]` prints a genotype and writes it down.

MODEL is anything that `dreamquant quantize` takes, such as zoo:resnet-digits. The genotype goes into a recipe of yours:
`Cells(genotype=Genotype(...))` as the generator of a co-training (see src/dreamquant/recipes/arc.py). What was found for
the digits beside the published cells: `dreamquant bench experiments/cells.py --out experiments/results/searched`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from dreamquant import Run, load_model
from dreamquant.cli.bench import commit
from dreamquant.folder import write_json
from dreamquant.job import Job, device_words
from dreamquant.loading import load_file
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.recipe import Recipe
from dreamquant.recipes import find
from dreamquant.recipes._fast import PIXELS
from dreamquant.steps.cotrain import CoTrain
from dreamquant.synthesis.cells import Cells, Genotype
from dreamquant.synthesis.cellsearch import SearchCells

RESULTS = Path(__file__).resolve().parent / "results" / "cells"


def file_of(model: str) -> Path:
    """Where what was found for a model is written down."""
    return RESULTS / f"{model.replace(':', '-').replace('/', '-')}.json"


def search(name: str, iterations: int = 400, seed: int = 0) -> dict[str, object]:
    """What was searched, on what, and what was found."""
    part = SearchCells(BatchNormDeviation() + 0.1 * ClassTarget(), iterations, 32, Cells(width=16), scores_lr=1e-2, pixels=PIXELS)
    run, begin = Run(seed), time.monotonic()
    genotype = part(load_model(name), run)
    return {
        "model": name,
        "seed": seed,
        "search": repr(part),
        "genotype": asdict(genotype),
        "curve": run.curves["searching cells"],
        "seconds": time.monotonic() - begin,
        "device": device_words("cpu"),
        "commit": commit(),
    }


def searched(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """ARC with the cells that were found for the digits."""
    words = json.loads((RESULTS / "zoo-resnet-digits.json").read_text(encoding="utf-8"))["genotype"]
    recipe = find("arc")(bits, effort, ends)
    ranges, step = recipe.steps
    assert isinstance(step, CoTrain) and isinstance(step.dream.generator, Cells)
    genotype = Genotype(**{name: tuple(words[name]) for name in ("ups", "nodes", "crosses")})
    dream = replace(step.dream, generator=replace(step.dream.generator, genotype=genotype))
    return replace(recipe, name="arc searched", steps=(ranges, replace(step, dream=dream)))


def grid() -> list[Job]:
    """Published cells, those of ResNet-20 on CIFAR-10, and the searched ones."""
    methods = load_file(Path(__file__).with_name("methods.py"))
    names = ("arc", f"{Path(__file__).resolve()}:searched")
    return [
        methods.matched_job(name, "w3a3", seed, model="resnet-digits", data=methods.digits()) for seed in methods.SEEDS for name in names
    ]


if __name__ == "__main__":
    found = search(sys.argv[1], *map(int, sys.argv[2:3]))
    write_json(file_of(sys.argv[1]), found)
    sys.stdout.write(f"{found['genotype']}\n")
