"""ClassEmbedded: a generator from embeddings of classes, which may be mixed by attention, and noise, which may come from a flow.

EnhancingDFQ (Zhao et al., CVPR 2025, sections 3.3.2 and 3.3.3); Qimera where both are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition, Uniform
from dreamquant.synthesis.generator import ClassNorm, Norm, Trunk, gdfq_widths, noise_for, of_class


@dataclass(frozen=True)
class MixedClasses:
    """Whole batches of one class an image, and, with probability `share`, of `classes` classes an image (Qimera).

    A mixed batch has the facts "among", the classes drawn for each image (N, K), with repetition, and "mixture", their
    shares softmax(N(0, 1)), (N, K); its labels are the shares of all classes. Without `classes` a quarter of the network's,
    at least two: 250 of 1,000 as in the driver thought to be EnhancingDFQ's, and two of ten.
    """

    share: float = 0.4
    classes: int | None = None

    def __call__(self, model: Model, count: int) -> Condition:
        if torch.rand(()) >= self.share:
            return Uniform()(model, count)
        number = self.classes or max(2, model.classes // 4)
        among = torch.randint(model.classes, (count, number))
        mixture = torch.randn(count, number).softmax(1)
        shares = torch.zeros(count, model.classes).scatter_add_(1, among, mixture)
        return Condition(shares, {"among": among, "mixture": mixture})

    def of(self, model: Model, labels: Tensor) -> Condition:
        return Condition(labels)


class Mixing(Protocol):
    """Describes a network: embeddings (classes, width) and a Condition -> the latent each image begins with, (N, width), and
    the labels it then deserves."""

    def on(self, width: int) -> nn.Module: ...


class Noising(Protocol):
    """Describes a network: latents and noise, (N, width) each -> latents (N, width)."""

    def on(self, width: int) -> nn.Module: ...


@dataclass(frozen=True)
class Blend:
    """Embeddings are averaged by the shares asked for, which stay the labels (Qimera)."""

    def on(self, width: int) -> nn.Module:
        return _Blend()


@dataclass(frozen=True)
class AttentionMixer:
    """Embeddings are averaged by attention, whose scores become the labels (Eq. 6).

    The query is the mixture by the shares asked for, keys and values are the classes mixed; an image of one class is a
    mixture of one. Ours: the three projections begin as the identity, so that what is asked for decides at first; scores
    of several heads are averaged; labels pass no gradient, so that a generator cannot answer by asking for less.
    """

    heads: int = 4

    def on(self, width: int) -> nn.Module:
        return _AttentionMixer(width, whole(width, self.heads))


@dataclass(frozen=True)
class AddNoise:
    """The standardised sum (Qimera)."""

    def on(self, width: int) -> nn.Module:
        return _AddNoise()


@dataclass(frozen=True)
class FlowAttention:
    """Level by level, noise that a flow has bent further is taken into the latent by a transformer block (Eq. 7 and 8).

    The flow's j-th mapping is that of j planar flows in a row (Rezende and Mohamed 2015), and ours: the paper names no
    kind. A block is pre-normalised, and begins as the plain sum of latent and noise; the latent attends to itself and to
    its level's noise, so that what it takes in besides is attention's decision (ours; the driver found has linear maps in
    a row, and no blocks).
    """

    levels: int = 4
    heads: int = 4

    def on(self, width: int) -> nn.Module:
        return _FlowAttention(width, self.levels, whole(width, self.heads))


@dataclass(frozen=True)
class ClassEmbedded:
    """Embeddings of classes, standardised (Qimera), are mixed; noise comes in; GDFQ's trunk makes the image.

    `class_norms`: its normalisations have a scale and a shift for each class, mixed by the labels. `affine`: mean and
    deviation of the images are learned from 0 and 1 on (ours). `latent`: 100 as GDFQ's (ours); the network's feature
    width, as in Qimera, would need a first layer of 800 million weights for 2,048 features and images of 224.
    """

    latent: int = 100
    width: int = 128
    affine: bool = False
    mixing: Mixing = AttentionMixer()
    noising: Noising = FlowAttention()
    class_norms: bool = False

    def on(self, model: Model) -> nn.Module:
        def by_class(channels: int, eps: float) -> nn.Module:
            return ClassNorm(model.classes, channels, eps)

        trunk = Trunk(self.latent, gdfq_widths(self.width), model.shape, by_class if self.class_norms else Norm, self.affine)
        embedding = nn.Embedding(model.classes, self.latent)
        return _Embedded(embedding, self.mixing.on(self.latent), self.noising.on(self.latent), trunk)


def whole(width: int, heads: int) -> int:
    """The number of heads; ValueError where the width is no multiple of it."""
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads cannot share a latent of {width}; set latent to a multiple of heads")
    return heads


def standardised(x: Tensor) -> Tensor:
    """Each row with mean 0 and deviation 1: (N, width) both."""
    return F.layer_norm(x, x.shape[-1:])


def mixed_by(condition: Condition, classes: int) -> tuple[Tensor, Tensor]:
    """The K classes that each image mixes, and their shares, (N, K) each: those drawn, the label alone, or all classes."""
    if "among" in condition.facts:
        return condition.facts["among"], condition.facts["mixture"]
    labels = condition.labels
    if labels.ndim == 1:
        return labels[:, None], torch.ones_like(labels, dtype=torch.float32)[:, None]
    return torch.arange(classes, device=labels.device).expand(len(labels), -1), labels


class _Blend(nn.Module):
    def forward(self, table: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return of_class(table, condition.labels), condition.labels


class _AttentionMixer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.eye_(layer.weight)

    def forward(self, table: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        among, shares = mixed_by(condition, len(table))
        asked = torch.einsum("nk,nkd->nd", shares, table[among])
        query = self.query(asked).unflatten(1, (self.heads, -1))  # (N, heads, width / heads)
        keys, values = (layer(table).unflatten(1, (self.heads, -1))[among] for layer in (self.key, self.value))
        scores = torch.einsum("nhd,nkhd->nhk", query, keys) / query.shape[2] ** 0.5
        attention = scores.softmax(2)
        mixed = torch.einsum("nhk,nkhd->nhd", attention, values).flatten(1)
        if condition.labels.ndim == 1:
            return mixed, condition.labels
        labels = torch.zeros_like(condition.labels).scatter_add(1, among, attention.detach().mean(1))
        return mixed, labels


class _AddNoise(nn.Module):
    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        return standardised(latents + noise)


class Planar(nn.Module):
    """z + u tanh(w z + b), with u kept where the map can be inverted: (N, width) both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.push, self.weight = (nn.Parameter(torch.randn(width) / width**0.5) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        along = self.weight @ self.push
        # w u > -1 is what inversion needs (Rezende and Mohamed, A.1)
        push = self.push + (F.softplus(along) - 1 - along) * self.weight / self.weight.square().sum()
        return z + torch.tanh(z @ self.weight + self.bias)[:, None] * push


class Block(nn.Module):
    """One level: latent and noise are added, with what attention to both takes from them and a network makes of that.

    (N, width) both -> (N, width); the plain sum at first.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        last = nn.Linear(4 * width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), last)
        for parameter in (*self.attention.out_proj.parameters(), *last.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        both = self.before(torch.stack([latents, noise], 1))  # (N, 2, width)
        taken, _ = self.attention(both[:, :1], both, both, need_weights=False)
        latents = latents + noise + taken[:, 0]
        fed: Tensor = latents + self.feed(self.between(latents))
        return fed


class _FlowAttention(nn.Module):
    def __init__(self, width: int, levels: int, heads: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(Planar(width) for _ in range(levels))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(levels))

    def forward(self, latents: Tensor, noise: Tensor) -> Tensor:
        for flow, block in zip(self.flows, self.blocks, strict=True):
            noise = flow(noise)
            latents = block(latents, noise)
        return latents


class _Embedded(nn.Module):
    def __init__(self, embedding: nn.Embedding, mixing: nn.Module, noising: nn.Module, trunk: Trunk) -> None:
        super().__init__()
        self.embedding, self.mixing, self.noising, self.trunk = embedding, mixing, noising, trunk

    def forward(self, condition: Condition) -> tuple[Tensor, Tensor]:
        mixed, labels = self.mixing(standardised(self.embedding.weight), condition)
        latents = self.noising(mixed, noise_for(condition, mixed.shape[1]))
        return self.trunk(latents, replace(condition, labels=labels)), labels
