"""Learn: how a student learns from one batch, by any loss on the pair of teacher and student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamquant.gradients import Gradients, Tensors, differentiate
from dreamquant.images import Images
from dreamquant.losses.algebra import Loss, Objective
from dreamquant.model import Model
from dreamquant.optimizers import Optimizer, pace
from dreamquant.quant.quantizer import Acting, Floor, PassAll
from dreamquant.quant.student import Student
from dreamquant.run import Stateful
from dreamquant.synthesis.transforms import Transform, applied
from dreamquant.trace import Pair, Trace, Watch, pair


@dataclass(frozen=True)
class Learn:
    """A loss, an optimizer, what is done to the pixels, and how quantizers pass gradients.

    `steps_lr`: the rate of learned grids as a share of the weights' rate. Grids of activations and of weights are
    learned where their rule says so.
    """

    loss: Loss[Pair]
    optimizer: Optimizer
    transforms: tuple[Transform, ...] = ()
    activations: Acting = PassAll()
    weights: Acting | None = None
    steps_lr: float = 1.0

    def on(self, student: Student, teacher: Model) -> Learner:
        """The live form; make it inside `student.training(...)`, which decides what is trainable."""
        return Learner(self, student, teacher)


class Learner:
    """Stateful: the student's network, its optimizer, and the memories of the loss."""

    def __init__(self, learn: Learn, student: Student, teacher: Model) -> None:
        self.learn, self.net = learn, student.net
        self.objective = Objective(learn.loss, teacher)
        grids = {id(q.scale) for q in [*student.activation_quantizers().values(), *(m.quantizer for m in student.layers().values())]}
        mine = [p for p in student.net.parameters() if p.requires_grad]
        rest, steps = [p for p in mine if id(p) not in grids], [p for p in mine if id(p) in grids]
        self.mine, self.floor = rest + steps, Floor(steps)
        codes = {id(layer.weight): layer.quantizer.codes for layer in student.layers().values()}
        self.optimizer = learn.optimizer.on([{"params": rest}], codes)
        if steps:
            rate = self.optimizer.param_groups[0]["lr"] * learn.steps_lr
            self.optimizer.add_param_group({"params": steps, "lr": rate, "weight_decay": 0.0})
        self.teacher = Watch(teacher, self.objective.needs)
        self.student = Watch(teacher, self.objective.needs - {"bn"}, student.net)
        self.harder = "pixels" in self.objective.needs  # a term climbs from the pixels: they need gradients, through the teacher too
        self.values: Tensors = {}  # of the terms, in the last update
        self.gradients = Gradients(lambda inputs: self._loss(Images.of(inputs), inputs["done"]), self.mine)

    def step(self, images: Images, done: float, seen: Trace | None = None) -> None:
        """One update on one batch; `done` is the share of the loop before it.

        `seen` is what the teacher did with the batch, where that is known: it is used where it will do, and not on a GPU,
        which replays the teacher's pass sooner than Python starts an update.
        """
        images = replace(images, pixels=applied(self.learn.transforms, images.pixels).detach())
        now = torch.full((), done, dtype=torch.float64, device=images.pixels.device)
        enough = seen is not None and self.teacher.needs - {"student"} <= seen.watch.needs
        if not enough or self.harder or self.learn.transforms or now.is_cuda:
            self.values = self.gradients({**images.tensors(), "done": now})
        else:
            loss, self.values = self._loss(images, now, seen)
            differentiate(loss, self.mine)
        pace(self.optimizer, self.learn.optimizer, done)
        with self.floor:
            self.optimizer.step()

    def _loss(self, images: Images, done: Tensor, seen: Trace | None = None) -> tuple[Tensor, Tensors]:
        """The objective on one batch, as the transforms left it, and its terms."""
        images = replace(images, pixels=images.pixels.detach().requires_grad_(self.harder))
        if seen is None:
            with torch.set_grad_enabled(self.harder):
                seen = self.teacher(images)
        return self.objective(pair(seen, self.student(images), done=done)), self.objective.values

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Stateful] = {"optimizer": self.optimizer, "floor": self.floor, "objective": self.objective, "student": self.net}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.floor.load_state_dict(state["floor"])
        self.objective.load_state_dict(state["objective"])
