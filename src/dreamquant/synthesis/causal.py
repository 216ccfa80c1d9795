"""Causal-DFQ's images: a class is the content, the noise is the style, and every content is shown in several styles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.model import Model
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNorm, Trunk, gdfq_widths, noise_for, of_class


@dataclass(frozen=True)
class Styles:
    """Contents drawn independently, each in `styles` styles: one class, another noise. Nothing but the style is changed.

    Facts: "content", the number of an image's content in the batch, and "style", that of its style. A batch that
    `styles` does not divide ends with a content that lacks some. Raises ValueError for fewer than two styles, or a batch
    that has no room for them.
    """

    styles: int = 2

    def __post_init__(self) -> None:
        if self.styles < 2:
            raise ValueError(f"styles={self.styles}: a change of style takes two of them at least")

    def __call__(self, model: Model, count: int) -> Condition:
        if count < self.styles:
            raise ValueError(f"a batch of {count} cannot show one content in {self.styles} styles; make the batch larger")
        number = torch.arange(count)
        content = number // self.styles
        labels = torch.randint(model.classes, (int(content[-1]) + 1,))[content]
        return Condition(labels, {"content": content, "style": number % self.styles})

    def of(self, model: Model, labels: Tensor) -> Condition:
        """Every image in a style of its own."""
        return Condition(labels)


@dataclass(frozen=True)
class ContentStyle:
    """The class's embedding times the noise, as in `Multiplied`, into a trunk whose normalisations know the class, too.

    For large images (ours: the paper names no generator for ImageNet). Only the noise is style.
    """

    latent: int = 100
    width: int = 128
    affine: bool = False

    def on(self, model: Model) -> nn.Module:
        def norm(channels: int, eps: float) -> nn.Module:
            return ClassNorm(model.classes, channels, eps)

        trunk = Trunk(self.latent, gdfq_widths(self.width), model.shape, norm, self.affine)
        return _ContentStyle(nn.Embedding(model.classes, self.latent), trunk)


class _ContentStyle(nn.Module):
    def __init__(self, embedding: nn.Embedding, trunk: Trunk) -> None:
        super().__init__()
        self.embedding, self.trunk = embedding, trunk

    def forward(self, condition: Condition) -> Tensor:
        content = of_class(self.embedding.weight, condition.labels)  # (N, latent)
        images: Tensor = self.trunk(content * noise_for(condition, content.shape[1]), condition)
        return images
