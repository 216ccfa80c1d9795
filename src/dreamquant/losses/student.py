"""What makes a student good: losses on what teacher and student did with the same batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import pooled
from dreamquant.losses.saliency import GradCam, Saliency, saliency
from dreamquant.trace import Pair, Trace


def probability_of_label(seen: Trace) -> Tensor:
    """The teacher's probability of each image's class, (B,), without gradients."""
    return seen.logits.detach().softmax(1).gather(1, seen.images.classes[:, None])[:, 0]


@dataclass(frozen=True)
class SoftLabel(Loss[Pair]):
    """Kullback-Leibler divergence from the student's to the teacher's softened probabilities, times T^2, mean over images.

    Equal to (1 / 2K) * |centred logit difference|^2 for large T. Gradients reach the teacher's logits only where the
    pixels ask for them (`OnHarderImages`). `per_class` divides by the number of classes too, as the published code of
    GDFQ, Qimera and AIT does by taking the mean over elements.
    """

    temperature: float = 20.0
    per_class: bool = False

    def __call__(self, seen: Pair) -> Tensor:
        target = F.log_softmax(seen.logits / self.temperature, 1)
        mine = F.log_softmax(seen.student.logits / self.temperature, 1)
        loss = F.kl_div(mine, target, reduction="batchmean", log_target=True) * self.temperature**2
        return loss / mine.shape[1] if self.per_class else loss


@dataclass(frozen=True)
class HardLabel(Loss[Pair]):
    """Cross-entropy with the label where the image is not difficult, zero elsewhere, mean over all images (SynQ, Eq. 6).

    Difficulty is one minus the teacher's probability of the label, on the image before any perturbation.
    """

    max_difficulty: float = 1.0

    def __call__(self, seen: Pair) -> Tensor:
        easy = 1 - probability_of_label(seen.origin or seen) <= self.max_difficulty
        loss = F.cross_entropy(seen.student.logits, seen.images.labels, reduction="none")
        return (loss * easy).mean()


@dataclass(frozen=True)
class FeatureMatch(Loss[Pair]):
    """HAST's feature alignment: each channel's mean square, normalised to length one per image, summed over places.

    HAST reads the residual bodies before the addition; ours are the outputs of the blocks.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"blocks"})

    def __call__(self, seen: Pair) -> Tensor:
        def attention(x: Tensor) -> Tensor:
            return F.normalize(pooled(x.square()), dim=1)

        both = zip(seen.at["blocks"], seen.student.at["blocks"], strict=True)
        terms = [F.mse_loss(attention(student), attention(teacher)) for teacher, student in both]
        return sum(terms[1:], terms[0])


@dataclass(frozen=True)
class SaliencyMatch(Loss[Pair]):
    """Mean squared difference of the two networks' class activation maps (SynQ, L_CAM), at input size as in its code, which
    brings them between 0 and 1 after they are enlarged; ours are before.

    `by` is the map: GradCam(), Cam() or GradCamPlusPlus(), of the own winner's score or the label's.
    """

    by: Saliency = GradCam()

    def wants(self) -> frozenset[str]:
        return frozenset({self.by.place})

    def __call__(self, seen: Pair) -> Tensor:
        size = seen.images.pixels.shape[-2:]
        maps = (saliency(trace, self.by)[:, None] for trace in (seen.student, seen))
        student, teacher = (F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps)
        return F.mse_loss(student, teacher.detach())


@dataclass(frozen=True)
class OnHarderImages(Loss[Pair]):
    """A loss on images pushed one sign step up that very loss (HAST's promotion of difficulty; FGSM, eps in input units).

    `climbs`: another loss to step up, as SynQ's code does for CIFAR. The step goes through teacher and student, as in
    HAST's code; without `teacher` the teacher's side stands still (a parity switch).
    """

    loss: Loss[Pair]
    eps: float = 0.01
    climbs: Loss[Pair] | None = None
    teacher: bool = True

    def wants(self) -> frozenset[str]:
        return self._climbed.wants() | self.loss.wants() | {"pixels"}

    @property
    def _climbed(self) -> Loss[Pair]:
        return self.climbs or self.loss

    def __call__(self, seen: Pair) -> Tensor:
        pixels = seen.images.pixels
        shown = seen if self.teacher else seen.teacher_apart()
        gradient = torch.autograd.grad(self._climbed(shown), pixels, retain_graph=True)[0]
        return self.loss(seen.again((pixels + self.eps * gradient.sign()).detach()))


@dataclass(frozen=True)
class OnMixedImages(Loss[Pair]):
    """A loss on mixtures of two images of the batch (TexQ's mixup distillation; Zhang et al. 2018).

    Shares are drawn from Beta(alpha, alpha), one for each image (ours: TexQ's are not public). Labels stay those of the
    first image, so the loss should read none.
    """

    loss: Loss[Pair]
    alpha: float = 1.0

    def wants(self) -> frozenset[str]:
        return self.loss.wants()

    def __call__(self, seen: Pair) -> Tensor:
        pixels = seen.images.pixels.detach()
        share = torch.distributions.Beta(self.alpha, self.alpha).sample((len(pixels), 1, 1, 1)).to(pixels)
        other = pixels[torch.randperm(len(pixels)).to(pixels.device)]
        return self.loss(seen.again(share * pixels + (1 - share) * other))
