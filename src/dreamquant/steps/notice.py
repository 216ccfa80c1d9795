"""What a user must know of a result and cannot see without data: that training did harm, that the network is lost, that
deployment will do harm.

Whether training brought the student closer to its teacher is measured on images that it did not train on.

On small networks a student of the logits can end further from its teacher than the rounding it began with. On dreamed
images this does not show, for every student agrees there with its teacher, unseen dreams included; on mixtures of them it
does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.quant.student import Student
from dreamquant.run import Run

COUNT, CHUNK = 128, 32  # images: of each measurement, and of one pass
AGREED = 0.8  # share of images on which a sound deployment predicts what the simulation does, at 3 bits too
KNOWN = 0.5  # share of images on which a student that is of any use predicts what its teacher does


@contextlib.contextmanager
def noticing(student: Student, teacher: Model, images: Images, run: Run) -> Iterator[None]:
    """What happens inside is training; a note says so where the student ends further from its teacher than it began.

    Changes nothing, random generators included: two passes of 128 images before and after.
    """
    mixed = mixtures(images)
    before = distance(student, teacher, mixed)
    yield
    after = distance(student, teacher, mixed)
    if not after <= before:
        run.note(
            f"training made the student worse: on mixtures of dreamed images the error of its logits is {after:.3g} of their "
            f"variance, and was {before:.3g} before; a recipe that does not train (omse, squant) may serve this network better"
        )


def mixtures(images: Images) -> Images:
    """Half-and-half mixtures of each image with the next, up to 128: unlike any that a student trains on. (N, C, H, W)"""
    pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT].to(images.pixels.device)
    chosen = images[pick]
    return Images((chosen.pixels + chosen.pixels.roll(1, 0)) / 2, chosen.labels)


def distance(student: Student, teacher: Model, images: Images) -> float:
    """Squared error of the student's logits, of the teacher's variance over these images. What all classes share cancels."""
    with torch.no_grad():
        parts = [images.pixels[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        both = [torch.cat([net(part) for part in parts]).double() for net in (student.net, teacher.net)]
    got, wanted = (logits - logits.mean(1, keepdim=True) for logits in both)
    return relative(got, wanted)


def ruin_remark(quantized: QuantizedModel, model: Model, images: Images) -> str | None:
    """In a line, that little is left of what the network knew; None where enough is."""
    if (share := agreement(quantized, model, images)) >= KNOWN:
        return None
    return (
        f"little is left of the network: quantized, it predicts what it did on {share:.0%} of dreamed images; "
        "try more bits, or a recipe that does not train (aciq, squant)"
    )


def deployment_remark(quantized: QuantizedModel, images: Images) -> str | None:
    """In a line, that integer kernels will compute something else than the network as it was trained; None where they do not."""
    if (share := agreement(quantized, quantized.deployed(), images)) >= AGREED:
        return None
    return (
        f"deployment will do harm: integer kernels predict what the trained network does on {share:.0%} of dreamed images; "
        "what counts is accuracy as deployed: try more bits, or another recipe"
    )


def agreement(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Images) -> float:
    """The share of up to 128 images on which two networks predict the same class."""
    with torch.no_grad():
        same = [one(chunk).argmax(1) == other(chunk).argmax(1) for chunk in images.pixels[:COUNT].split(CHUNK)]
    return float(torch.cat(same).float().mean())


def relative(got: Tensor, wanted: Tensor) -> float:
    """Squared error over the squared deviations of what was wanted from its mean over images, (N, D) both."""
    return float((got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-30))
