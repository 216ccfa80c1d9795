"""What makes a rebuilt piece of a network good: how far its output is from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class UnitError(Protocol):
    """(mine, wanted) -> how far apart they are; both (B, C, H, W), (B, T, C) or (B, C)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SquaredError:
    """Squared error, summed over channels, mean over images and places (BRECQ, QDrop, Genie)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor:
        channels = mine.shape[1 if mine.ndim == 4 else -1]
        return F.mse_loss(mine, wanted) * channels


@dataclass(frozen=True)
class RelativeError:
    """Squared error in units of the teacher's variance: the same for outputs of any scale and width (ours)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(mine, wanted) / (wanted.var() + 1e-8)
