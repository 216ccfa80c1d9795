"""A student's update on a GPU: recorded and replayed against computed anew, in the same run.

    python benchmarks/replay.py [--recipes distill synq hast] [--batch 256] [--updates 100]

Prints milliseconds an update of both for each recipe's `paper` student on zoo:resnet20-cifar10, and their ratio; the same
for generator and student together, at their own batch, of the recipes that train one (`gdfq` and the like); then for blocks
that are rebuilt (`dream`, `fast`).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch

from dreamquant import Images, Run, gradients, load_model, recipes
from dreamquant.quant.student import convert
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Together


def seconds(steps: list[Any], recorded: bool, batch: int) -> float:
    """Seconds of the last step, the others being done."""
    kept = gradients.recordable
    if not recorded:
        gradients.recordable = lambda *all: False
    try:
        model = load_model("zoo:resnet20-cifar10").to("cuda")
        torch.manual_seed(0)
        images = Images(model.normalise(torch.rand(4 * batch, *model.shape)), torch.arange(4 * batch) % model.classes).to("cuda")
        student = convert(model, recipes.dream().scheme)
        for step in steps[:-1]:
            step(student, model, images, Run(device="cuda"))
        torch.cuda.synchronize()
        start = time.perf_counter()
        steps[-1](student, model, images, Run(device="cuda"))
        torch.cuda.synchronize()
        return time.perf_counter() - start
    finally:
        gradients.recordable = kept


def shortened(step: Any, updates: int, batch: int) -> Any:
    """A step that learns, so many updates long; a co-training's are those of generator and student together."""
    if isinstance(step, CoTrain):
        return replace(step, stages=(DreamOnly(2, track=0.9), Together(updates)), count=1)
    return replace(step, iterations=updates, batch=batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["distill", "synq", "hast"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--updates", type=int, default=100)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here: there is nothing to record on")
    *ready, _ = recipes.distill().steps
    for name in args.recipes:
        last = recipes.find(name)(effort="paper").steps[-1]
        seconds([*ready, shortened(last, 5, args.batch)], False, args.batch)  # libraries load on their first use
        short = shortened(last, args.updates, args.batch)
        anew, replayed = (1000 * seconds([*ready, short], recorded, args.batch) / args.updates for recorded in (False, True))
        print(f"{name}: {replayed:.1f} ms replayed, {anew:.1f} ms anew, ratio {anew / replayed:.2f}", flush=True)
    *ready, rebuild = recipes.dream().steps
    short = replace(rebuild, iterations=args.updates)
    blocks = len(rebuild.pieces(load_model("zoo:resnet20-cifar10").net))
    replayed, anew = (1000 * seconds([*ready, short], recorded, 64) / args.updates / blocks for recorded in (True, False))
    print(f"dream, each of {blocks} blocks: {replayed:.2f} ms replayed, {anew:.2f} ms anew, ratio {anew / replayed:.2f}")


if __name__ == "__main__":
    main()
