"""Grids, ranges and the gradients of quantizers, against independent formulas."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamquant.quant.quantizer import Floor, Following, Inside, LearnedClip, LearnedStep, Quantizer, Rule, acting, fake_quantize
from dreamquant.quant.ranges import LpSearch, MinMax, Percentile, RunningMinMax, rounded, to_grid
from dreamquant.quant.scheme import Int, Scheme, parse_bits, scheme_of


def grid(values: torch.Tensor, form: Int) -> tuple[torch.Tensor, torch.Tensor]:
    return to_grid(*MinMax()(values, form), form)


@given(st.integers(2, 8), st.booleans(), st.floats(-5, 5), st.floats(0.01, 5), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_values_lie_on_the_grid_and_within_half_a_step(bits: int, symmetric: bool, low: float, width: float, seed: int) -> None:
    x = low + width * torch.rand(200, generator=torch.Generator().manual_seed(seed))
    form = Int(bits, symmetric=symmetric)
    scale, zero = grid(x, form)
    assert zero == zero.round() and form.low <= zero <= form.high
    got = fake_quantize(x, scale, zero, form)
    codes = got / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.min() >= form.low - 1e-3 and codes.max() <= form.high + 1e-3
    assert (got - x).abs().max() <= scale * 1.001  # half a step inside; the rounded zero point may move the ends by half more
    assert fake_quantize(torch.zeros(1), scale, zero, form) == 0


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_values_are_those_of_torchs_kernel_to_the_bit(per: Literal["tensor", "channel"]) -> None:
    x = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0))
    x[0, :8] = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e9, -1e9, 0.0, -0.0])
    form = Int(4, per)
    scale, zero = grid(x.clamp(-2, 3), form)
    if per == "tensor":
        wanted = torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), form.low, form.high)
    else:
        wanted = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zero.flatten().int(), 0, form.low, form.high)
    assert torch.equal(fake_quantize(x, scale, zero, form), wanted)


def test_min_max_of_the_papers_by_hand() -> None:
    x = torch.tensor([0.0, 0.12, 0.52, 1.0])
    scale, zero = grid(x, Int(4))
    assert scale == pytest.approx(1 / 15) and zero == -8
    assert rounded(x, scale, zero, Int(4)) == pytest.approx(torch.tensor([0, 2 / 15, 8 / 15, 1]), abs=1e-6)


def test_a_flat_tensor_does_not_divide_by_zero() -> None:
    scale, zero = grid(torch.zeros(5), Int(4))
    assert fake_quantize(torch.zeros(5), scale, zero, Int(4)).eq(0).all()


def test_channels_have_their_own_grids() -> None:
    weight = torch.randn(4, 3, 2, 2) * torch.tensor([1.0, 10, 100, 0.1]).view(4, 1, 1, 1)
    scale, zero = grid(weight, Int(3, "channel"))
    assert scale.shape == (4, 1, 1, 1)
    for number in range(4):
        one = grid(weight[number], Int(3))
        assert torch.allclose(fake_quantize(weight, scale, zero, Int(3, "channel"))[number], fake_quantize(weight[number], *one, Int(3)))


@pytest.mark.parametrize("value", [0.7, 3.0])
def test_a_running_range_on_a_constant_gives_it_after_one_batch(value: float) -> None:
    observer = RunningMinMax(0.9).observer()
    for count in range(1, 30):
        observer.see(torch.full((10,), value))
        assert observer.range(Int(4))[1].item() == pytest.approx(value, rel=1e-4), f"after {count} batches"


def test_a_running_range_is_the_weighted_mean_of_extremes() -> None:
    observer = RunningMinMax(0.5).observer()
    observer.see(torch.tensor([-1.0, 2.0]))
    observer.see(torch.tensor([-3.0, 4.0]))
    low, high = observer.range(Int(4))
    assert low.item() == pytest.approx((0.25 * -1 + 0.5 * -3) / 0.75)
    assert high.item() == pytest.approx((0.25 * 2 + 0.5 * 4) / 0.75)


@pytest.mark.parametrize("p", [2.0, 2.4])
def test_the_search_finds_the_best_of_its_candidates(p: float) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(2000), torch.tensor([12.0])])
    form = Int(3)
    low, high = LpSearch(p, 50, 0.2)(x, form)
    errors = {}
    for share in torch.linspace(1, 0.2, 50).tolist():
        ends = (x.min() * share, x.max() * share)
        errors[ends[1].item()] = (rounded(x, *to_grid(*ends, form), form) - x).abs().pow(p).mean().item()
    assert high.item() == pytest.approx(min(errors, key=lambda k: errors[k]))
    assert high < 0.9 * x.max()


def test_percentiles_cut_the_outliers() -> None:
    x = torch.cat([torch.linspace(0, 1, 998), torch.tensor([50.0, -50.0])])
    low, high = Percentile(0.999)(x, Int(8))
    assert 0 <= low <= 0.01 and 0.99 <= high <= 1


def ready(form: Int, x: torch.Tensor) -> Quantizer:
    quantizer = Quantizer(form)
    quantizer.set(*grid(x, form))
    return quantizer


def test_gradients_differ_outside_the_range_only() -> None:
    inside = torch.linspace(0, 1, 16)
    quantizer = ready(Int(4), inside)
    for rule, expected in ((Rule(), 1.0), (Inside(), 0.0)):
        x = torch.tensor([0.5, 7.0], requires_grad=True)
        with acting({quantizer: rule}):
            quantizer(x).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [1.0, expected]


def test_learned_steps_get_the_gradient_of_lsq() -> None:
    quantizer = ready(Int(3), torch.linspace(-1, 1, 50))
    assert quantizer.zero < 0
    quantizer.scale.requires_grad_()
    x = torch.tensor([-5.0, 0.33, 9.0])
    with acting({quantizer: LearnedStep()}):
        quantizer(x).sum().backward()
    step, zero, factor = quantizer.scale.item(), quantizer.zero.item(), (3 * quantizer.format.high) ** -0.5
    code = round(0.33 / step)
    by_hand = (quantizer.format.low - zero) + (code - 0.33 / step) + (quantizer.format.high - zero)
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(by_hand * factor, rel=1e-4)


def test_learned_clips_get_gradients_from_beyond() -> None:
    quantizer = ready(Int(4), torch.linspace(0, 1, 16))
    quantizer.scale.requires_grad_()
    with acting({quantizer: LearnedClip()}):
        quantizer(torch.tensor([0.2, 3.0, 4.0])).sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(2 / 15)  # two values beyond; the clip value moves as if it were the parameter


def test_rules_last_as_long_as_their_block() -> None:
    quantizer = ready(Int(4), torch.linspace(0, 1, 16))
    before = quantizer.rule
    with pytest.raises(RuntimeError, match="inside"), acting({quantizer: Inside()}):
        assert isinstance(quantizer.rule, Inside)
        raise RuntimeError("inside")
    assert quantizer.rule is before


def test_learned_steps_stay_above_a_quarter_of_where_they_began() -> None:
    steps = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor(0.25)]
    floor, resumed = Floor(steps), Floor(steps)
    for _ in range(2):
        with floor:
            steps[0].sub_(torch.tensor([0.25, 0.5, 5.0]))
            steps[1].add_(1)
    assert steps[0].tolist() == [0.5, 0.25, 0.25] and steps[1].item() == 2.25
    resumed.load_state_dict(floor.state_dict())
    with resumed:
        steps[0].sub_(1)
    assert steps[0].tolist() == [0.25] * 3


def test_following_spans_the_tensor_wherever_it_goes() -> None:
    quantizer = Quantizer(Int(4), rule=Following())
    weight = torch.linspace(-1, 1, 31)
    scale, zero = to_grid(*MinMax()(weight, Int(4)), Int(4))
    assert torch.equal(quantizer.grid(weight)[0], scale) and torch.equal(quantizer.grid(weight)[1], zero)
    assert quantizer.grid(weight * 2)[0] == pytest.approx(2 * quantizer.grid(weight)[0].item())


def test_nothing_runs_on_an_unknown_range() -> None:
    assert Quantizer(Int(4)).scale.isnan()


@pytest.mark.parametrize("text", ["w4", "4a4", "w1a4", "w9a8", "w4a16", ""])
def test_bits_that_do_not_parse(text: str) -> None:
    with pytest.raises(ValueError, match="bits"):
        parse_bits(text)


def test_bits_and_ends() -> None:
    scheme = scheme_of("w3a32", ends=8)
    assert scheme.activations is None
    assert [scheme.weight_format("x", number, 3).bits for number in range(3)] == [8, 3, 8]


@pytest.mark.parametrize(
    "field", [{"activations": Int(4, "channel")}, {"spare": Int(8, "channel")}, {"tensors": (("relu", Int(4, "channel")),)}]
)
def test_activations_have_no_grid_of_each_channel(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a tensor of activations has one grid; choose per='tensor'"):
        Scheme(**{"weights": Int(4, "channel"), "activations": Int(4), **field})
