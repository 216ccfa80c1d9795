"""Where equal runs differ: `dreamquant bench experiments/spread.py --out experiments/results/spread`.

`gdfq` in our `fast` setting at W3A3 on third-party resnet20: one generator, the same to its last weight, because no student
changes it; its students differ only in the chance that moves, mirrors and shades the images they see. How far apart they
come out is what a comparison of generators by one student each cannot see below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dreamquant.job import Job
from dreamquant.loading import load_file
from dreamquant.optimizers import Adam, Schedule
from dreamquant.recipe import Recipe
from dreamquant.recipes import _fast, find
from dreamquant.steps.cotrain import CoTrain, DreamOnly, Learning, Meeting, Stage, Together
from dreamquant.synthesis.trained import TrainGenerator

METHODS = load_file(Path(__file__).with_name("methods.py"))


@dataclass(frozen=True)
class TogetherBut:
    """As `Together`, where the student's chance is another one for every `draw`."""

    iterations: int
    draw: int

    def __call__(self, state: Meeting) -> None:
        for loop in state.updates("dreaming and learning", self.iterations):
            seen = state.dream(loop)
            torch.manual_seed((torch.initial_seed() + 7919 * self.draw) % 2**62)
            state.learn(loop, seen.images, seen)


def _drawn(draw: int, bits: str, effort: str, ends: int | None) -> Recipe:
    recipe = find("gdfq")(bits, effort, ends)

    def other(stage: Stage) -> Stage:
        return TogetherBut(stage.iterations, draw) if isinstance(stage, Together) else stage

    steps = (replace(step, stages=tuple(map(other, step.stages))) if isinstance(step, CoTrain) else step for step in recipe.steps)
    return replace(recipe, name=f"gdfq student {draw}", steps=tuple(steps))


def first(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """One student."""
    return _drawn(1, bits, effort, ends)


def second(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """Another."""
    return _drawn(2, bits, effort, ends)


def third(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A third."""
    return _drawn(3, bits, effort, ends)


def finished(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A student of 512 images of a generator that has learned alone for as long, as other fast students learn."""
    recipe = find("gdfq")(bits, effort, ends)
    step = recipe.steps[-1]
    assert isinstance(step, CoTrain)
    images = TrainGenerator(step.dream, step.iterations, step.count)
    return replace(recipe, name="gdfq finished", synthesis=images, steps=_fast.taught(step.learn.loss))


def fresh(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A student of fresh images of such a generator, which stands still."""
    *ranges, step = find("gdfq")(bits, effort, ends).steps
    assert isinstance(step, CoTrain)
    dreaming, calibrate, together = step.stages
    assert isinstance(dreaming, DreamOnly) and isinstance(together, Together)
    stages = (DreamOnly(step.iterations), calibrate, Learning(together.iterations))
    return replace(find("gdfq")(bits, effort, ends), name="gdfq fresh", steps=(*ranges, replace(step, stages=stages)))


@dataclass(frozen=True)
class Late:
    """A schedule that begins when the share `start` of the loop is done."""

    start: float
    part: Schedule

    def __call__(self, done: float) -> float:
        return self.part(max(0.0, (done - self.start) / (1 - self.start)))


def paced(bits: str = "w3a3", effort: str = "fast", ends: int | None = None) -> Recipe:
    """A student whose rate is whole when it begins, and not what the generator's updates before it have left."""
    *ranges, step = find("gdfq")(bits, effort, ends).steps
    assert isinstance(step, CoTrain)
    alone = sum(stage.iterations for stage in step.stages if isinstance(stage, DreamOnly))
    optimizer = step.learn.optimizer
    assert isinstance(optimizer, Adam)
    learn = replace(step.learn, optimizer=replace(optimizer, schedule=Late(alone / step.iterations, optimizer.schedule)))
    return replace(find("gdfq")(bits, effort, ends), name="gdfq paced", steps=(*ranges, replace(step, learn=learn)))


def grid() -> list[Job]:
    """Three students of the generator of `gdfq` with seed 0, whose own is the fourth; two of a generator that has finished; one
    at another pace, for three seeds.
    """
    cells = [(name, 0) for name in ("first", "second", "third", "finished", "fresh")] + [("paced", seed) for seed in range(3)]
    return [METHODS.third_party_job(f"{Path(__file__).resolve()}:{name}", "w3a3", seed) for name, seed in cells]
