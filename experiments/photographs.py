"""What photographs give in place of dreams: `dreamquant bench experiments/photographs.py --out experiments/results/photographs`.

The blocks of `dream` learn from real images, of the very data that the result is measured on: the difference is what better
dreams could still win. (`genie`, in `fast`, has the same blocks.) The grid is of our `fast` setting on third-party resnet20 at W3A3.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dreamquant.evaluate import LabelledImages
from dreamquant.images import Images
from dreamquant.job import Job
from dreamquant.loading import load_file

METHODS = load_file(Path(__file__).with_name("methods.py"))
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


def grid() -> list[Job]:
    """`dream` at the same bits everywhere, with ends of 8 bits, and with residual sums of 8 bits too; of more images more updates."""
    conventions = ((None, ()), (8, ()), (8, ("scheme.residual=8",)))
    jobs = [METHODS.third_party_job("dream", "w3a3", seed, settings, ends) for seed in SEEDS for ends, settings in conventions]
    few, many = (photographs(count) for count in COUNTS)
    longer = [replace(job, set=(*job.set, "steps.Reconstruct.iterations=1500")) for job in jobs]
    return [*(replace(job, images=few) for job in jobs), *(replace(job, images=many) for job in longer)]
