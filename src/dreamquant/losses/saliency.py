"""Where a network looks: class activation maps, from the tail of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.trace import Trace


class Saliency(Protocol):
    """Activations (B, C, h, w) of a place and the score's gradient there -> a map (B, h, w).

    `place` is "saliency" (the last convolution's output) or "map" (the last feature map). The score is the network's own
    winner, or the label where `of_label` says so.
    """

    @property
    def place(self) -> str: ...

    @property
    def of_label(self) -> bool: ...

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class GradCam:
    """Grad-CAM (Selvaraju et al. 2017), as in SynQ's code: channels that speak against the class are dropped.

    A channel's weight is the mean of its gradient, clamped to 1e-10. SynQ's paper takes the label's score, its code the
    own winner's.
    """

    of_label: bool = False
    place: str = "saliency"

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor:
        weight = gradient.mean((2, 3), keepdim=True).clamp_min(1e-10)
        return F.relu((weight * activation).sum(1))


@dataclass(frozen=True)
class GradCamPlusPlus:
    """Grad-CAM++ (Chattopadhay et al. 2018): a channel's weight is the sum of a(g) max(g, 0), for the score's exponential.

    a(g) = g^2 / (2 g^2 + sum(A) g^3), which is 1 / (2 + sum(A) g) wherever g counts; sum(A) is kept from below zero,
    where the formula has a pole.
    """

    of_label: bool = False
    place: str = "map"

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor:
        positive = gradient.clamp_min(0)
        whole = activation.detach().sum((2, 3), keepdim=True).clamp_min(0)
        weight = (positive / (2 + whole * positive)).sum((2, 3), keepdim=True)
        return F.relu((weight * activation).sum(1))


@dataclass(frozen=True)
class Cam:
    """CAM (Zhou et al. 2016): the last feature map, weighted by the classifier, signs included.

    Where a linear layer reads the averaged map its weights are the mean gradients, but for a factor that normalising
    takes out; other heads are taken at their slope here.
    """

    of_label: bool = False
    place: str = "map"

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)


def saliency(trace: Trace, by: Saliency = GradCam()) -> Tensor:  # noqa: B008 (a frozen value)
    """Where the network looks, in [0, 1] per image: (B, h, w).

    The gradient comes from the tail of the graph, from a detached leaf: none enters the body. The weights made of it are
    constants.
    """
    first, *rest = (t.detach() for t in trace.at[by.place])
    with torch.enable_grad():
        leaf = first.requires_grad_()
        logits = trace.watch.tail_from(by.place)(leaf, *rest)
        score = logits.gather(1, trace.images.classes[:, None]) if by.of_label else logits.amax(1)
        gradient = torch.autograd.grad(score.sum(), leaf)[0]
    found = by(trace.at[by.place][0], gradient)
    low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
    return (found - low) / (high - low + 1e-10)
