"""What the `paper` efforts of the pixel-optimising family share: images, ranges and a student's pace as in IntraQ's code, from
which HAST's, SynQ's and others' descend.

Ours: rates that fall at fixed shares of the loop, where the code waits for plateaus of a noisy loss; as many images of one
class as of another, where the code draws classes; ranges from the dreamed images themselves with a correct running mean,
where the code runs a throw-away generator through a faulty one (`as_published` has that); the last iterate, where the code
keeps the best on test data. Two more, without which the published rates lose a student of 3 bits: no gradient that alone
would move the weights by more than a thousandth of their norm (momentum makes up to ten of it; ours of ResNet-20 keeps 57 %
after 100 updates of `intraq`, and 20 % without that bound: experiments/methods.py:bounds), and no gradient through
activations that are clipped (with it, weights before them grow without end; on 8x8 digits `distill` was lost after 7,000
updates).
"""

from __future__ import annotations

from typing import Any

from dreamquant.dream import Dream
from dreamquant.learn import Learn
from dreamquant.losses.algebra import Loss
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import HardLabel, SoftLabel
from dreamquant.optimizers import Adam, Decay, Sgd
from dreamquant.quant.quantizer import PassInside
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.recipe import Step
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Together
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.conditions import Conditioner, Uniform
from dreamquant.synthesis.generator import BySide, Generator
from dreamquant.synthesis.labels import Balanced, Labels
from dreamquant.synthesis.pixels import OptimizePixels, UnitNoise
from dreamquant.synthesis.transforms import Crop, Flip, Transform
from dreamquant.trace import Pair, Trace

CALIBRATE = Calibrate(RunningMinMax(0.9), count=5120, batch=256)
AUGMENT = (Crop(0.5), Flip())
SEEN = ClassTarget() + 0.1 * BatchNormMatch()  # GDFQ's losses, generator's and student's, and its descendants'
AGREE = SoftLabel(20.0, per_class=True) + HardLabel()


def images(loss: Loss[Trace], transforms: tuple[Transform, ...] = (), labels: Labels = Balanced()) -> OptimizePixels:  # noqa: B008
    """5,120 images in batches of 256, 1,000 steps of Adam 0.5 from N(0, 1)."""
    return OptimizePixels(loss, 5120, 256, 1000, Adam(0.5, schedule=Decay()), transforms, UnitNoise(), labels=labels)


def cotrain(
    dream_loss: Loss[Any],
    student_loss: Loss[Pair],
    conditioner: Conditioner = Uniform(),  # noqa: B008 (a value)
    generator: Generator = BySide(),  # noqa: B008
    batch: int = 200,
    lr: float = 1e-4,
    warm: int = 800,
) -> tuple[*tuple[Step, ...], CoTrain]:
    """GDFQ's pace for CIFAR, and its descendants': 80,000 updates, of which the student sits out the first 800 and settles
    its ranges. Both rates fall at a quarter, a half and three quarters of all.

    ImageNet: batches of 16, `lr` 1e-6 (GDFQ, Qimera) or 1e-5, and the student starts after 10,000 updates, its ranges
    from the first 800. The first two are fields for `--set`; `warm` needs a recipe file, where this function is called.
    """
    dream = Dream(dream_loss, generator, Adam(1e-3, (0.5, 0.999), Decay()), conditioner, batch)
    stages = (DreamOnly(800, track=0.9), *((DreamOnly(warm - 800),) if warm > 800 else ()), Together(80_000 - warm))
    return (CoTrain(dream, Learn(student_loss, Sgd(lr)), stages),)


def student(
    loss: Loss[Pair],
    lr: float,
    transforms: tuple[Transform, ...] = AUGMENT,
    iterations: int = 29_400,
    falls: tuple[float, ...] = (0.11, 0.245, 0.38),
    batch: int = 256,
) -> FineTune:
    """CIFAR: 147 epochs of 200 updates; the rate falls at epochs 20, 40 and 60, of which 4 were spent on ranges."""
    return FineTune(Learn(loss, Sgd(lr, schedule=Decay(falls), most=1e-3), transforms, PassInside()), iterations, batch)
