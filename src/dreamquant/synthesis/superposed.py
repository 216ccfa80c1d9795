"""Qimera's images: embeddings of several classes, superposed before the generator's trunk, lie near decision boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNorm, Norm, Trunk, gdfq_widths


@dataclass(frozen=True)
class Mixtures:
    """Batches of one class for each image, or, a share of them, of mixtures of classes (Qimera).

    A mixture has `classes` classes, drawn with replacement, whose weights are the softmax of N(0, 1); labels are then
    shares of classes. None: a tenth of the network's classes, at least two, which are CIFAR's published 2 and 10 and
    MobileNet's 100 (ResNet-18 and -50 had 500 at 4 bits, 100 at 5).
    """

    share: float = 0.4
    classes: int | None = None

    def __call__(self, model: Model, count: int) -> Condition:
        if torch.rand(()) >= self.share:
            return self.of(model, torch.randint(model.classes, (count,)))
        several = self.classes or max(2, model.classes // 10)
        slots = torch.randint(model.classes, (count, several))
        weights = torch.randn(count, several).softmax(1)
        shares = torch.zeros(count, model.classes).scatter_add_(1, slots, weights)
        return Condition(shares, {"slots": slots, "weights": weights})

    def of(self, model: Model, labels: Tensor) -> Condition:
        return Condition(labels)


@dataclass(frozen=True)
class Superposed:
    """Qimera's generator: a class's embedding plus noise, standardised; of mixtures, the weighted sum of these.

    Embeddings are as wide as the teacher's last features, and begin as the rows of its classifier (`of_classifier`)
    or as N(0, 1). Every class of a mixture has noise of its own, and is standardised alone (ours; the code does so over
    the batch, which `over_batch` switches on). `by_class`: the trunk's normalisations have scales and shifts for each class,
    which mixtures mix; published for ImageNet. `averaged`: those of a mixture of K classes are divided by K once more, as
    the code does (a parity switch, as `over_batch` is).

    A first layer of more than `bound` weights is not built: superposed latents then pass a learned linear map to
    `narrow` values. As weights add up to one, this is the map of each embedding before mixing that the paper has
    (its code leaves it out). 2,048 features and images of 224: 40 million weights instead of 822.
    """

    width: int = 128
    affine: bool = False
    by_class: bool = False
    of_classifier: bool = True
    bound: int = 50_000_000
    narrow: int = 100
    over_batch: bool = False
    averaged: bool = False

    def on(self, model: Model) -> nn.Module:
        table = embeddings(model, self.of_classifier)
        places = math.prod(-(-side // 4) for side in model.shape[1:])
        fits = table.shape[1] * self.width * places <= self.bound
        latent = table.shape[1] if fits else min(self.narrow, table.shape[1])

        def norm(channels: int, eps: float) -> nn.Module:
            return ClassNorm(model.classes, channels, eps, self.averaged) if self.by_class else Norm(channels, eps)

        trunk = Trunk(latent, gdfq_widths(self.width), model.shape, norm, self.affine)
        return _Superposed(table, nn.Identity() if fits else nn.Linear(table.shape[1], latent, bias=False), trunk, self.over_batch)


def embeddings(model: Model, of_classifier: bool) -> Tensor:
    """A row for each class, as wide as what the last layer reads: that layer's weights where it is linear, or N(0, 1)."""
    last = model.net.get_submodule(str(graph.of_kind(model.net, *graph.LAYERS)[-1].target))
    weight = last.weight
    assert isinstance(weight, Tensor)
    rows, shape = weight.detach().flatten(1).cpu().clone(), (model.classes, weight.shape[1])
    return rows if of_classifier and rows.shape == shape else torch.randn(shape)


class _Superposed(nn.Module):
    def __init__(self, table: Tensor, mapping: nn.Module, trunk: Trunk, over_batch: bool = False) -> None:
        super().__init__()
        self.table, self.mapping, self.trunk, self.over_batch = nn.Parameter(table), mapping, trunk, over_batch

    def forward(self, condition: Condition) -> Tensor:
        images: Tensor = self.trunk(self.mapping(self.superposed(condition)), condition)
        return images

    def superposed(self, condition: Condition) -> Tensor:
        """(N, width of the embeddings)."""
        slots, weights = slots_of(condition)
        rows = F.embedding(slots, self.table)  # (N, K, D)
        given = condition.noise
        noise = given[:, None] if given is not None else torch.randn(rows.shape, device=rows.device)
        if self.over_batch and "slots" in condition.facts:  # each slot over images and features
            standard = F.layer_norm((rows + noise).transpose(0, 1), (len(rows), rows.shape[2])).transpose(0, 1)
        else:
            standard = F.layer_norm(rows + noise, rows.shape[2:])
        return torch.einsum("nk,nkd->nd", weights, standard)


def slots_of(condition: Condition) -> tuple[Tensor, Tensor]:
    """The classes of each image and their weights, (N, K) both; shares without slots name every class."""
    labels = condition.labels
    if "slots" in condition.facts:
        return condition.facts["slots"], condition.facts["weights"]
    if labels.ndim == 1:
        return labels[:, None], torch.ones(len(labels), 1, device=labels.device)
    return torch.arange(labels.shape[1], device=labels.device).expand(len(labels), -1), labels.float()
