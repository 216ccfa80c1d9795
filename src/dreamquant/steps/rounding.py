"""RoundByFlips: rounding directions chosen so that errors cancel over every kernel and every output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.ranges import MinMax, Ranges, to_grid
from dreamquant.quant.student import Student
from dreamquant.run import Run

CHUNK = 1 << 18  # weights rounded at a time: output channels do not touch each other, and this much stays in the cache


@dataclass(frozen=True)
class RoundByFlips:
    """SQuant (Guo et al., ICLR 2022): round to nearest, then move the weights that cost least by one step, so that the
    errors of every kernel (`kernels`) and of every output channel (`channels`) sum to nearly nothing.

    Both off is round to nearest. Grids are found once, by `ranges`, and stand still; the weights are put on them, so
    freezing finds exactly these codes.
    """

    ranges: Ranges = MinMax()
    kernels: bool = True
    channels: bool = True

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        for layer in student.layers().values():
            weight, form = layer.weight.detach(), layer.quantizer.format
            scale, zero = to_grid(*self.ranges(weight, form), form)
            x = (weight * scale.reciprocal()).reshape(*weight.shape[:2], -1).contiguous()  # (O, I, K) in steps
            low, high = ((end - zero).expand(len(weight), *zero.shape[1:]).reshape(-1, 1, 1) for end in (form.low, form.high))
            size = max(1, CHUNK // x[0].numel())
            parts = zip(x.split(size), low.split(size), high.split(size), strict=True)
            steps = torch.cat([flipped(*part, self.kernels, self.channels) for part in parts])
            weight.copy_(steps.view_as(weight) * scale)
            layer.quantizer.fix(scale, zero)


def flipped(x: Tensor, low: Tensor, high: Tensor, kernels: bool = True, channels: bool = True) -> Tensor:
    """Whole numbers beside `x`, in [low, high], that sum to what `x` sums to. x (O, I, K) in steps; low, high (O, 1, 1).

    Where enough weights can move, every channel's sum ends within half a step, every kernel's within one (half a one
    without `channels`), every weight within one. A clipped weight counts with its whole error, and does not move.
    """
    steps = x.round().clamp(low, high)
    error = steps - x
    way = -error.sign() * ((x > low) & (x < high))  # where the other neighbour lies: 1 above, -1 below, 0 no move
    if kernels and x.shape[2] > 1:  # one weight alone is never further than a half
        rows = x.shape[0] * x.shape[1]
        moves, way = flips(error.view(rows, -1), way.view(rows, -1))
        steps, error = steps + moves.view_as(x), error + moves.view_as(x)
    if channels:
        moves, _ = flips(error.view(len(x), -1), way.view(len(x), -1))
        steps = steps + moves.view_as(x)
    return steps


def flips(error: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """Moves by one step that bring every row's sum of errors within a half, and the ways that are left after them.

    All (R, n). A move costs 1 - 2 |error| in squared error, so the largest errors move. One weight of each row is left
    free: the last that moved may go back where the sum went beyond zero, else the next in line may follow.
    """
    total = error.sum(1, keepdim=True)  # (R, 1)
    toward = torch.where(total < 0, 1.0, -1.0).to(total)
    worth = torch.where(way == toward, error.abs(), -1.0)  # (R, n)
    able = (worth >= 0).sum(1, keepdim=True)
    count = torch.minimum(total.abs().round(), able)  # (R, 1)
    first = worth.topk(min(int(count.max()) + 1, worth.shape[1]), 1).indices  # (R, m), best first
    rank = torch.arange(first.shape[1], device=first.device)
    moves = torch.zeros_like(error).scatter_(1, first, (rank < count) * toward)
    beyond = count >= total.abs()
    spare = torch.where(beyond, count - 1, count)  # its rank
    turn = torch.where(beyond, -toward, toward) * torch.where(beyond, count > 0, count < able)
    return moves, torch.zeros_like(way).scatter_(1, first, (rank == spare) * turn)
