"""Evaluation: what networks predict on real images, and the numbers that come of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreamquant.labelled import LabelledImages, Network


@dataclass(frozen=True)
class Scores:
    """Accuracies are shares of 1. `kept`: of the images the reference gets right, the share that is right here as well."""

    images: int
    top1: float
    standard_error: float
    reference_top1: float | None = None
    agreement: float | None = None
    kept: float | None = None
    unreadable: tuple[str, ...] = ()
    predictions: Tensor | None = field(default=None, repr=False, compare=False)  # (images,) classes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the predictions."""
        numbers = {key: value for key, value in vars(self).items() if key != "predictions"}
        return {**numbers, "unreadable": list(self.unreadable)}


def predictions(
    networks: Sequence[Network], data: LabelledImages, batch: int | None = None, limit: int | None = None
) -> tuple[list[Tensor], Tensor]:
    """The classes that each network predicts and the true ones, (N,) each; every image is read once for all networks.

    The networks must take the same input. A GPU computes convolutions in float32, without the shorter mantissas of TF32.
    """
    first = networks[0]
    if any((n.shape, n.mean, n.std) != (first.shape, first.mean, first.std) for n in networks):
        raise ValueError("networks that are compared must take the same input: shape, mean and std")
    found: list[list[Tensor]] = [[] for _ in networks]
    true = []
    for x, labels in data.batches(first, batch, limit):
        true.append(labels)
        for network, classes in zip(networks, found, strict=True):
            with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                ready = x.to(network.device, memory_format=torch.channels_last)  # a quarter faster on a CPU
                classes.append(network(ready).argmax(1).cpu())
    return [torch.cat(classes) for classes in found], torch.cat(true)


def scored(mine: Tensor, labels: Tensor, theirs: Tensor | None = None, unreadable: tuple[str, ...] = ()) -> Scores:
    """Scores of predicted classes (N,), compared with those of a reference network on the same images."""
    right = mine == labels
    top1 = right.float().mean().item()
    error = math.sqrt(top1 * (1 - top1) / len(labels))
    if theirs is None:
        return Scores(len(labels), top1, error, unreadable=unreadable, predictions=mine)
    known = theirs == labels
    kept = right[known].float().mean().item() if known.any() else None
    agreement = (mine == theirs).float().mean().item()
    return Scores(len(labels), top1, error, known.float().mean().item(), agreement, kept, unreadable, mine)


def evaluate(
    network: Network, data: LabelledImages, reference: Network | None = None, batch: int | None = None, limit: int | None = None
) -> Scores:
    """Top-1 accuracy, and agreement with a reference network on the same images."""
    networks = [network] if reference is None else [network, reference]
    (mine, *theirs), labels = predictions(networks, data, batch, limit)
    return scored(mine, labels, theirs[0] if theirs else None, data.unreadable)
