"""What is asked of the images before they exist: a class or shares of classes for each, and facts that losses read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.images import Images


class Labels(Protocol):
    """Number of images, number of classes -> what is asked of each. Drawn from torch's generator."""

    def __call__(self, count: int, classes: int) -> Images: ...


def asked(labels: Tensor, facts: Mapping[str, Tensor] | None = None) -> Images:
    """Images without pixels yet: labels (N,) or shares (N, K), and facts."""
    return Images(torch.empty(len(labels), 0), labels, facts or {})


def balanced(count: int, classes: int) -> Tensor:
    """Labels of which every class has as many as every other, or one more; shuffled. (count,)"""
    rounds = [torch.randperm(classes) for _ in range(-(-count // classes))]
    return torch.cat(rounds)[:count][torch.randperm(count)]


@dataclass(frozen=True)
class Balanced:
    """One class for each image; every class as often as every other, or once more."""

    def __call__(self, count: int, classes: int) -> Images:
        return asked(balanced(count, classes))


@dataclass(frozen=True)
class SoftTargets:
    """Balanced classes, and the fact "target": the probability that each image is to have (IntraQ, for `SoftTarget`).

    One for the share `sure` of images, uniform between `least` and one for the others; drawn once.
    """

    least: float = 0.95
    sure: float = 0.5

    def __call__(self, count: int, classes: int) -> Images:
        labels = balanced(count, classes)
        soft = self.least + (1 - self.least) * torch.rand(count)
        return asked(labels, {"target": torch.where(torch.rand(count) < self.sure, torch.ones(()), soft)})


@dataclass(frozen=True)
class SharedClasses:
    """Balanced classes that give up to `most` of their share to `others` other classes, alike (RIS's soft labels; ours).

    Images of one class take the other classes in turn, so that their labels overlap as little as can be. Shares (N, K).
    """

    most: float = 0.3
    others: int = 5

    def __call__(self, count: int, classes: int) -> Images:
        labels = balanced(count, classes)
        given = self.most * torch.rand(count, 1)
        number = min(self.others, classes - 1)
        extra = torch.zeros(count, classes)
        for label in range(classes):
            mine = (labels == label).nonzero()[:, 0]
            order = torch.randperm(classes - 1)
            order = order + (order >= label)  # every class but this one
            turns = torch.arange(len(mine) * number).view(-1, number) % (classes - 1)
            extra[mine[:, None], order[turns]] = 1 / number
        return asked((1 - given) * F.one_hot(labels, classes) + given * extra)
