"""Dreaming speed: our loop against a plain eager one with forward hooks and the same losses, in the same run.

    python benchmarks/dreaming.py [--threads 1] [--batch 64] [--iterations 12] [--rounds 3]

Prints image-iterations per second of both, round by round and interleaved, and the ratio of the medians. The plain loop
is what research code does: hooks that keep every BatchNorm input, mean and variance of each in another pass.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model
from dreamquant.losses.algebra import Objective
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.trace import Watch
from dreamquant.zoo import CIFAR_MEAN, CIFAR_STD, CifarResNet


def plain(net: nn.Module, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of the plain loop, with hooks; weights keep requires_grad, as in the published code."""
    net = copy.deepcopy(net).eval().requires_grad_(True)
    seen: list[tuple[nn.BatchNorm2d, Tensor]] = []
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0])))
    pixels = pixels.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], 0.1)

    def step() -> None:
        seen.clear()
        loss = F.cross_entropy(net(pixels), labels)
        for bn, x in seen:
            assert bn.running_mean is not None and bn.running_var is not None
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            loss = loss + (F.mse_loss(mean, bn.running_mean) + F.mse_loss(var, bn.running_var)) / len(seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(model: Model, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step as `OptimizePixels` makes it."""
    raw = pixels.clone().requires_grad_()
    optimizer = torch.optim.Adam([raw], 0.1)
    objective = Objective(BatchNormMatch() + ClassTarget(), model)
    watch = Watch(model, objective.needs)

    def step() -> None:
        loss = objective(watch(Images(raw, labels)))
        raw.grad = torch.autograd.grad(loss, raw)[0]
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("batch", 64), ("iterations", 12), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = CifarResNet().eval()
    model = Model.from_module(net, (3, 32, 32), CIFAR_MEAN, CIFAR_STD)
    pixels, labels = torch.randn(args.batch, 3, 32, 32), torch.randint(10, (args.batch,))
    steps = {"plain": plain(net, pixels, labels), "ours": ours(model, pixels, labels)}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.iterations if number else 2):
                step()
            if number:  # the first round warms up
                rates[name].append(args.batch * args.iterations / (time.perf_counter() - start))
                print(f"round {number}  {name:5}  {rates[name][-1]:7.0f} image-iterations/s", flush=True)
    plainly, mine = (statistics.median(rates[name]) for name in ("plain", "ours"))
    print(f"ratio of medians: {mine / plainly:.2f}")


if __name__ == "__main__":
    main()
