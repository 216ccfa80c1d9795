"""What the `fast` efforts share, alike for all, so that what differs is the method: images, ranges, and the pace of
students and of blocks that are rebuilt.

Ours, from our own measurements: BatchNorm statistics in units of the network's deviations, pixels of [0, 1], ranges that
minimise the error, learned steps, Adam with cosine decay, images shown at other contrasts and brightnesses too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dreamquant.dream import Dream
from dreamquant.learn import Learn
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.losses.student import HardLabel, SoftLabel
from dreamquant.optimizers import Adam, Cosine, Relative
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.ranges import LpSearch
from dreamquant.recipe import Step
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.cotrain import CoTrain, DreamOnly, OnDreams, Together
from dreamquant.steps.finetune import FineTune
from dreamquant.steps.reconstruct import Reconstruct
from dreamquant.synthesis.conditions import Conditioner, Uniform
from dreamquant.synthesis.generator import ClassNormed, Generator
from dreamquant.synthesis.pixels import OptimizePixels
from dreamquant.synthesis.transforms import Contrast, Flip, Shift, Transform
from dreamquant.trace import Pair

SEEN = BatchNormDeviation() + 0.1 * ClassTarget()  # at 0.3 and more the classes disturb a generator's statistics
IMAGES = OptimizePixels(
    loss=SEEN,
    count=512,
    batch=128,
    iterations=150,
    transforms=(Flip(), Shift(2)),
)
FEWER_IMAGES = replace(IMAGES, count=256)  # blocks that are rebuilt learn as much from half as many
CALIBRATE = Calibrate(LpSearch(), count=256)
AUGMENT = (Flip(), Shift(3), Contrast(0.4))  # few dreams are soon known by heart; at other contrasts they are more

WIDTH = 32  # of 64, BatchNorm's statistics come no closer in as many updates
GENERATOR = ClassNormed(width=WIDTH, affine=True)  # learns the classes in so few updates, which Multiplied does not
PIXELS = (0.5, 0.25)
AGREE = SoftLabel(20.0) + 0.05 * HardLabel()  # at its full weight acq loses a point more at W3A3, causal_dfq half a point


REBUILT = (
    CALIBRATE,
    SetWeightRanges(LpSearch(candidates=100, least=0.01)),
    Reconstruct(  # GENIE-M's 20,000 updates of 32 images in a fortieth and half
        iterations=500,
        batch=16,
        rounding=Adam(0.12),  # at a third of it 2 bits lose a point more, 3 bits nothing
        weight_steps=Relative(Adam(0.09, schedule=Cosine())),  # absolute rates that fit 4 bits lose 8, and learn 2 too slowly
        activation_steps=Relative(Adam(3e-3, schedule=Cosine())),
    ),
)


def cotrain(
    dream_loss: Loss[Any],
    student_loss: Loss[Pair],
    conditioner: Conditioner = Uniform(),  # noqa: B008 (a value)
    generator: Generator = GENERATOR,
    track: float | None = None,
) -> tuple[*tuple[Step, ...], CoTrain]:
    """A generator that learns alone for 300 updates, then 350 in which both learn, on batches of 64.

    Ranges, learned steps and augmentation as in the other fast recipes, activations measured when the student begins; with
    `track` their ranges follow the images before that too, for a loss of the generator that reads the student. As in the
    papers one schedule serves both, so the student begins at 0.56 of its rate and has a third of the pace of `taught`'s
    (experiments/spread.py:paced has all of it).
    """
    dream = Dream(dream_loss, generator, Adam(8e-3, (0.5, 0.999), Cosine()), conditioner, 64, (), PIXELS)
    learn = Learn(student_loss, Adam(1e-3, schedule=Cosine()), AUGMENT, LearnSteps(), LearnSteps())
    return SetWeightRanges(), CoTrain(dream, learn, (DreamOnly(300, track), OnDreams(CALIBRATE), Together(350)))


def taught(loss: Loss[Pair], *filters: Transform) -> tuple[Step, ...]:
    """Ranges, then a student that learns by `loss`, the steps of its grids too; it sees all images through the filters."""
    return taught_after((replace(CALIBRATE, transforms=filters),), loss, *filters)


def taught_after(steps: tuple[Step, ...], loss: Loss[Pair], *filters: Transform) -> tuple[Step, ...]:
    """The steps, then 400 updates of a student on batches of 64; grids of weights are set first where none of the steps does."""
    grids = () if any(isinstance(step, SetWeightRanges) for step in steps) else (SetWeightRanges(),)
    learn = Learn(loss, Adam(1e-3, schedule=Cosine()), (*AUGMENT, *filters), LearnSteps(), LearnSteps())
    return *grids, *steps, FineTune(learn, iterations=400, batch=64)
