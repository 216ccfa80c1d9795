"""distill: our plain baseline, BatchNorm-matched images and a student of the teacher's logits, nothing else.

Every method is compared with it at equal images and steps. `paper` has the budget of the fine-tuning papers (5,120
images of 1,000 steps, 20,000 updates of SGD 1e-4), with their BNS-B and temperature.
"""

from __future__ import annotations

from dreamquant.learn import Learn
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Adam, Decay, Sgd
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.pixels import OptimizePixels, UnitNoise
from dreamquant.synthesis.transforms import Crop, Flip


def distill(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Our plain baseline: BatchNorm-matched images and a student of the teacher's logits."""
    if effort == "fast":
        return Recipe("distill", _fast.IMAGES, scheme_of(bits, ends), (_fast.CALIBRATE, _fast.student(SoftLabel(4.0))))
    images = OptimizePixels(BatchNormMatch() + ClassTarget(), 5120, 256, 1000, Adam(0.5, schedule=Decay()), space=UnitNoise())
    learn = Learn(20 * SoftLabel(20.0), Sgd(1e-4, schedule=Decay((0.2, 0.4, 0.6))), (Crop(0.5), Flip()))
    calibrate = Calibrate(RunningMinMax(0.9), count=5120, batch=256)
    return Recipe("distill", images, scheme_of(bits, ends), (calibrate, FineTune(learn, iterations=20_000, batch=256)))
