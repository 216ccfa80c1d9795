"""Recipes that need seconds and no training, at many bit widths: `python experiments/closed_forms.py resnet20 [RESULTS]`.

One JSON file for each cell, skipped when it exists; `python experiments/table.py FOLDER --pivot kept "drop that counts"
seconds` makes the tables. All cells of a network are evaluated in one pass over the images. Networks: resnet20
(third-party; count by kept, and by the drop on lossless200), matched (our own; by its drop) and efficientnet_lite0 (by
its drop on odd500).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dreamquant import Model, QuantizedModel, Recipe, load_model, recipes
from dreamquant.cli.bench import commit
from dreamquant.evaluate import LabelledImages, predictions, scored
from dreamquant.folder import write_json
from dreamquant.job import device_words, float_bytes
from dreamquant.prepare import FoldBatchNorm, WidenReLU6
from dreamquant.quant.pairs import Alternate
from dreamquant.quant.scheme import Int, uniform
from dreamquant.run import Run
from dreamquant.steps.compensate import ByWeights, CompensatePairs
from dreamquant.steps.reestimate import ReestimateStatistics

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DREAMQUANT_DATA", ROOT.parent / "shared" / "data"))
NETWORKS = ROOT / "experiments" / "networks.py"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
UNIFORM = ("w4a32", "w3a32", "w4a4", "w8a8", "w4a8", "w6a6")
TOGETHER = 12  # networks evaluated in one pass


@dataclass(frozen=True)
class Cell:
    """One row and column of the table."""

    recipe: str
    bits: str
    make: Callable[[], Recipe]
    effort: str = "fast"


def third_party() -> Model:
    weights = DATA / "cifar10" / "resnet20.safetensors"
    return load_model(f"{NETWORKS}:resnet20", weights=str(weights), shape=(3, 32, 32), **IMAGENET)


def efficientnet_lite0() -> Model:
    return load_model(f"{NETWORKS}:efficientnet_lite0", shape=(3, 224, 224), mean=(0.498,) * 3, std=(0.502,) * 3)


MODELS: dict[str, tuple[Callable[[], Model], tuple[str, ...]]] = {
    "resnet20": (third_party, ("cifar10/test.tar", "cifar10/lossless200.npz")),
    "matched": (lambda: load_model("zoo:resnet20-cifar10"), ("cifar10/test.tar",)),
    "efficientnet_lite0": (efficientnet_lite0, ("imagenet/odd500.tar",)),
}


def per_tensor(recipe: Recipe) -> Recipe:
    """The same with one grid for all weights of a layer."""
    return replace(recipe, scheme=replace(uniform("w8a8"), weights=Int(8)))


def widened(recipe: Recipe) -> Recipe:
    """The same with every ReLU6 a ReLU first, so that pairs reach across it, as DFQ's paper has it."""
    return replace(recipe, prepare=(WidenReLU6(), *recipe.prepare))


def on_dreams(recipe: Recipe) -> Recipe:
    """The same, with mixed bits chosen by what is lost on dreamed images, not on noise."""
    return replace(recipe, synthesis=recipes.find("mixed")().synthesis)


def alternating(recipe: Recipe, low: int) -> Recipe:
    """The same with DF-MPC's bits, but none of its compensation."""
    return replace(recipe, scheme=Alternate(Int(low, "channel"), Int(6, "channel"), None))


def cells() -> Iterator[Cell]:
    """All cells, those that say most first."""
    for bits in UNIFORM[:4]:
        for name in ("rtn", "omse", "aciq", "squant", "dfq"):
            yield Cell(name, bits, lambda name=name, bits=bits: recipes.find(name)(bits=bits))
    for bits in ("w4a32", "w3a32"):
        for name in ("omse", "aciq", "squant"):
            yield Cell(name, bits, lambda name=name, bits=bits: recipes.find(name)(bits=bits, effort="paper"), "paper")
    yield Cell("rtn per tensor", "w8a8", lambda: per_tensor(recipes.rtn("w8a8")))
    yield Cell("rtn per tensor, folded", "w8a8", lambda: replace(per_tensor(recipes.rtn("w8a8")), prepare=(FoldBatchNorm(),)))
    yield Cell("dfq", "w8a8", lambda: recipes.dfq("w8a8", effort="paper"), "paper")
    yield Cell("dfq, ReLU6 widened", "w8a8", lambda: widened(recipes.dfq("w8a8", effort="paper")), "paper")
    for low in (2, 3):
        column = f"{low}/6"
        yield Cell("dfmpc", column, lambda low=low: recipes.dfmpc(f"w{low}a32"))
        yield Cell("dfmpc", column, lambda low=low: recipes.dfmpc(f"w{low}a32", effort="paper"), "paper")
        yield Cell("squant", column, lambda low=low: alternating(recipes.squant("w4a32"), low))
        for label, effort in (("uncompensated", "fast"), ("uncompensated", "paper")):
            yield Cell(label, column, lambda low=low, effort=effort: uncompensated(low, effort), effort)
        yield Cell("statistics alone", column, lambda low=low: without(recipes.dfmpc(f"w{low}a32"), CompensatePairs))
    for weights, activations in ((4, 32), (3, 32), (4, 4), (4, 8), (8, 8), (6, 6)):
        bits = f"mixed:{weights}.0a{activations}"
        yield Cell("mixed", f"w{weights}a{activations}", lambda bits=bits: recipes.find("mixed")(bits=bits))
    for weights in (4, 3):
        bits = f"mixed:{weights}.0a32"
        yield Cell("squant, mixed bits", f"w{weights}a32", lambda bits=bits: on_dreams(recipes.squant(bits=bits)))
    for bits in UNIFORM[4:]:
        for name in ("rtn", "omse", "aciq", "squant", "dfq"):
            yield Cell(name, bits, lambda name=name, bits=bits: recipes.find(name)(bits=bits))


