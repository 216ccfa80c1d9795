"""synq: synthesis-aware fine-tuning (Kim, Kim and Kang, ICLR 2025, openreview.net/forum?id=2rnOgyFQgb).

A low-pass filter on every fetched batch, Grad-CAM maps of teacher and student aligned, hard labels only where the
teacher finds the image easy (Eq. 6). From its code, not its paper: KL with temperature 20 and weight 20, HAST's feature
alignment (weight 1000) and harder twins by one sign step, the own winner as Grad-CAM's class, its clamped weights.
Ours: the filter's cut-off as a share of the width (the CIFAR value is unpublished); ranges from the dreamed images
themselves with a correct running mean, not from a throw-away generator; the last iterate, never the best on test data;
rates that fall at fixed shares of the loop. The layered BNS term is left out: at its published weight it is 2e-4 of the
rest. `fast`: images, ranges and pace shared with all our fast recipes.
"""

from __future__ import annotations

from dreamquant.learn import Learn
from dreamquant.losses.image import BatchNormMatch, ClassTarget
from dreamquant.losses.student import FeatureMatch, HardLabel, OnHarderImages, SaliencyMatch, SoftLabel
from dreamquant.optimizers import Adam, Decay, Sgd
from dreamquant.quant.ranges import RunningMinMax
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import Calibrate
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.pixels import OptimizePixels, UnitNoise
from dreamquant.synthesis.transforms import Crop, Flip, LowPass


def synq(bits: str = "w4a4", effort: str = "fast", ends: int | None = None) -> Recipe:
    """SynQ: low-pass filtered images, aligned saliency, hard labels only for easy images."""
    agree = 20 * SoftLabel(20.0) + 0.5 * HardLabel(0.7) + 1000 * FeatureMatch()
    loss = agree + OnHarderImages(agree, 0.01) + 50 * SaliencyMatch()
    if effort == "fast":
        fine_tune = _fast.student(loss, (*_fast.AUGMENT, LowPass(0.357)))
        return Recipe("synq", _fast.IMAGES, scheme_of(bits, ends), (_fast.CALIBRATE, fine_tune))
    images = OptimizePixels(
        loss=BatchNormMatch() + 10 * ClassTarget(focus=2.0),
        count=5120,
        batch=256,
        iterations=1000,
        optimizer=Adam(0.5, schedule=Decay()),
        space=UnitNoise(),
    )
    learn = Learn(loss, Sgd(1e-4, schedule=Decay((0.2, 0.4, 0.6))), (Crop(0.5), Flip(), LowPass(0.357)))
    calibrate = Calibrate(RunningMinMax(0.9), count=5120, batch=256, transforms=(LowPass(0.357),))
    return Recipe("synq", images, scheme_of(bits, ends), (calibrate, FineTune(learn, iterations=20_000, batch=256)))
