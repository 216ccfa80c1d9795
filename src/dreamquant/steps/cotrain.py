"""CoTrain: a generator and a student learn in turns, in stages that are values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dreamquant.dream import Dream
from dreamquant.images import Images
from dreamquant.learn import Learn
from dreamquant.model import Model
from dreamquant.quant.student import Student
from dreamquant.run import Loop, Run, Stateful
from dreamquant.synthesis.labels import balanced
from dreamquant.trace import Trace


class Stage(Protocol):
    """A part of a co-training. One with a field `iterations` goes that often through `state.updates(...)`."""

    def __call__(self, state: Meeting) -> None: ...


class Step(Protocol):
    """As in recipe.py, which steps do not see."""

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None: ...


class Meeting:
    """A generator and a student that meet. Stateful: everything that changes in a co-training is in here."""

    def __init__(self, part: CoTrain, student: Student, teacher: Model, run: Run) -> None:
        self.part, self.student, self.teacher, self.run, self.clock = part, student, teacher, run, 0
        torch.manual_seed(run.number("generator"))
        self.dreamer = part.dream.on(teacher, student)
        self.learner = part.learn.on(student, teacher)

    @property
    def done(self) -> float:
        """The share of all updates that were made: schedules of both sides follow it."""
        return self.clock / max(1, self.part.iterations)

    def updates(self, name: str, iterations: int, **more: Stateful) -> Iterator[Loop]:
        """Go `iterations` times on; everything is saved and restored, and what else of the stage's own changes."""
        for _ in (loop := self.run.loop(name, iterations, state=self, **more)):
            yield loop
            self.clock += 1

    def dream(self, loop: Loop) -> Trace:
        """One update of the generator; what the teacher did with the images before it."""
        if self.dreamer.student is not None:
            self.measured()
        seen = self.dreamer.step(self.done)
        loop.show(**self.dreamer.values)
        return seen

    def learn(self, loop: Loop, images: Images, seen: Trace | None = None) -> None:
        """One update of the student on these images, of which the teacher's part may be known."""
        self.measured()
        self.learner.step(images, self.done, seen)
        both: dict[str, Tensor | float] = {**loop.values, **self.learner.values}
        loop.show(**both)

    def measured(self) -> None:
        """Raises ValueError where a range of the student's activations was never measured."""
        if unknown := self.student.unmeasured():
            way = "begin with DreamOnly(n, track=0.9), or have OnDreams(Calibrate()) before it"
            raise ValueError(f"CoTrain: the range of {unknown[0]} was never measured; {way}")

    def draw(self, count: int) -> Images:
        """`count` images of balanced classes, of the generator as it is."""
        torch.manual_seed(self.run.number("labels"))
        return self.dreamer.draw(balanced(count, self.teacher.classes), self.run)

    def state_dict(self) -> dict[str, Any]:
        return {"dreamer": self.dreamer.state_dict(), "learner": self.learner.state_dict(), "clock": self.clock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dreamer.load_state_dict(state["dreamer"])
        self.learner.load_state_dict(state["learner"])
        self.clock = state["clock"]


@dataclass(frozen=True)
class DreamOnly:
    """The generator learns alone.

    With `track`, the student looks on, once an update: its activation ranges follow a running mean of that momentum, and
    stand still afterwards. A loss of the generator that reads the student needs ranges: track, or have them measured before.
    `compounding` is that mean as published, see `RunningMinMax` (a parity switch).
    """

    iterations: int
    track: float | None = None
    compounding: bool = False

    def __call__(self, state: Meeting) -> None:
        tracking: AbstractContextManager[None] = nullcontext()
        if self.track is not None:
            tracking = state.student.tracking(self.track, self.compounding)
        with tracking:
            for loop in state.updates("dreaming", self.iterations):
                seen = state.dream(loop)
                if self.track is not None and state.dreamer.student is None:  # otherwise the generator's loss looked already
                    with torch.no_grad():
                        state.student.net(seen.images.pixels)


@dataclass(frozen=True)
class Together:
    """One update of the generator, then one of the student on the images made before it: GDFQ's order.

    The teacher's pass is shared where the student's loss needs no more than the generator's, and no transform of its own.
    """

    iterations: int

    def __call__(self, state: Meeting) -> None:
        for loop in state.updates("dreaming and learning", self.iterations):
            seen = state.dream(loop)
            state.learn(loop, seen.images, seen)


@dataclass(frozen=True)
class Learning:
    """The student learns alone, on fresh images of a generator that stands still."""

    iterations: int

    def __call__(self, state: Meeting) -> None:
        dream, model = state.part.dream, state.teacher
        for loop in state.updates("learning", self.iterations):
            with torch.no_grad():
                images = dream.images(model, state.dreamer.generator, dream.conditioner(model, dream.batch))
            state.learn(loop, images)


@dataclass(frozen=True)
class OnDreams:
    """Any step, taken on `count` images of the generator as it is: `OnDreams(Calibrate())` measures ranges anew."""

    step: Step
    count: int = 256

    def __call__(self, state: Meeting) -> None:
        self.step(state.student, state.teacher, state.draw(self.count), state.run)


@dataclass(frozen=True)
class CoTrain:
    """Generator and student go through the stages together; `count` images and the generator are kept for the result.

    Images that a synthesis made are not used. The last iterate is the result.
    """

    dream: Dream
    learn: Learn
    stages: tuple[Stage, ...] = (DreamOnly(150, track=0.9), Together(400))
    count: int = 512

    @property
    def iterations(self) -> int:
        """All updates of all stages."""
        return sum(getattr(stage, "iterations", 0) for stage in self.stages)

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        with student.training(self.learn.activations, self.learn.weights):
            state = Meeting(self, student, teacher, run)
            for number in run.loop("stages", len(self.stages), state=state):
                self.stages[number](state)
        run.kept.images = state.draw(self.count)
        run.kept.generator = state.dreamer.generator.state_dict()
