"""Causal-DFQ's discrepancy under changes of style (Shang et al., ICCV 2023); the formulas are our reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import features, mean_of
from dreamquant.trace import Pair


def by_style(found: Tensor, facts: Mapping[str, Tensor]) -> Tensor:
    """Features (B, F) of images with the facts "content" and "style" -> (S, n, F): row i is one content in every style.

    Contents that lack a style are left out. Raises ValueError where the images do not have these facts.
    """
    if not {"content", "style"} <= facts.keys():
        raise ValueError("StyleInvariance compares styles of one content; give the Dream conditioner=Styles()")
    content, style = facts["content"], facts["style"]
    shape = (int(style.max()) + 1, int(content.max()) + 1)
    there = torch.zeros(shape, dtype=torch.bool, device=found.device)
    there[style, content] = True
    table = found.new_zeros(*shape, found.shape[1]).index_put((style, content), found)
    return table[:, there.all(0)]


@dataclass(frozen=True)
class StyleInvariance(Loss[Pair]):
    """Whatever the style, the student should tell of the teacher what the teacher tells of itself (intervention KL).

    With u the teacher's features in style l, w in style k (both detached), v the student's in style k, and the critic
    h = cosine / `temperature`: p(j | i) = softmax over contents j of h(u_j, v_i) estimates P(teacher | student) under
    do(style), and q, with w in the place of v, what it should be. KL(q || p) of every content, less `threshold` (tau),
    zero below it; mean over contents i and pairs l != k. A student that is the teacher costs nothing.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features", "student"})
    temperature: float = 0.1
    threshold: float = 0.0

    def __call__(self, seen: Pair) -> Tensor:
        facts = seen.images.facts
        teacher = F.normalize(by_style(features(seen).detach(), facts), dim=2)  # (S, n, F)
        student = F.normalize(by_style(features(seen.student), facts), dim=2)
        worlds = permutations(zip(teacher, student, strict=True), 2)  # do(S = l) for u, do(S = k) for w and v
        gaps = [divergence(self._told(w, u), self._told(v, u)) for (u, _), (w, v) in worlds]
        return mean_of([(gap - self.threshold).clamp_min(0).mean() for gap in gaps])

    def _told(self, mine: Tensor, others: Tensor) -> Tensor:
        """log p(j | i), what the features of content i (n, F) tell of those of every content j (n, F): (n, n)."""
        return (mine @ others.T / self.temperature).log_softmax(1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row of logarithms of probabilities, (n, K) both -> (n,)."""
    return (p.exp() * (p - q)).sum(1)
