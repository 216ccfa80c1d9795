"""PLF's labels: the teacher's own, hard where its entropy is low, shared between two classes where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss
from dreamquant.trace import Pair


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted probabilities as a share of the largest possible, (B, K) -> (B,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1) / math.log(logits.shape[1])


def threshold(seen: Pair, start: float, end: float) -> float | Tensor:
    """The entropy up to which a label counts as reliable: it falls from `start` to `end` along the training (section 3)."""
    return start - seen.done * (start - end)


@dataclass(frozen=True)
class ReliableLabel(Loss[Pair]):
    """PLF's L_h (Fan et al., CVPR 2024): cross-entropy with the teacher's winner, mean over images of low entropy."""

    start: float = 0.5
    end: float = 0.2

    def __call__(self, seen: Pair) -> Tensor:
        logits = seen.logits.detach()
        counts = entropy(logits) <= threshold(seen, self.start, self.end)
        loss = F.cross_entropy(seen.student.logits, logits.argmax(1), reduction="none")
        return (loss * counts).sum() / counts.sum().clamp_min(1)


@dataclass(frozen=True)
class TwoLabels(Loss[Pair]):
    """PLF's L_l: cross-entropy with the teacher's two first classes by their odds, mean over images of high entropy."""

    start: float = 0.5
    end: float = 0.2

    def __call__(self, seen: Pair) -> Tensor:
        logits = seen.logits.detach()
        counts = entropy(logits) > threshold(seen, self.start, self.end)
        best, classes = logits.topk(2, 1)
        mine = -seen.student.logits.log_softmax(1).gather(1, classes)
        loss = (best.softmax(1) * mine).sum(1)  # p1 / (p1 + p2) is the softmax of the two logits
        return (loss * counts).sum() / counts.sum().clamp_min(1)