def without(recipe: Recipe, *kinds: type) -> Recipe:
    """The recipe without the steps of these kinds."""
    return replace(recipe, steps=tuple(step for step in recipe.steps if not isinstance(step, kinds)))


def uncompensated(low: int, effort: str) -> Recipe:
    """DF-MPC's bits and ranges alone."""
    return without(recipes.dfmpc(f"w{low}a32", effort=effort), CompensatePairs, ReestimateStatistics)


def regularisers() -> Iterator[Cell]:
    """The study of lambda1 and lambda2 that DF-MPC's paper leaves open; ternary low layers, statistics re-estimated."""
    for offset in (0.0, 0.1, 0.5, 1.0, 5.0):
        for ridge in (0.0, 1e-4, 1e-2, 1e-1):
            yield Cell(f"offset {offset} ridge {ridge}", "2/6", lambda o=offset, r=ridge: with_regularisers(o, r), "paper")


def with_regularisers(offset: float, ridge: float) -> Recipe:
    recipe = recipes.dfmpc("w2a32", effort="paper")
    changed = (replace(s, coefficient=ByWeights(offset, ridge)) if isinstance(s, CompensatePairs) else s for s in recipe.steps)
    return replace(recipe, steps=tuple(changed))


def quantized(cell: Cell, model: Model, cache: Path) -> tuple[QuantizedModel, dict[str, float], list[str]]:
    """The network of a cell, the seconds it took, and what the run noted."""
    run = Run(0, images_cache=cache)
    made = cell.make()(model, run=run)
    return made, {**run.seconds, "total": sum(run.seconds.values())}, run.notes


def evaluated(name: str, wanted: list[Cell], model: Model, data: dict[str, LabelledImages], out: Path) -> None:
    """Quantize and measure some cells in one pass, and write their files."""
    made = [quantized(cell, model, out / ".images") for cell in wanted]
    scores: list[dict[str, Any]] = [{} for _ in wanted]
    for source, images in data.items():
        (*found, reference), labels = predictions([*(q for q, _, _ in made), model], images)
        for score, mine in zip(scores, found, strict=True):
            s = scored(mine, labels, reference, images.unreadable)
            score[source] = {
                "fp": {"top1": s.reference_top1},
                "quantized": {"top1": s.top1},
                "agreement": s.agreement,
                "kept": s.kept,
            }
    for cell, (q, seconds, notes), score in zip(wanted, made, scores, strict=True):
        (first, main), *others = score.items()
        result = {
            "model": name,
            "recipe": cell.recipe,
            "bits": cell.bits,
            "ends": None,
            "effort": cell.effort,
            "seed": 0,
            "device": device_words("cpu"),
            "seconds": seconds,
            "size_bytes": {"fp32": float_bytes(model), "weights": q.weight_bytes},
            **main,
            "deployed": None,
            "eval": first,
            "also": dict(others),
            "notes": notes,
            "provenance": dict(q.provenance),
            "commit": commit(),
            "cores": os.cpu_count(),
        }
        write_json(out / file_of(name, cell), result)


def file_of(name: str, cell: Cell) -> str:
    """A file name for a cell."""
    text = f"{name}-{cell.recipe}-{cell.bits}-{cell.effort}"
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text) + ".json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(MODELS))
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "experiments" / "results" / "closed_forms")
    parser.add_argument("--regularisers", action="store_true", help="the sweep of DF-MPC's two regularisers instead")
    parser.add_argument("--skip", nargs="*", default=[], metavar="RECIPE", help="as mixed, which dreams: hours of one core at 224 pixels")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    load, sources = MODELS[args.network]
    model, data = load(), {Path(source).name: LabelledImages.open(DATA / source) for source in sources}
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = regularisers() if args.regularisers else cells()
    wanted = [cell for cell in chosen if cell.recipe not in args.skip and not (args.out / file_of(args.network, cell)).exists()]
    for start in range(0, len(wanted), TOGETHER):
        part = wanted[start : start + TOGETHER]
        evaluated(args.network, part, model, data, args.out)
        done = ", ".join(f"{cell.recipe} {cell.bits}" for cell in part)
        os.write(1, f"{start + len(part)} of {len(wanted)}: {done}\n".encode())


if __name__ == "__main__":
    main()
