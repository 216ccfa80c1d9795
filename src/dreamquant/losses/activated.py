"""EnhancingDFQ's two similarity losses: dreams unlike their class's usual activations, published and by the angle (ours), and a
student that agrees in each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import pooled, pooled_width
from dreamquant.losses.unit import relative_error, squared_error
from dreamquant.model import Model
from dreamquant.trace import Pair, Trace

FLAT = 1 - 1e-6  # beyond this cosine, of a twelfth of a degree, an angle has no gradient: that of acos has no bound


@dataclass(frozen=True)
class ClassMeanLikeness(Loss[Trace]):
    """Cosine of an image's last activations with their moving average over earlier images of its class (SimLoss1, Eq. 10).

    Activations after the last activation function, averaged over places. Ours, where the paper says nothing: the mean
    over images whose class has an average, averages that keep `momentum` of themselves when a batch has images of the
    class and begin at the first batch's mean, the class of a mixed image the one with the largest share. A live memory.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"passed"})
    momentum: float = 0.9

    def on(self, model: Model) -> Loss[Trace]:
        return _Means(self.momentum, model)


class _Means(nn.Module, Loss[Trace]):
    means: Tensor  # (K, C)
    known: Tensor  # (K,)

    def __init__(self, momentum: float, model: Model) -> None:
        super().__init__()
        self.momentum = momentum
        places = model.points["passed"]
        width = pooled_width(model, places[-1]) if places else 0  # without a place, watching says what is missing
        self.register_buffer("means", torch.zeros(model.classes, width, device=model.device))
        self.register_buffer("known", torch.zeros(model.classes, device=model.device))

    def forward(self, seen: Trace) -> Tensor:
        classes = seen.images.classes
        known = self.known[classes]
        alike = F.cosine_similarity(pooled(seen.at["passed"][-1]), self.means[classes])
        return (alike * known).sum() / known.sum().clamp_min(1)

    def remember(self, seen: Trace) -> None:
        present, place = seen.images.classes.unique(return_inverse=True)
        mine = F.one_hot(place, len(present)).T.to(self.means)
        means = mine @ pooled(seen.at["passed"][-1]).detach() / mine.sum(1, keepdim=True)
        kept = self.momentum * self.known[present][:, None]
        self.means[present] = kept * self.means[present] + (1 - kept) * means
        self.known[present] = 1


@dataclass(frozen=True)
class ClassMeanAngle(Loss[Trace]):
    """1 - angle / 90 degrees, between an image's last activations and what is usual of its class: 1 alike, 0 at a right angle (ours).

    What is usual: the direction of the moving average of `ClassMeanLikeness`, with a share `own` of that of the batch's own
    images of the class. To the average alone a generator answers by moving: all images of a class alike, and unlike those
    of ten updates ago. And the gradient of a cosine vanishes where images are alike; that of an angle does not.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"passed"})
    momentum: float = 0.9
    own: float = 0.2

    def on(self, model: Model) -> Loss[Trace]:
        return _Angles(self, model)


class _Angles(_Means):
    def __init__(self, part: ClassMeanAngle, model: Model) -> None:
        super().__init__(part.momentum, model)
        self.own = part.own

    def forward(self, seen: Trace) -> Tensor:
        classes, x = seen.images.classes, pooled(seen.at["passed"][-1])
        here = F.one_hot(classes, len(self.means)).T.to(x) @ x.detach()  # sums: a direction is all that is taken of them
        usual = self.own * F.normalize(here) + (1 - self.own) * F.normalize(self.means)
        cosine = F.cosine_similarity(x, usual[classes]).clamp(-FLAT, FLAT)
        return 1 - cosine.acos().mean() / (math.pi / 2)


@dataclass(frozen=True)
class PassedMatch(Loss[Pair]):
    """Squared difference of what the activations pass on, the student's quantized within its clip range (SimLoss2, Eq. 11).

    Sum over activation layers; mean over the elements of each (ours). `relative`: in units of the teacher's variance there
    (ours, for networks of any scale). The teacher is detached.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"passed"})
    relative: bool = False

    def __call__(self, seen: Pair) -> Tensor:
        apart = relative_error if self.relative else squared_error
        both = zip(seen.student.at["passed"], seen.at["passed"], strict=True)
        terms = [apart(mine, wanted.detach()) for mine, wanted in both]
        return sum(terms[1:], terms[0])
