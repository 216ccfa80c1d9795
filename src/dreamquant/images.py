"""Images: what a network imagines. Batches are a pure function of their number, so a loop over them has nothing to save."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamquant.folder import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Images:
    """Dreamed images as the network takes them, (N, C, H, W), with labels (N,) or shares of classes (N, K)."""

    pixels: Tensor
    labels: Tensor
    facts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def classes(self) -> Tensor:
        """The class of each image, (N,)."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def digest(self) -> str:
        """A hash of pixels and labels."""
        value = hashlib.sha256(self.pixels.detach().cpu().contiguous().numpy().tobytes())
        value.update(self.labels.cpu().contiguous().numpy().tobytes())
        return value.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        return Images(self.pixels[index], self.labels[index], {k: v[index] for k, v in self.facts.items()})

    def batch(self, number: int, size: int, seed: int = 0) -> Images:
        """Batch `number` of an endless stream of reshuffled passes: nothing is dropped, every batch is full."""
        n, first, last = len(self), number * size, number * size + size - 1
        turns = range(first // n, last // n + 1)
        orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn)) for turn in turns]
        return self[torch.cat(orders)[first % n : first % n + size].to(self.pixels.device)]

    def to(self, device: str | torch.device) -> Images:
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), {k: v.to(device) for k, v in self.facts.items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, in one dictionary; `of` reads it."""
        return {"pixels": self.pixels, "labels": self.labels, **{f"facts.{k}": v for k, v in self.facts.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Images:
        """What `tensors` names; other names are passed over."""
        return cls(tensors["pixels"], tensors["labels"], facts_in(tensors))

    def save(self, folder: str | Path, note: Mapping[str, Any] | None = None) -> Path:
        """Write `folder/images.safetensors` atomically, with `note` (how they were made) beside the tensors."""
        file = Path(folder) / "images.safetensors"
        write_tensors(file, self.tensors(), {"note": json.dumps(dict(note or {}))})
        return file

    @classmethod
    def load(cls, folder: str | Path) -> Images:
        """Read what `save` wrote; `folder` may also be the file itself. ValueError where there are no images, or not finite ones."""
        file = Path(folder)
        file = file / "images.safetensors" if file.is_dir() else file
        if not file.exists():
            raise ValueError(f"{file}: no dreamed images there; give the folder that holds images.safetensors")
        try:
            tensors, _ = read_tensors(file)
            _check(file, tensors)
        except ValueError as error:
            raise ValueError(f"{error}; give the folder of images that dreamquant saved, or dream them again") from None
        return cls.of(tensors)

    @staticmethod
    def note(folder: str | Path) -> dict[str, Any]:
        """How the images of a folder were made, as `save` was told."""
        note: dict[str, Any] = json.loads(read_tensors(Path(folder) / "images.safetensors")[1]["note"])
        return note

    def state_dict(self) -> dict[str, Any]:
        return {"pixels": self.pixels, "labels": self.labels, "facts": dict(self.facts)}


def _check(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where what was read from `file` is no set of images."""
    if missing := [key for key in ("pixels", "labels") if key not in tensors]:
        raise ValueError(f"{file} holds no dreamed images: it has no {' and no '.join(missing)}")
    pixels, labels = tensors["pixels"], tensors["labels"]
    if pixels.ndim != 4 or not pixels.is_floating_point() or not len(pixels) or labels.ndim == 0 or len(labels) != len(pixels):
        shapes = f"pixels {tuple(pixels.shape)} of {pixels.dtype} and labels {tuple(labels.shape)}"
        raise ValueError(f"{file} holds {shapes}, not images (N, C, H, W) with a label each")
    if wrong := int((~pixels.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{wrong} of the {len(pixels)} images in {file} hold values that are not finite")


def facts_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The facts among the tensors that `tensors()` of images or of a condition named."""
    return {key.removeprefix("facts."): value for key, value in tensors.items() if key.startswith("facts.")}


class ImageBuffer:
    """Images finished so far: live, saved by the loop that fills it."""

    def __init__(self) -> None:
        self.parts: list[Images] = []

    def add(self, images: Images) -> None:
        self.parts.append(images)

    def all(self) -> Images:
        """Everything added so far, in order, on the device of the last part (restored ones come from a file)."""
        parts = [part.to(self.parts[-1].pixels.device) for part in self.parts]
        facts = {key: torch.cat([p.facts[key] for p in parts]) for key in parts[0].facts}
        return Images(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]), facts)

    def state_dict(self) -> dict[str, Any]:
        return {str(number): part.state_dict() for number, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parts = [Images(**state[str(number)]) for number in range(len(state))]
