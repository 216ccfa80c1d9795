"""More images from a generator that a result kept: what `dreamquant dream` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import recipes
from dreamquant.dream import Dream
from dreamquant.folder import JOB, belongs, claimed, read_json, read_tensors, replacing
from dreamquant.images import Images
from dreamquant.job import PREVIEW, device_of, float_model_of
from dreamquant.loading import load_file
from dreamquant.model import Model
from dreamquant.reading import parts, parts_in, read
from dreamquant.recipe import dreams
from dreamquant.report.pictures import sheet
from dreamquant.run import GENERATOR, Run
from dreamquant.synthesis.labels import balanced

if TYPE_CHECKING:
    from dreamquant.run import Progress


@dataclass(frozen=True, eq=False)
class Trained:
    """A generator at work again: its network, how it is asked, and the network that it was trained against."""

    model: Model
    dream: Dream
    generator: nn.Module

    def images(self, labels: Tensor, run: Run) -> Images:
        """One image for each label (N,), in batches as even as those of the training."""
        missing = len(labels.unique()) < self.model.classes
        return self.dream.draw(self.model, self.generator, labels, run, companions=3 * self.dream.batch // 4 if missing else 0)


def trained(folder: Path, device: str = "cpu") -> Trained:
    """The generator of the result in `folder`. ValueError where there is none, or its network cannot be had any more."""
    file = folder / GENERATOR
    if not file.is_file():
        training = ", ".join(name for name in recipes.names() if dreams(recipes.find(name)()))
        raise ValueError(f"{folder} holds no {GENERATOR}; results of recipes that train a generator do: {training}")
    weights, about = read_tensors(file)
    note = json.loads(about.get("note", "{}"))
    try:
        model = float_model_of(folder)
    except ValueError as error:
        told = f"{file} was trained against {note.get('model', 'a network')}, which cannot be had here any more as it was"
        raise ValueError(f"{told}: {error}") from None
    try:
        (dream,) = read(note["dream"], {**parts(), **_parts_of_recipe(folder)})
        model.to(device)
        generator = dream.generator.on(model)
        generator.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{file} was written by another version, or with parts that are gone: {str(error).splitlines()[0]}") from None
    return Trained(model, dream, generator.to(device))


def _parts_of_recipe(folder: Path) -> dict[str, type]:
    """The parts of the user's own file, where the recipe came from one."""
    file = read_json(folder / JOB)["job"]["recipe"].rpartition(":")[0]
    return parts_in(vars(load_file(Path(file)))) if file.endswith(".py") and Path(file).is_file() else {}


def asked(model: Model, count: int, classes: Sequence[int]) -> Tensor:
    """`count` labels: of these classes in turns, or of all classes alike. Raises ValueError for what cannot be asked."""
    if count < 1:
        raise ValueError(f"--count {count}: ask for one image at least")
    if wrong := [label for label in classes if not 0 <= label < model.classes]:
        raise ValueError(f"--labels {wrong[0]}: {model.name} has {model.classes} classes, 0 to {model.classes - 1}")
    if classes:
        return torch.tensor(list(classes))[torch.arange(count) % len(classes)]
    return balanced(count, model.classes)


def dream_more(
    folder: Path, out: Path, count: int, classes: Sequence[int], seed: int = 0, device: str = "auto", progress: Progress | None = None
) -> tuple[Model, Images]:
    """Images of the generator in `folder`, in `out`: images.safetensors and a preview. What is finished there is read back."""
    device = device_of(device)
    again = trained(folder, device)
    run = Run(seed, out / ".work", device, progress=progress)
    torch.manual_seed(run.number("labels"))
    labels = asked(again.model, count, classes)
    digest = hashlib.sha256((folder / GENERATOR).read_bytes()).hexdigest()[:16]
    fingerprint = {"weights": again.model.digest(), "generator": digest, "count": count, "labels": list(classes), "seed": seed}
    with claimed(out):
        belongs(out, fingerprint, read_json(folder / JOB)["job"])
        if not (out / "images.safetensors").exists():
            images = again.images(labels, run)
            with replacing(out / "preview.png") as temporary:
                sheet(again.model.pixels(images.pixels), images.classes, temporary, PREVIEW)
            images.save(out, {"model": again.model.name, **fingerprint})
            shutil.rmtree(out / ".work", ignore_errors=True)
    return again.model, Images.load(out)
