"""What keeping freed memory is worth: dreaming updates on large images, in a process that keeps it and in one that does not.

    python benchmarks/memory.py [--side 224] [--batch 32] [--updates 6] [--threads 1]

Prints the seconds of the fastest update of each, and their ratio. The command line keeps it; see dreamquant.cli.memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from dreamquant import Images, Model
from dreamquant.cli.memory import keep_memory
from dreamquant.losses.algebra import Objective
from dreamquant.recipes._fast import SEEN
from dreamquant.trace import Watch
from dreamquant.zoo import CIFAR_MEAN, CIFAR_STD, CifarResNet


def fastest(side: int, batch: int, updates: int) -> float:
    """Seconds of the fastest of a few passes forward and back to the pixels."""
    model = Model.from_module(CifarResNet(blocks=1).eval(), (3, side, side), CIFAR_MEAN, CIFAR_STD)
    objective = Objective(SEEN, model)
    watch = Watch(model, objective.needs)
    images = Images(torch.randn(batch, 3, side, side).requires_grad_(), torch.arange(batch) % model.classes)
    seconds = []
    for _ in range(updates):
        begun = time.perf_counter()
        objective(watch(images)).backward(inputs=[images.pixels])
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"side": 224, "batch": 32, "updates": 6, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", choices=("keep", "release"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        if args.one == "keep" and not keep_memory():
            raise SystemExit("this C library cannot keep memory")
        print(fastest(args.side, args.batch, args.updates))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--one"]
    kept, released = (
        float(subprocess.run([*command, how], stdout=subprocess.PIPE, text=True, check=True).stdout) for how in ("keep", "release")
    )
    print(f"{args.batch} images of {args.side}: kept {kept:.2f} s, released {released:.2f} s, ratio {released / kept:.2f}")


if __name__ == "__main__":
    main()
