"""Optimizers and schedules as values: `on` makes the live torch optimizer of some parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

Schedule = Callable[[float], float]  # share of the loop done -> factor on the rate
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Codes = Mapping[int, Callable[[Tensor], Tensor]]  # by id of a quantized weight: the integer codes of such a tensor
NO_CODES: Codes = MappingProxyType({})


class Optimizer(Protocol):
    """Describes a torch optimizer; `pace` sets its rate by the share of the loop done."""

    def on(self, parameters: Parameters, codes: Codes = NO_CODES) -> torch.optim.Optimizer:
        """The live form. `codes` of a student's weights are for optimizers that look at what the kernels will see."""
        ...

    @property
    def schedule(self) -> Schedule: ...


@dataclass(frozen=True)
class Constant:
    """The rate stays."""

    def __call__(self, done: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Decay:
    """The rate is multiplied by `factor` at each share of the loop in `at`."""

    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    factor: float = 0.1

    def __call__(self, done: float) -> float:
        return self.factor ** sum(done >= share for share in self.at)


@dataclass(frozen=True)
class Exponential:
    """The rate falls to `last` of itself, by the same share in equal times."""

    last: float

    def __call__(self, done: float) -> float:
        return self.last**done


@dataclass(frozen=True)
class Cosine:
    """The rate falls to `least` of itself along half a cosine."""

    least: float = 0.0

    def __call__(self, done: float) -> float:
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with (Nesterov) momentum.

    `most`: a gradient is shortened where the rate times it, before momentum, is longer than this share of the norm of what it moves.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = True
    schedule: Schedule = Decay()
    most: float | None = None

    def on(self, parameters: Parameters, codes: Codes = NO_CODES) -> torch.optim.Optimizer:
        return BoundedSgd(parameters, self)


class BoundedSgd(torch.optim.SGD):
    """The live form of `Sgd`."""

    def __init__(self, parameters: Parameters, part: Sgd) -> None:
        super().__init__(parameters, part.lr, part.momentum, 0, part.weight_decay, part.nesterov)
        self.most = part.most

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; groups are paced by `pace`."""
        if self.most is not None:
            self.shorten(self.most)
        super().step(closure)

    def shorten(self, most: float) -> None:
        """Scale the gradients of each group so that rate times gradient is at most this share of the norm of its parameters."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in moved]
            step = group["lr"] * torch.nn.utils.get_total_norm(gradients)
            share = (most * torch.nn.utils.get_total_norm([p.detach() for p in moved]) / step).clamp(max=1)
            for gradient in gradients:
                gradient.mul_(share)


@dataclass(frozen=True)
class Adam:
    """Adam."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = Constant()

    def on(self, parameters: Parameters, codes: Codes = NO_CODES) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, self.betas)


@dataclass(frozen=True)
class Relative:
    """The same optimizer, with the rate for each tensor in units of that tensor's mean absolute value when it begins (ours).

    For steps of grids: they halve with every bit, and a rate that moves one of 3 bits loses one of 8.
    """

    part: Optimizer

    @property
    def schedule(self) -> Schedule:
        return self.part.schedule

    def on(self, parameters: Parameters, codes: Codes = NO_CODES) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [entry]} if isinstance(entry, Tensor) else entry for entry in parameters]
        optimizer = self.part.on([{**group, "params": [tensor]} for group in groups for tensor in group["params"]], codes)
        for group in optimizer.param_groups:
            group["lr"] *= float(group["params"][0].detach().abs().mean())
        return optimizer


def pace(optimizer: torch.optim.Optimizer, part: Optimizer, done: float) -> None:
    """Set the rate of every group: its own `initial_lr` times the schedule's factor."""
    factor = part.schedule(done)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
