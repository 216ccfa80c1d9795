"""A small search for ARC's cells: `python experiments/cells.py MODEL [ITERATIONS]` prints a genotype and writes it down.

MODEL is anything that `dreamquant quantize` takes, such as zoo:resnet-digits. The genotype goes into a recipe of yours:
`Cells(genotype=Genotype(...))` as the generator of a co-training (see src/dreamquant/recipes/arc.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dreamquant import Run, load_model
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.recipes._fast import PIXELS
from dreamquant.synthesis.cells import Cells
from dreamquant.synthesis.cellsearch import SearchCells

RESULTS = Path(__file__).resolve().parent / "results" / "cells"


def search(name: str, iterations: int = 400, seed: int = 0) -> dict[str, object]:
    """What was searched, on what, and what was found."""
    part = SearchCells(BatchNormDeviation() + 0.1 * ClassTarget(), iterations, 32, Cells(width=16), scores_lr=1e-2, pixels=PIXELS)
    run = Run(seed)
    genotype = part(load_model(name), run)
    return {"model": name, "seed": seed, "search": repr(part), "genotype": repr(genotype), "curve": run.curves["searching cells"]}


if __name__ == "__main__":
    found = search(sys.argv[1], *map(int, sys.argv[2:3]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{sys.argv[1].replace(':', '-')}.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{found['genotype']}\n")
