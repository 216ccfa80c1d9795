"""Dream: how a generator learns from one batch, by any loss on the teacher, or on the pair of teacher and student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.gradients import Gradients, Tensors
from dreamquant.images import ImageBuffer, Images
from dreamquant.losses.algebra import Loss, Objective
from dreamquant.model import Model
from dreamquant.optimizers import Adam, Optimizer, pace
from dreamquant.quant.student import Student
from dreamquant.run import Run, Stateful
from dreamquant.synthesis.conditions import Condition, Conditioner, Uniform
from dreamquant.synthesis.generator import BySide, Generator, shown
from dreamquant.synthesis.labels import balanced
from dreamquant.synthesis.transforms import Transform, applied
from dreamquant.trace import Trace, Watch, pair


@dataclass(frozen=True)
class Dream:
    """A generator, what its images should be, what it is asked for, and how it is optimised.

    `transforms`: what is done to the images before the losses look, while the generator learns; drawn images have none.
    `pixels`: mean and deviation in pixels of [0, 1] of what the generator puts out with mean 0 and deviation 1; where it is
    None, these are its values in the network's input space, as published.
    """

    loss: Loss[Any]  # Loss[Trace]; Loss[Pair], with "student" among its needs, where a student is there
    generator: Generator = BySide()
    optimizer: Optimizer = Adam(1e-3, (0.5, 0.999))
    conditioner: Conditioner = Uniform()
    batch: int = 64
    transforms: tuple[Transform, ...] = ()
    pixels: tuple[float, float] | None = None

    def on(self, model: Model, student: Student | None = None) -> Dreamer:
        """The live form. Raises ValueError where the loss reads a student and there is none."""
        return Dreamer(self, model, student)

    def images(self, model: Model, generator: nn.Module, condition: Condition) -> Images:
        """What a live generator makes of a condition."""
        condition = condition.to(model.device)
        made = generator(condition)
        pixels, labels = made if isinstance(made, tuple) else (made, condition.labels)
        return replace(condition, labels=labels).images(shown(model, pixels, self.pixels))

    def draw(self, model: Model, generator: nn.Module, labels: Tensor, run: Run, companions: int = 0) -> Images:
        """One image for each label (N,), without gradients.

        The generator normalises by the statistics of its batch, so every batch is full and `companions` of it are of
        all classes alike, and not kept: ask for about three quarters of a batch where `labels` leave classes out.
        """
        chunks = labels.split(max(1, self.batch - companions))
        buffer = ImageBuffer()
        for number in run.loop("drawing images", len(chunks), buffer=buffer):
            count = len(chunks[number])
            others = balanced(self.batch, model.classes)[count:]
            condition = self.conditioner.of(model, torch.cat([chunks[number].cpu(), others]))
            with torch.no_grad():
                buffer.add(self.images(model, generator, condition)[slice(count)])
        return buffer.all()


class Dreamer:
    """Stateful: a generator, its optimizer, and the memories of the loss."""

    def __init__(self, dream: Dream, model: Model, student: Student | None = None) -> None:
        self.dream, self.model = dream, model
        self.objective = Objective(dream.loss, model)
        if "student" in self.objective.needs and student is None:
            raise ValueError(f"{dream.loss!r} reads a student, and there is none while a generator learns alone; use CoTrain")
        self.generator = dream.generator.on(model).to(model.device)
        self.mine = [p for part in (self.generator, self.objective) for p in part.parameters() if p.requires_grad]
        self.optimizer = dream.optimizer.on(self.mine)
        self.teacher = Watch(model, self.objective.needs)
        self.read = student if "student" in self.objective.needs else None  # by the loss
        self.student = Watch(model, self.objective.needs - {"bn"}, self.read.net) if self.read else None
        self.values: Tensors = {}  # of the terms, in the last update
        self.gradients = Gradients(self._loss, self.mine)  # nothing reaches teacher or student

    def step(self, done: float) -> Trace:
        """One update; `done` is the share of the training before it.

        Returns what the teacher did with the images that the generator made before the update, with them, detached. On a GPU
        the next update may write into the same memory.
        """
        condition = self.dream.conditioner(self.model, self.dream.batch).to(self.model.device)
        now = torch.full((), done, dtype=torch.float64, device=self.model.device)
        take = self.gradients if self.read is None or self.read.still else self.gradients.anew
        self.values, seen = take({**condition.tensors(), "done": now})
        pace(self.optimizer, self.dream.optimizer, done)
        self.optimizer.step()
        self.objective.take_in(seen)
        return seen

    def _loss(self, inputs: Tensors) -> tuple[Tensor, tuple[Tensors, Trace]]:
        """The objective on the images of one condition; its terms, and what the teacher did."""
        images = self.dream.images(self.model, self.generator, Condition.of(inputs))
        images = replace(images, pixels=applied(self.dream.transforms, images.pixels))
        seen: Trace = replace(self.teacher(images), done=inputs["done"])
        loss = self.objective(pair(seen, self.student(images), done=inputs["done"]) if self.student else seen)
        return loss, (self.objective.values, seen.detached())

    def draw(self, labels: Tensor, run: Run) -> Images:
        """One image for each label (N,)."""
        return self.dream.draw(self.model, self.generator, labels, run)

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Stateful] = {"generator": self.generator, "optimizer": self.optimizer, "objective": self.objective}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in (("generator", self.generator), ("optimizer", self.optimizer), ("objective", self.objective)):
            part.load_state_dict(state[name])
