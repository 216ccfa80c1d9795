"""How far a tensor of the student is from the teacher's: what makes a rebuilt piece of a network good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def squared_error(mine: Tensor, wanted: Tensor) -> Tensor:
    """F.mse_loss, whose gradient keeps the layout of `mine`; theirs never is channels-last, which slows all that follows."""
    return torch.linalg.vector_norm(mine - wanted).square() / mine.numel()


def relative_error(mine: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error in units of the variance of `wanted`."""
    return squared_error(mine, wanted) / (wanted.var() + 1e-8)


class UnitError(Protocol):
    """(mine, wanted) -> how far apart they are; both (B, C, H, W), (B, T, C) or (B, C)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SquaredError:
    """Squared error, summed over channels, mean over images and places (BRECQ, QDrop, Genie)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor:
        channels = mine.shape[1 if mine.ndim == 4 else -1]
        return squared_error(mine, wanted) * channels


@dataclass(frozen=True)
class RelativeError:
    """Squared error in units of the teacher's variance: the same for outputs of any scale and width (ours)."""

    def __call__(self, mine: Tensor, wanted: Tensor) -> Tensor:
        return relative_error(mine, wanted)
