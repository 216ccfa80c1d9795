"""Transforms: pixels -> pixels, (N, C, H, W) both, batched. Randomness comes from the seed of the loop's iteration, and is drawn
where the pixels are, but for what decides which transform is applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Flip:
    """Every image is mirrored left to right with probability one half."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)


@dataclass(frozen=True)
class Shift:
    """Every image moves by up to `pixels` in both directions; what leaves on one side comes in mirrored at the other."""

    pixels: int = 2

    def __call__(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        reach = min(self.pixels, height - 1, width - 1)
        if reach <= 0:
            return x
        big = F.pad(x, (reach,) * 4, mode="reflect")
        top, left = (torch.randint(2 * reach + 1, (n, 1), device=x.device) for _ in range(2))
        rows, columns = top + torch.arange(height, device=x.device), left + torch.arange(width, device=x.device)
        number = torch.arange(n, device=x.device)[:, None, None]
        return big.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Crop:
    """A random part of every image, `least` to all of its area, sides 3:4 to 4:3 of its own, enlarged to the old size (bilinear)."""

    least: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        drawn = [torch.rand(len(x), dtype=x.dtype, device=x.device) for _ in range(4)]
        area, (turn, *place) = self.least + (1 - self.least) * drawn[0], [2 * d - 1 for d in drawn[1:]]
        ratio = torch.exp(turn * math.log(4 / 3))
        height, width = ((area * r).sqrt().clamp_max(1) for r in (1 / ratio, ratio))
        down, right = (p * (1 - side) for p, side in zip(place, (height, width), strict=True))
        zero = torch.zeros_like(area)
        affine = torch.stack([torch.stack([width, zero, right], 1), torch.stack([zero, height, down], 1)], 1)
        return F.grid_sample(x, F.affine_grid(affine, list(x.shape), align_corners=False), "bilinear", "reflection", align_corners=False)


@dataclass(frozen=True)
class LowPass:
    """Gaussian low-pass in the frequency domain (SynQ, Eq. 4): gain exp(-f^2 / 2 D0^2) at f cycles per image.

    `cutoff` is D0 as a share of each side, because D0 in cycles means another blur at every resolution: SynQ's 80 at
    224 pixels is 0.357; the same number of cycles would be a no-op at 32 pixels.
    """

    cutoff: float = 0.357

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = torch.fft.fftfreq(height, device=x.device)  # cycles per pixel: f / W
        right = torch.fft.rfftfreq(width, device=x.device)
        gain = torch.exp(-(down[:, None].square() + right.square()) / (2 * self.cutoff**2))
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=(height, width))


@dataclass(frozen=True)
class Sometimes:
    """The transforms in turn, on the whole batch, with probability `share`; else nothing."""

    share: float
    transforms: tuple[Transform, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return applied(self.transforms, x) if torch.rand(()) < self.share else x


def applied(transforms: tuple[Transform, ...], x: Tensor) -> Tensor:
    """All transforms, one after the other."""
    for transform in transforms:
        x = transform(x)
    return x


@dataclass(frozen=True)
class OneOf:
    """One of the transforms, drawn anew for every batch."""

    transforms: tuple[Transform, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.transforms[int(torch.randint(len(self.transforms), ()))](x)


@dataclass(frozen=True)
class Grain:
    """Gaussian noise of `share` of the batch's own deviation, so that it means the same at any scale of the input."""

    share: float = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.share * x.detach().std(correction=0) * torch.randn_like(x)


@dataclass(frozen=True)
class Contrast:
    """Every image's contrast changes by up to `most`, its brightness by up to `most` of the batch's deviation."""

    most: float = 0.1

    def __call__(self, x: Tensor) -> Tensor:
        gain, lift = (self.most * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device) * 2 - 1) for _ in range(2))
        middle = x.mean((1, 2, 3), keepdim=True)
        return middle + (1 + gain) * (x - middle) + lift * x.detach().std(correction=0)


@dataclass(frozen=True)
class Cutout:
    """A rectangle of every image, `side` of its height and width, takes the image's mean colour."""

    side: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        inside = []
        for size in x.shape[-2:]:
            length = max(1, round(self.side * size))
            start, place = torch.randint(size - length + 1, (len(x), 1), device=x.device), torch.arange(size, device=x.device)
            inside.append((place >= start) & (place < start + length))  # (N, size)
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(hole, x.mean((2, 3), keepdim=True), x)
