"""Images drawn in frequencies: their spread, their spectrum, and one wave by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn

from dreamquant import Model
from dreamquant.inspection import spectrum_slope
from dreamquant.synthesis.pixels import Frequencies


def model_of(shape: tuple[int, int, int]) -> Model:
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    return Model.from_module(net, shape, (0.5,) * shape[0], (0.25,) * shape[0])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 48), (3, 7, 9)])
def test_frequencies_start_as_noise_of_little_less_than_one_deviation(shape: tuple[int, int, int]) -> None:
    model, space = model_of(shape), Frequencies()
    torch.manual_seed(0)
    raw = space.start(model, 64)
    shown = space.shown(model, raw)
    assert shown.shape == (64, *shape)
    pixels = shown * 0.25 + 0.5
    assert float(pixels.min()) > 0 and float(pixels.max()) < 1
    assert 0.75 < float(pixels.logit().std()) < 0.95


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_frequencies_have_the_spectrum_that_they_say(decay: float) -> None:
    model, space = model_of((3, 32, 32)), Frequencies(decay)
    torch.manual_seed(0)
    shown = space.shown(model, space.start(model, 200))
    assert spectrum_slope(model.pixels(shown).logit()) == pytest.approx(-decay, abs=0.1)


def test_a_coefficient_of_a_frequency_is_a_wave() -> None:
    """By hand: one coefficient, three cycles across and none down, is a cosine of that many, in the colours of its axis."""
    model, space = model_of((3, 24, 32)), Frequencies()
    raw = torch.zeros(1, 3, 24, 17, 2)
    raw[0, 1, 0, 3, 0] = 1.0
    height, width = model.shape[1:]
    wave = model.pixels(space.shown(model, raw)).logit()[0]
    across = torch.cos(torch.arange(width) * (3 * 2 * math.pi / width))
    amplitude = 2 * float(space.units(height, width)[0, 3]) / (height * width) ** 0.5
    colours = space.axes(3)[1][:, None, None]
    assert torch.allclose(wave, colours * amplitude * across.expand(3, height, width), atol=1e-4)


def test_colours_of_rgb_are_brightness_and_two_differences_in_falling_units() -> None:
    """By hand: the cosine transform of three channels."""
    axes = Frequencies(fade=1.0).axes(3)
    units = torch.tensor([1, 1 / 2, 1 / 3]) / ((1 + 1 / 4 + 1 / 9) / 3) ** 0.5
    directions = torch.tensor([[1 / 3**0.5] * 3, [0.5**0.5, 0, -(0.5**0.5)], [1 / 6**0.5, -2 / 6**0.5, 1 / 6**0.5]])
    assert torch.allclose(axes, directions * units[:, None], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_colours_keep_the_spread_of_pixels(channels: int) -> None:
    axes = Frequencies().axes(channels)
    assert float(axes.square().sum()) == pytest.approx(channels, rel=1e-5)
    product = axes @ axes.T
    assert torch.allclose(product, torch.diag(product.diagonal()), atol=1e-6)


def test_channels_begin_alike_where_colour_has_small_units() -> None:
    model, space = model_of((3, 32, 32)), Frequencies()
    torch.manual_seed(0)
    shown = model.pixels(space.shown(model, space.start(model, 100))).logit()
    red, green, blue = shown.unbind(1)
    lengths = space.axes(3).norm(dim=1)
    light, opposed = (red + green + blue).std() / 3**0.5, (red - blue).std() / 2**0.5
    assert float(opposed / light) == pytest.approx(float(lengths[1] / lengths[0]), rel=0.1)
