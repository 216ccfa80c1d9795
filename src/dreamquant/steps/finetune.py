"""FineTune: the student learns from the teacher on dreamed images."""

from __future__ import annotations

from dataclasses import dataclass

from dreamquant.images import Images
from dreamquant.learn import Learn
from dreamquant.model import Model
from dreamquant.quant.student import Student
from dreamquant.run import Run
from dreamquant.steps.notice import noticing


@dataclass(frozen=True)
class FineTune:
    """`iterations` updates by `learn` on reshuffled batches. The last iterate is the result."""

    learn: Learn
    iterations: int = 400
    batch: int = 64

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        if not len(images):
            raise ValueError("FineTune needs images; give the recipe a synthesis that dreams some")
        with noticing(student, teacher, images, run), student.training(self.learn.activations, self.learn.weights):
            learner = self.learn.on(student, teacher)
            for number in (loop := run.loop("fine-tuning", self.iterations, learner=learner)):
                learner.step(images.batch(number, self.batch, run.seed), number / self.iterations)
                loop.show(**learner.values)
