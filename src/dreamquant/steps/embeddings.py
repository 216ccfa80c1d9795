"""ExtractEmbeddings: what the teacher's layers know about classes becomes the generator's embeddings of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.image import pooled, pooled_width
from dreamquant.optimizers import Adam
from dreamquant.steps.cotrain import Meeting
from dreamquant.trace import Trace, Watch


@dataclass(frozen=True)
class ExtractEmbeddings:
    """A stage: classifiers learn on the outputs of `layers` blocks, the mean of their last weights becomes the embeddings.

    EnhancingDFQ (Zhao et al., CVPR 2025, Eq. 3 to 5): of the images of the generator as it stands, each classifier learns
    the label and the teacher's prediction. Ours: blocks evenly spread and the last one; a classifier is two layers on
    standardised channel means, learned at 1e-2; rows of the mean are standardised, as the embeddings they replace are. The driver found
    averages the old embeddings in too. The generator goes on learning them.
    """

    iterations: int = 50
    layers: int = 4
    lr: float = 1e-2

    def __call__(self, state: Meeting) -> None:
        dream, model = state.part.dream, state.teacher
        embedding = embedding_of(state.dreamer.generator)
        places = spread(model.points["blocks"] or model.points["features"], self.layers)
        watch = Watch(model, frozenset(places))
        widths = [pooled_width(model, place) for place in places]
        heads = [Classifier(width, embedding.embedding_dim, model.classes).to(model.device) for width in widths]
        learned = nn.ModuleList(heads)
        optimizer = Adam(self.lr).on(learned.parameters())
        for loop in state.updates("extracting embeddings", self.iterations, heads=learned, optimizer=optimizer):
            with torch.no_grad():
                seen = watch(dream.images(model, state.dreamer.generator, dream.conditioner(model, dream.batch)))
            terms = [disagreement(head(pooled(seen.at[place][0])), seen) for head, place in zip(heads, places, strict=True)]
            loss = sum(terms[1:], terms[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loop.show(classifiers=loss.detach())
        with torch.no_grad():
            mean = torch.stack([head.last.weight for head in heads]).mean(0)
            embedding.weight.copy_(F.layer_norm(mean, mean.shape[1:]))


class Classifier(nn.Module):
    """Features (N, width) -> logits (N, classes); the rows of `last` stand for the classes."""

    def __init__(self, width: int, latent: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
        self.first, self.last = nn.Linear(width, latent), nn.Linear(latent, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.first(self.norm(x))))
        return logits


def disagreement(logits: Tensor, seen: Trace) -> Tensor:
    """Cross-entropy with the label, and divergence KL(mine || the teacher's prediction), mean over images (Eq. 4)."""
    mine, teachers = F.log_softmax(logits, 1), F.log_softmax(seen.logits, 1)
    return F.cross_entropy(logits, seen.images.labels) + F.kl_div(teachers, mine, reduction="batchmean", log_target=True)


def spread(places: tuple[str, ...], count: int) -> list[str]:
    """`count` of the places, or all where there are fewer, evenly spread, the last one among them."""
    count = min(count, len(places))
    return [places[-(-len(places) * number // count) - 1] for number in range(1, count + 1)]


def embedding_of(generator: nn.Module) -> nn.Embedding:
    """Its embeddings of classes. Raises ValueError where it has none."""
    found = getattr(generator, "embedding", None)
    if not isinstance(found, nn.Embedding):
        raise ValueError("ExtractEmbeddings: this generator has no embeddings of classes; use ClassEmbedded, or leave the stage out")
    return found
