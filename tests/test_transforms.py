"""What is done to pixels, against other ways to the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dreamquant.synthesis.transforms import Crop, Flip, LowPass, Sometimes


@pytest.mark.parametrize("side", [32, 33, 224])
def test_the_low_pass_is_the_published_one(side: int) -> None:
    """SynQ, Eq. 4, as it is written: shifted, full spectra and the distance from the middle in cycles."""
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cycles = np.arange(side) - side // 2
    gain = np.exp(-(cycles[:, None] ** 2 + cycles[None, :] ** 2) / (2 * (0.357 * side) ** 2))
    spectrum = np.fft.fftshift(np.fft.fft2(x.numpy()), axes=(2, 3)) * gain
    published = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(2, 3))).real
    assert np.abs(LowPass(0.357)(x).numpy() - published).max() < 1e-6


@pytest.mark.parametrize(
    ("cycles", "side", "kept"), [(80, 224, 0.60), (40, 224, 0.32), (20, 224, 0.16), (80, 32, 0.99), (20, 32, 0.82), (8, 32, 0.44)]
)
def test_what_the_low_pass_leaves_of_white_noise(cycles: int, side: int, kept: float) -> None:
    """methods/synthesis.md, 8.2."""
    x = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert (LowPass(cycles / side)(x).std() / x.std()).item() == pytest.approx(kept, abs=0.01)


def test_the_low_pass_leaves_constants_and_without_a_cutoff_everything() -> None:
    x = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(LowPass(0.1)(torch.full_like(x, 0.7)), torch.full_like(x, 0.7), atol=1e-6)
    assert torch.allclose(LowPass(math.inf)(x), x, atol=1e-5)


def test_crops_are_upright_parts_of_the_image() -> None:
    """Of an image that tells where each pixel is: even steps along each axis, areas and sides as asked, all within."""
    torch.manual_seed(0)
    side, least = 32, 0.5
    place = (torch.arange(side) + 0.5) / side
    x = torch.stack([place.expand(side, side), place[:, None].expand(side, side)]).expand(200, 2, side, side)
    across, down = Crop(least)(x)[:, :, 4:-4, 4:-4].unbind(1)  # away from the border, where neighbours are mirrored
    width, height = ((part.amax((1, 2)) - part.amin((1, 2))) * side / (side - 9) for part in (across, down))
    area, ratio = width * height, width / height
    assert torch.allclose(across, across[:, :1].expand_as(across), atol=1e-5), "no shear"
    assert torch.allclose(down, down[:, :, :1].expand_as(down), atol=1e-5)
    assert 0.98 * least < area.min() < 0.6 and 0.85 < area.max() < 1.02
    inside = (width < 0.98) & (height < 0.98)  # a side that would leave the image is cut
    assert 0.74 < ratio[inside].min() < 0.9 and 1.1 < ratio[inside].max() < 1.35
    assert 0 <= across.min() < 0.2 and 0.8 < across.max() <= 1
    assert torch.allclose(Crop(1.0)(torch.ones(4, 3, 8, 8)), torch.ones(4, 3, 8, 8))


def test_sometimes_is_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    x = torch.arange(6.0).view(1, 1, 2, 3)

    class Negative:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    changed = sum(bool((Sometimes(0.3, (Negative(),))(x) == -x).all()) for _ in range(1000))
    assert 250 < changed < 350
    assert torch.equal(Sometimes(1.0, (Negative(), Negative()))(x), x) and torch.equal(Sometimes(0.0, (Negative(),))(x), x)


def test_flips_mirror_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3, 4, 5)
    got = Flip()(x)
    mirrored = (got == x.flip(3)).flatten(1).all(1)
    assert 150 < mirrored.sum() < 250 and torch.equal(got[~mirrored], x[~mirrored])
