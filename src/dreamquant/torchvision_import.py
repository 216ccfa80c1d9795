"""torchvision beside a CPU build of torch: its wheel may expect operators that only the CUDA build declares."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import torch

_declared: list[torch.library.Library] = []  # a library that is garbage collected takes its declarations along
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_vision(name: str) -> Any:
    """Import `torchvision.models`, `timm` or the like; ValueError says what to install where they are missing.

    The two missing operators (for object detection, not used here) are declared only after the plain import failed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs the package {error.name}, which is not installed: pip install 'dreamquant[vision]'") from None
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _declared:
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        with contextlib.suppress(RuntimeError):  # one of them may be declared already
            library.define(schema)
    _declared.append(library)
    return importlib.import_module(name)
