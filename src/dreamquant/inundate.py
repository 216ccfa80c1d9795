"""Inundate: AIT's optimizer, whose steps are large enough that a share of the integer weights changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamquant.optimizers import NO_CODES, Codes, Decay, Parameters, Schedule


@dataclass(frozen=True)
class Inundate:
    """Gradient inundation (Choi et al., CVPR 2022): Nesterov's SGD, in which each quantized weight's step is multiplied until
    the share `flips` of its codes changes; momentum takes in the plain gradient.

    `flips` falls with the rate, as published. A factor is at most 128 in the first `gentle` updates, and `most` at any
    time (ours: the code goes on for ever where nothing can change). There is no weight decay.
    """

    lr: float = 1e-4
    momentum: float = 0.9
    flips: float = 1e-3
    gentle: int = 200
    most: float = 2.0**20
    schedule: Schedule = Decay()

    def on(self, parameters: Parameters, codes: Codes = NO_CODES) -> torch.optim.Optimizer:
        return Inundation(parameters, self, codes)


def factor(codes: Callable[[Tensor], Tensor], weight: Tensor, step: Tensor, flips: float, most: float) -> float:
    """What to multiply `step` by so that about the share `flips` of the codes of `weight - step` differs from before.

    1 where the step itself does that, or is zero; otherwise doubled until it does, then up to five bisections, of which
    the last middle is taken, as in the code.
    """
    before = codes(weight)

    def changed(a: float) -> float:
        return float((codes(weight - a * step) != before).float().mean())

    a = 1.0
    if changed(a) >= flips or not bool(step.any()):
        return a
    while changed(a) < flips and a < most:
        a *= 2
    low, high = a / 2, a
    for _ in range(5):
        a = (low + high) / 2
        share = changed(a)
        if abs(share - flips) < flips / 100:
            break
        low, high = (a, high) if share < flips else (low, a)
    return a


class Inundation(torch.optim.SGD):
    """The live form. How many updates it made is in its parameter groups, and so is saved."""

    def __init__(self, parameters: Parameters, part: Inundate, codes: Codes) -> None:
        super().__init__(parameters, part.lr, part.momentum, nesterov=True)
        self.part, self.codes = part, codes

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; groups are paced by `optimizers.pace`."""
        weights = [p for group in self.param_groups for p in group["params"] if id(p) in self.codes]
        before = {p: (p.clone(), p.grad.clone()) for p in weights if p.grad is not None}  # a GPU's step changes gradients, too
        super().step(closure)
        for group in self.param_groups:
            updates = group["updates"] = group.get("updates", 0) + 1
            flips = self.part.flips * group["lr"] / group.get("initial_lr", self.part.lr)
            most = 128.0 if updates <= self.part.gentle else self.part.most
            for p in group["params"]:
                if p in before:
                    weight, gradient = before[p]
                    # not p - weight: a step below the weight's precision is a step all the same
                    step = group["lr"] * (gradient + self.part.momentum * self.state[p]["momentum_buffer"])
                    p.copy_(weight - factor(self.codes[id(p)], weight, step, flips, most) * step)
