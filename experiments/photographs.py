"""What photographs give in place of dreams: `dreamquant bench experiments/photographs.py --out experiments/results/photographs`.

The blocks of `dream` learn from real images, of the very data that the result is measured on: the difference is what better
dreams could still win. (`genie`, in `fast`, has the same blocks.) The grid is of our `fast` setting on third-party resnet20 at W3A3.
`trained` learns as a whole, from ten thousand of the images that the network was trained on: a measure of what data and an
hour give at these bits, and no proof that nothing gives more.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dreamquant.evaluate import LabelledImages
from dreamquant.images import Images
from dreamquant.job import Job
from dreamquant.learn import Learn
from dreamquant.loading import load_file
from dreamquant.losses.activated import PassedMatch
from dreamquant.losses.student import SoftLabel
from dreamquant.optimizers import Adam, Cosine
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast
from dreamquant.steps.calibrate import SetWeightRanges
from dreamquant.steps.finetune import FineTune
from dreamquant.synthesis.pixels import NoImages
from dreamquant.synthesis.transforms import Flip, Shift

HERE = Path(__file__)
METHODS = load_file(HERE.with_name("methods.py"))
COUNTS, SEEDS = (512, 2048), (0, 1, 2)


def photographs(count: int) -> str:
    """A folder of `count` images as the network takes them, evenly spread over the data; written where it is not there yet."""
    folder: Path = METHODS.ROOT / "experiments" / ".work" / f"photographs-{count}"
    job: Job = METHODS.third_party_job("dream", "w3a3", 0)
    if job.eval and Path(job.eval).exists() and not (folder / "images.safetensors").exists():
        pixels, labels = (torch.cat(parts) for parts in zip(*LabelledImages.open(job.eval).batches(job.load()), strict=True))
        chosen = torch.linspace(0, len(labels) - 1, min(count, len(labels))).long()
        Images(pixels[chosen], labels[chosen]).save(folder)
    return str(folder)


def training_images(count: int = 10_000) -> str:
    """A folder of `count` random images of train.tar; written where it is not there yet."""
    folder: Path = METHODS.ROOT / "experiments" / ".work" / f"photographs-train-{count}"
    data = METHODS.CIFAR / "train.tar"
    if data.exists() and not (folder / "images.safetensors").exists():
        job: Job = METHODS.third_party_job("dream", "w3a3", 0)
        pixels, labels = (torch.cat(parts) for parts in zip(*LabelledImages.open(data).batches(job.load()), strict=True))
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
        Images(pixels[chosen], labels[chosen]).save(folder)
    return str(folder)


def trained(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """5,000 updates of the whole student, by logits and by what every activation passes; no dreams, no blocks."""
    loss = SoftLabel(4.0) + 0.3 * PassedMatch(relative=True)
    learn = Learn(loss, Adam(1e-3, schedule=Cosine()), (Flip(), Shift(3)), LearnSteps(), LearnSteps())
    grids = SetWeightRanges(LpSearch(candidates=100, least=0.01))
    return Recipe("trained", NoImages(), scheme_of(bits, ends), (_fast.CALIBRATE, grids, FineTune(learn, iterations=5000)))


def whole() -> list[Job]:
    """One student that is trained with data for an hour, ends and residual sums of 8 bits."""
    job = METHODS.third_party_job(f"{HERE}:trained", "w3a3", 0, ("scheme.residual=8",), 8)
    return [replace(job, images=training_images())]


def grid() -> list[Job]:
    """`dream` at the same bits everywhere, with ends of 8 bits, and with residual sums of 8 bits too; of more images more updates."""
    conventions = ((None, ()), (8, ()), (8, ("scheme.residual=8",)))
    jobs = [METHODS.third_party_job("dream", "w3a3", seed, settings, ends) for seed in SEEDS for ends, settings in conventions]
    few, many = (photographs(count) for count in COUNTS)
    longer = [replace(job, set=(*job.set, "steps.Reconstruct.iterations=1500")) for job in jobs]
    return [*(replace(job, images=few) for job in jobs), *(replace(job, images=many) for job in longer)]
