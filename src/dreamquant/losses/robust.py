"""RIS's term: what a network makes of a good image hardly changes when the image or the weights are disturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import features, grey_noise
from dreamquant.model import Model
from dreamquant.trace import Trace, Watch


def inconsistency(one: Trace, other: Trace) -> tuple[Tensor, Tensor]:
    """How far two traces of the same images differ: cosine distance of features, L1 distance of probabilities; (B,) each."""
    apart = 1 - F.cosine_similarity(features(one), features(other))
    return apart, (one.logits.softmax(1) - other.logits.softmax(1)).abs().sum(1)


@dataclass(frozen=True)
class Robustness(Loss[Trace]):
    """RIS (Bai et al., AAAI 2024): inconsistency under disturbed pixels and disturbed weights, beyond a share of noise's.

    For features and for predictions apart: mean over images of max(inconsistency - allowed * that of plain noise, 0).
    `disturb` is a transform; every weight of a convolution or linear layer gets Gaussian noise of `weights` times the
    deviation of its tensor, drawn anew each time. Each call costs two more passes. The threshold, both disturbances and
    all numbers are ours: only a summary of the method is public to us.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    disturb: Callable[[Tensor], Tensor]
    weights: float = 0.02
    allowed: float = 0.5
    samples: int = 64

    def on(self, model: Model) -> Loss[Trace]:
        return _Robustness(self, model)


class _Robustness(nn.Module, Loss[Trace]):
    noise: Tensor  # (2,): mean inconsistency of plain noise, of features and of predictions

    def __init__(self, part: Robustness, model: Model) -> None:
        super().__init__()
        self.part = part
        shaky = copy.deepcopy(model.net)
        self.shaky = Watch(model, part.needs, shaky)
        names = {str(node.target) for node in graph.of_kind(model.net, *graph.LAYERS)}
        both = ((getattr(net.get_submodule(name), "weight") for net in (model.net, shaky)) for name in sorted(names))  # noqa: B009
        self.pairs = [(kept, moved) for kept, moved in both]
        noise = grey_noise(model, part.samples)
        with torch.no_grad():
            seen = Watch(model, part.needs)(Images(noise, noise.new_zeros(len(noise), dtype=torch.long)))
            self.register_buffer("noise", torch.stack(self.inconsistencies(seen)).mean(1))

    def inconsistencies(self, seen: Trace) -> tuple[Tensor, Tensor]:
        """Of features and of predictions, each added over the two disturbances: (B,) each."""
        with torch.no_grad():
            for kept, moved in self.pairs:
                noise = torch.randn(kept.shape).to(kept) * kept.std(correction=0)
                moved.copy_(kept + self.part.weights * noise)
        of_pixels = inconsistency(seen, seen.again(self.part.disturb(seen.images.pixels)))
        of_weights = inconsistency(seen, self.shaky(seen.images))
        return of_pixels[0] + of_weights[0], of_pixels[1] + of_weights[1]

    def forward(self, seen: Trace) -> Tensor:
        found = torch.stack(self.inconsistencies(seen))  # (2, B)
        return (found - self.part.allowed * self.noise[:, None]).clamp_min(0).sum(0).mean()
