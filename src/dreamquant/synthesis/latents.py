"""OptimizeLatents: images from a generator that is learned together with its latents, a fresh one for every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.images import ImageBuffer, Images
from dreamquant.losses.algebra import Loss, Objective
from dreamquant.model import Model
from dreamquant.optimizers import Adam, Decay, Exponential, Optimizer, pace
from dreamquant.run import Run, Stateful
from dreamquant.synthesis.generator import Decoder, Upsampling, shown
from dreamquant.synthesis.pixels import balanced
from dreamquant.synthesis.swing import Rewrite, Swing
from dreamquant.trace import Trace, Watch


@dataclass(frozen=True)
class OptimizeLatents:
    """GENIE-D (Jeon et al., CVPR 2023): `count` images in equal batches of about `batch`, `iterations` updates each.

    Latents start as N(0, 1); they and the generator descend `loss` together. `pixels`: mean and deviation of a batch in
    pixels of [0, 1]; where it is None they are 0 and 1 in the network's input space, as published, which supposes that
    the network's mean and std are those of its data. Images are what the generator makes after its last update.
    """

    loss: Loss[Trace]
    count: int = 1024
    batch: int = 128
    iterations: int = 4000
    generator: Decoder = Upsampling()
    learn_latents: Optimizer = Adam(0.1, schedule=Decay((0.5, 0.7, 0.9)))
    learn_generator: Optimizer = Adam(0.01, schedule=Exponential(0.128))
    rewrite: Rewrite = Swing()
    pixels: tuple[float, float] | None = None

    def __call__(self, model: Model, run: Run) -> Images:
        torch.manual_seed(run.number("labels"))
        labels = balanced(self.count, model.classes).to(model.device)
        chunks = labels.tensor_split(-(-self.count // self.batch))
        watched = self.rewrite(model.net)
        buffer = ImageBuffer()
        for number in run.loop("dreaming: batches", len(chunks), buffer=buffer):
            buffer.add(self._batch(model, run, chunks[number], watched))
        images = buffer.all()
        if not images.pixels.isfinite().all():
            raise FloatingPointError("dreamed images hold values that are not finite; lower synthesis.learn_latents.lr")
        return images

    def _batch(self, model: Model, run: Run, labels: Tensor, watched: torch.fx.GraphModule) -> Images:
        torch.manual_seed(run.number("start"))
        generator = self.generator.on(model).to(model.device)
        latents = nn.Parameter(torch.randn(len(labels), self.generator.latent).to(model.device))
        parts = [(self.learn_latents, [latents]), (self.learn_generator, list(generator.parameters()))]
        optimizers = [part.on(learned) for part, learned in parts]
        objective = Objective(self.loss, model)
        watch = Watch(model, objective.needs, watched)
        live: dict[str, Stateful] = {f"optimizer{number}": optimizer for number, optimizer in enumerate(optimizers)}
        live |= {"latents": nn.ParameterList([latents]), "generator": generator, "objective": objective}
        for step in (loop := run.loop("dreaming", self.iterations, **live)):
            loss = objective(watch(Images(shown(model, generator(latents), self.pixels), labels)))
            for optimizer, (part, _) in zip(optimizers, parts, strict=True):
                optimizer.zero_grad()
                pace(optimizer, part, step / self.iterations)
            loss.backward(inputs=[latents, *generator.parameters()])
            for optimizer in optimizers:
                optimizer.step()
            loop.show(**objective.values)
        with torch.no_grad():
            return Images(shown(model, generator(latents), self.pixels), labels)
