"""What a generator is asked for, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dreamquant.images import Images, facts_in
from dreamquant.model import Model


@dataclass(frozen=True, eq=False)
class Condition:
    """Labels (N,) or shares of classes (N, classes), and facts, (N, ...) each, that generators and losses read.

    `noise` is what the generator starts from; where it is None the generator draws its own.
    """

    labels: Tensor
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Condition:
        """The same condition on a device."""
        noise = None if self.noise is None else self.noise.to(device)
        return Condition(self.labels.to(device), {k: v.to(device) for k, v in self.facts.items()}, noise)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, in one dictionary; `of` reads it."""
        noise = {} if self.noise is None else {"noise": self.noise}
        return {"labels": self.labels, **noise, **{f"facts.{k}": v for k, v in self.facts.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Condition:
        """What `tensors` names; other names are passed over."""
        return cls(tensors["labels"], facts_in(tensors), tensors.get("noise"))

    def images(self, pixels: Tensor) -> Images:
        """What was made of this condition, as the network takes it, (N, C, H, W)."""
        return Images(pixels, self.labels, self.facts)


class Conditioner(Protocol):
    """Draws what a generator is asked for, from torch's generator."""

    def __call__(self, model: Model, count: int) -> Condition:
        """A batch to train on: exactly `count`, whatever its structure."""
        ...

    def of(self, model: Model, labels: Tensor) -> Condition:
        """What makes one image of each of these classes, (N,)."""
        ...


@dataclass(frozen=True)
class Uniform:
    """One class for each image, drawn independently (GDFQ)."""

    def __call__(self, model: Model, count: int) -> Condition:
        return self.of(model, torch.randint(model.classes, (count,)))

    def of(self, model: Model, labels: Tensor) -> Condition:
        return Condition(labels)
