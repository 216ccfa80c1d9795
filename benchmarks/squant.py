"""Seconds for SQuant's rounding of a network of ResNet-18's size: `python benchmarks/squant.py [--threads 1]`.

11.7 M weights in 1.2 M kernels; random weights, because time does not depend on them. The median of five.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch

from dreamquant import Model
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import convert
from dreamquant.run import Run
from dreamquant.steps.rounding import RoundByFlips
from dreamquant.synthesis.pixels import NoImages
from dreamquant.torchvision_import import import_vision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    net = import_vision("torchvision.models").resnet18().eval()
    model = Model.from_module(net, (3, 64, 64), (0.5,) * 3, (0.25,) * 3, "resnet18")
    images, run = NoImages()(model, Run(0)), Run(0)
    for bits in ("w3a32", "w4a32", "w8a32"):
        seconds = []
        for _ in range(5):
            student = convert(model, scheme_of(bits).on(model, images, run))
            start = time.perf_counter()
            RoundByFlips()(student, model, images, run)
            seconds.append(time.perf_counter() - start)
        count = sum(layer.weight.numel() for layer in student.layers().values())
        line = f"{bits}: {statistics.median(seconds):.2f} s for {count / 1e6:.1f} M weights, {torch.get_num_threads()} thread(s)\n"
        os.write(1, line.encode())


if __name__ == "__main__":
    main()
