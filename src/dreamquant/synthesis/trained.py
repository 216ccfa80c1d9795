"""TrainGenerator: a generator learns against the teacher alone, then makes the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dreamquant.dream import Dream
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.run import Run
from dreamquant.synthesis.labels import balanced


@dataclass(frozen=True)
class TrainGenerator:
    """`iterations` updates by `dream`, then `count` images of balanced classes; the generator is kept with them."""

    dream: Dream
    iterations: int = 400
    count: int = 512

    def __call__(self, model: Model, run: Run) -> Images:
        torch.manual_seed(run.number("generator"))
        dreamer = self.dream.on(model)
        for number in (loop := run.loop("training the generator", self.iterations, dreamer=dreamer)):
            dreamer.step(number / self.iterations)
            loop.show(**dreamer.values)
        torch.manual_seed(run.number("labels"))
        images = dreamer.draw(balanced(self.count, model.classes), run)
        run.kept.generator = dreamer.generator.state_dict()
        return images
