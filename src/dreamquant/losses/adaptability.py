"""AdaSG's and AdaDFQ's game: the generator keeps the disagreement of teacher and student in a band, the student ends it.

The disagreement of an image is the difference of the two networks' logits, d = z_teacher - z_student. Its structure is
s = log K - H(softmax(d)): zero where the two agree up to a constant, log K where one class takes all. All losses here
read the student; those of a generator send gradients through both networks, and change neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss
from dreamquant.trace import Pair

STUDENT = frozenset({"student"})


def structure(logits: Tensor) -> Tensor:
    """log K minus the entropy of the softmax, which is its divergence from uniform: (B,), not negative."""
    log_p = logits.log_softmax(1)
    return (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1)


@dataclass(frozen=True)
class AdaptabilityMargin(Loss[Pair]):
    """Mean distance of the normalised entropy of disagreement h' from the band [low, high] (AdaDFQ, its two boundaries).

    h' = (H - min H) / (log K - min H) over the batch, in [0, 1]; the minimum has its gradient, as in the code, or with
    `fixed_least` none (a parity switch). Below the band teacher and student disagree too much to be taught, above it the
    student has nothing left to learn.
    """

    low: float = 0.3
    high: float = 0.8
    fixed_least: bool = False
    needs: ClassVar[frozenset[str]] = STUDENT

    def __call__(self, seen: Pair) -> Tensor:
        s = structure(seen.logits - seen.student.logits)
        most = s.max().detach() if self.fixed_least else s.max()  # where H is least
        entropy = (most - s) / (most + 1e-6)
        return ((self.low - entropy).clamp_min(0) + (entropy - self.high).clamp_min(0)).mean()


@dataclass(frozen=True)
class DisagreementTarget(Loss[Pair]):
    """Cross-entropy of the disagreement with the label: the teacher knows the class, the student does not (AdaSG, L_ds)."""

    needs: ClassVar[frozenset[str]] = STUDENT

    def __call__(self, seen: Pair) -> Tensor:
        return F.cross_entropy(seen.logits - seen.student.logits, seen.images.labels)


@dataclass(frozen=True)
class AgreementTarget(Loss[Pair]):
    """Cross-entropy of the sum of both networks' logits with the label: both know the class (AdaSG, L_as)."""

    needs: ClassVar[frozenset[str]] = STUDENT

    def __call__(self, seen: Pair) -> Tensor:
        return F.cross_entropy(seen.logits + seen.student.logits, seen.images.labels)


@dataclass(frozen=True)
class DisagreementEntropy(Loss[Pair]):
    """The student's side: the structure of the softened disagreement, times T^2, mean over images (AdaSG, L_S).

    It is the published negative entropy, plus T^2 log K so that agreement is zero; about half the variance of d for large T.
    """

    temperature: float = 20.0

    def __call__(self, seen: Pair) -> Tensor:
        disagreement = seen.logits - seen.student.logits
        return self.temperature**2 * structure(disagreement / self.temperature).mean()
