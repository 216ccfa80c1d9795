"""OptimizePixels: images by gradient descent on their pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.gradients import Gradients, Tensors
from dreamquant.images import ImageBuffer, Images
from dreamquant.losses.algebra import Loss, Objective
from dreamquant.model import Model
from dreamquant.optimizers import Adam, Cosine, Optimizer, pace
from dreamquant.run import Run, Stateful
from dreamquant.synthesis.labels import Balanced, Labels, balanced
from dreamquant.synthesis.transforms import Transform, applied
from dreamquant.trace import Trace, Watch


class Synthesis(Protocol):
    """Model -> Images."""

    def __call__(self, model: Model, run: Run) -> Images: ...


@dataclass(frozen=True)
class NoImages:
    """For recipes that need none."""

    def __call__(self, model: Model, run: Run) -> Images:
        return Images(torch.empty(0, *model.shape), torch.empty(0, dtype=torch.long))


@dataclass(frozen=True)
class Noise:
    """Images of plain noise around the middle grey, with balanced labels: what dreaming must beat."""

    count: int = 128
    deviation: float = 0.25

    def __call__(self, model: Model, run: Run) -> Images:
        torch.manual_seed(run.number("noise"))
        pixels = (0.5 + self.deviation * torch.randn(self.count, *model.shape)).clamp(0, 1)
        return Images(model.normalise(pixels), balanced(self.count, model.classes)).to(model.device)


@dataclass(frozen=True)
class UnitNoise:
    """Start of the papers' code: N(0, 1) times `deviation` in the network's input space, free to leave the range of pixels."""

    deviation: float = 1.0

    def start(self, model: Model, count: int) -> Tensor:
        return self.deviation * torch.randn(count, *model.shape)

    def shown(self, model: Model, raw: Tensor) -> Tensor:
        return raw

    def keep(self, raw: Tensor) -> None:
        return


@dataclass(frozen=True)
class PixelRange:
    """Pixels of [0, 1], clamped after every step: the same settings serve inputs of any scale (ours)."""

    middle: float = 0.5
    deviation: float = 0.25

    def start(self, model: Model, count: int) -> Tensor:
        return (self.middle + self.deviation * torch.randn(count, *model.shape)).clamp(0, 1)

    def shown(self, model: Model, raw: Tensor) -> Tensor:
        return model.normalise(raw)

    def keep(self, raw: Tensor) -> None:
        raw.clamp_(0, 1)


@dataclass(frozen=True)
class Frequencies:
    """Pixels of (0, 1) as sigmoids of an image whose Fourier coefficients are optimised, in the units of photographs.

    An optimizer that moves all coefficients alike then draws what is large before what is fine, and light before colour;
    pixels that move alike are white noise. Units fall as 1 / frequency ** `decay`, and as 1 / (1 + k) ** `fade` for axis k
    of the channels' cosine transform (of RGB: brightness, red against blue, green against both). The idea is feature
    visualisation's (Olah, Mordvintsev and Schubert 2017).
    """

    decay: float = 1.5
    fade: float = 1.3

    def start(self, model: Model, count: int) -> Tensor:
        channels, height, width = model.shape
        return torch.randn(count, channels, height, width // 2 + 1, 2)  # real and imaginary parts

    def shown(self, model: Model, raw: Tensor) -> Tensor:
        channels, *size = model.shape
        coefficients = torch.view_as_complex(raw) * self.units(*size).to(raw.device)
        waves = torch.fft.irfft2(coefficients, s=size, norm="ortho")
        return model.normalise(torch.sigmoid(torch.einsum("kc,nkhw->nchw", self.axes(channels).to(raw.device), waves)))

    def units(self, height: int, width: int) -> Tensor:
        """What a coefficient is multiplied by, (H, W // 2 + 1): coefficients of N(0, 1) make an image of deviation 0.8 to 0.9."""
        down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        frequency = (down[:, None].square() + across.square()).sqrt().clamp_min(1 / max(height, width))
        units = frequency**-self.decay
        return units / (2 * units.square().mean()).sqrt()

    def axes(self, channels: int) -> Tensor:
        """Axes of colour in their units, a row each, (channels, channels): orthogonal, of the mean square of a rotation's."""
        order = torch.arange(channels)
        waves = torch.cos(order[:, None] * (order + 0.5) * (torch.pi / channels))
        units = (1.0 + order) ** -self.fade
        return F.normalize(waves) * (units / units.square().mean().sqrt())[:, None]

    def keep(self, raw: Tensor) -> None:
        return


class Space(Protocol):
    """What is optimised: where it starts, what the network is shown of it, and what holds after every step."""

    def start(self, model: Model, count: int) -> Tensor: ...

    def shown(self, model: Model, raw: Tensor) -> Tensor: ...

    def keep(self, raw: Tensor) -> None: ...


@dataclass(frozen=True)
class OptimizePixels:
    """`count` images in equal batches of about `batch`, each descending `loss` for `iterations` steps.

    A batch stops early when its loss has not fallen by a thousandth of itself for `patience` steps. Batches are saved as
    they finish, and inside, by the clock. Losses with a memory take in every finished batch, and before the first one
    the `exemplars`: one image of each class (whatever their `count`), dreamed as they say and not kept.
    """

    loss: Loss[Trace]
    count: int = 512
    batch: int = 128
    iterations: int = 150
    optimizer: Optimizer = Adam(0.05, (0.5, 0.9), Cosine())
    transforms: tuple[Transform, ...] = ()
    space: Space = PixelRange()
    patience: int | None = None
    labels: Labels = Balanced()
    exemplars: OptimizePixels | None = None

    def __call__(self, model: Model, run: Run) -> Images:
        torch.manual_seed(run.number("labels"))
        asked = self.labels(self.count, model.classes).to(model.device)
        torch.manual_seed(run.number("objective"))
        objective = Objective(self.loss, model)
        watch = Watch(model, objective.needs)
        for part in self._exemplars(model, run):
            objective.remember(watch, part)
        parts = self._parts(asked)
        buffer = ImageBuffer()
        for number in run.loop("dreaming: batches", len(parts), buffer=buffer, objective=objective):
            images = self._batch(model, run, parts[number], objective, watch)
            objective.remember(watch, images)
            buffer.add(images)
        images = buffer.all()
        if not images.pixels.isfinite().all():
            raise FloatingPointError("dreamed images hold values that are not finite; lower synthesis.optimizer.lr")
        return images

    def _parts(self, images: Images) -> list[Images]:
        """Equal batches of about `batch`."""
        return [images[index] for index in torch.arange(len(images)).tensor_split(-(-len(images) // self.batch))]

    def _exemplars(self, model: Model, run: Run) -> list[Images]:
        """One image of each class, in batches; none where none are asked for."""
        if self.exemplars is None:
            return []
        buffer = ImageBuffer()
        for _ in run.loop("dreaming: exemplars", 1, buffer=buffer):
            buffer.add(replace(self.exemplars, count=model.classes)(model, run))
        return self._parts(buffer.all().to(model.device))

    def _batch(self, model: Model, run: Run, asked: Images, objective: Objective[Trace], watch: Watch) -> Images:
        torch.manual_seed(run.number("start"))
        raw = nn.Parameter(self.space.start(model, len(asked)).to(model.device))
        holder = nn.ParameterDict({"raw": raw})
        optimizer = self.optimizer.on([raw])
        waiting = Waiting(self.patience)

        def loss(inputs: Tensors) -> tuple[Tensor, Tensors]:
            shown = applied(self.transforms, self.space.shown(model, raw))
            return objective(watch(replace(asked, pixels=shown))), objective.values

        gradients = Gradients(loss, [raw])
        live: dict[str, Stateful] = {"holder": holder, "optimizer": optimizer, "objective": objective, "waiting": waiting}
        for step in (loop := run.loop("dreaming", self.iterations, **live)):
            values = gradients({})
            pace(optimizer, self.optimizer, step / self.iterations)
            optimizer.step()
            with torch.no_grad():
                self.space.keep(raw)
            loop.show(**values)
            if waiting.enough(sum(loop.values.values())):
                loop.stop()
        return replace(asked, pixels=self.space.shown(model, raw).detach())


class Waiting:
    """Counts the steps since the loss last fell by a thousandth of itself. Live: saved by the loop."""

    def __init__(self, patience: int | None) -> None:
        self.patience, self.best, self.count = patience, float("inf"), 0

    def enough(self, loss: float) -> bool:
        if loss < self.best * 0.999:
            self.best, self.count = loss, 0
        else:
            self.count += 1
        return self.patience is not None and self.count >= self.patience

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best if self.best < float("inf") else -1.0, "count": self.count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.count = (state["best"] if state["best"] >= 0 else float("inf")), int(state["count"])
