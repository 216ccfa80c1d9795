"""Flips against a sequential oracle, their invariants and a case by hand; the steps around them on students."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model, Run
from dreamquant.quant.clips import GoldenSection
from dreamquant.quant.freeze import freeze
from dreamquant.quant.ranges import MinMax, Ranges, to_grid
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.quant.student import Student, convert
from dreamquant.steps.calibrate import SetWeightRanges
from dreamquant.steps.restore import RestoreMoments
from dreamquant.steps.rounding import RoundByFlips, flipped

MODES = [(False, False), (True, False), (False, True), (True, True)]
BOUNDS = {2: (-2, 1), 3: (-4, 3), 4: (-8, 7), 8: (-128, 127)}


def flip(values: list[dict[str, float]], total: float) -> tuple[list[dict[str, float]], list[dict[str, float]], int]:
    """Flip those of `values` that may move against `total`, the largest errors first: (flipped, waiting, direction)."""
    direction = 1 if total < 0 else -1
    waiting = sorted((v for v in values if v["way"] == direction), key=lambda v: -abs(v["error"]))
    count = min(round(abs(total)), len(waiting))
    for value in waiting[:count]:
        value["code"] += direction
        value["error"] += direction
    return waiting[:count], waiting[count:], direction


def oracle(x: Tensor, low: int, high: int, kernels: bool, channels: bool) -> Tensor:
    """SQuant one weight after the other. x (O, I, K) in steps."""
    result = torch.empty_like(x)
    for o, channel in enumerate(x.tolist()):
        rows: list[list[dict[str, float]]] = []
        for kernel in channel:
            row = []
            for value in kernel:
                code = min(max(round(value), low), high)
                error = code - value
                way = 1 if error < 0 and value < high else -1 if error > 0 and value > low else 0
                row.append({"code": code, "error": error, "way": way})
            rows.append(row)
        if kernels and x.shape[2] > 1:
            for row in rows:
                total = sum(v["error"] for v in row)
                moved, waiting, direction = flip(row, total)
                for value in row:
                    value["way"] = 0
                if len(moved) >= abs(total):
                    if moved:
                        moved[-1]["way"] = -direction
                elif waiting:
                    waiting[0]["way"] = direction
        if channels:
            everything = [value for row in rows for value in row]
            flip(everything, sum(v["error"] for v in everything))
        result[o] = torch.tensor([[v["code"] for v in row] for row in rows])
    return result


def spread_out(shape: tuple[int, ...], bits: int, width: float, seed: int) -> Tensor:
    """Weights in steps; with a width above one some lie beyond the grid."""
    low, high = BOUNDS[bits]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + high) / 2 + width * (high - low) * (x - 0.5)


def ends(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = (torch.full((len(x), 1, 1), end, dtype=x.dtype) for end in BOUNDS[bits])
    return low, high


@pytest.mark.parametrize("kernels, channels", MODES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(3, 5, 9), (4, 1, 9), (2, 7, 1), (1, 3, 25), (2, 2, 49), (5, 4, 2), (1, 1, 1), (2, 64, 3)])
def test_flips_are_those_of_a_sequential_oracle(shape: tuple[int, ...], bits: int, kernels: bool, channels: bool) -> None:
    for seed, width in enumerate((1.0, 0.6, 1.4)):
        x = spread_out(shape, bits, width, seed)
        assert torch.equal(flipped(x, *ends(x, bits), kernels, channels), oracle(x, *BOUNDS[bits], kernels, channels))


@pytest.mark.parametrize("kernels, channels", MODES)
def test_sums_of_errors_nearly_vanish(kernels: bool, channels: bool) -> None:
    x = spread_out((16, 32, 9), 4, 1.0, 0)
    error = flipped(x, *ends(x, 4), kernels, channels) - x
    assert error.abs().max() < (1 if kernels or channels else 0.5001)
    if kernels:
        assert error.sum(2).abs().max() <= (1 if channels else 0.5) + 1e-9
    if channels:
        assert error.sum((1, 2)).abs().max() <= 0.5 + 1e-9
    if not (kernels or channels):
        assert torch.equal(error + x, x.round()) and error.sum(2).abs().max() > 1


def test_by_hand() -> None:
    x = torch.tensor([[[0.4, 0.4, 0.4]]])
    got = flipped(x, *ends(x, 8))
    assert got.sum() == 1 and got.min() == 0  # errors sum to -1.2: one goes up, -0.2 is left, which is not worth another


def test_the_last_that_moved_goes_back_for_its_channel() -> None:
    kernel = [-0.4, -0.4, -0.3, -0.45]  # rounds to zeros with an error of 1.55: two go down, 0.45 beyond
    x = torch.tensor([[kernel, kernel]])
    got = flipped(x, *ends(x, 8))
    assert sorted(got.sum(2).flatten().tolist()) == [-2, -1]  # the channel's -0.9 takes one of the four back
    assert flipped(x, *ends(x, 8), channels=False).sum() == -4


def test_nothing_moves_off_the_grid_and_equal_errors_do_not_matter() -> None:
    x = torch.full((2, 3, 9), 1.4)  # the highest of two bits is 1
    assert (flipped(x, *ends(x, 2)) == 1).all()
    x = torch.full((2, 4, 9), 0.25)
    assert flipped(x, *ends(x, 2)).sum((1, 2)).tolist() == [9, 9]
    assert (flipped(torch.zeros(1, 2, 9), *ends(x[:1], 2)) == 0).all()


class Mixed(nn.Module):
    """3x3, depthwise, grouped, 1x1, 5x5 and linear layers; one kernel constant, one all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4)
        self.point = nn.Conv2d(16, 12, 1)
        self.wide = nn.Conv2d(12, 6, (1, 5))
        self.linear = nn.Linear(6, 4)
        with torch.no_grad():
            self.first.weight[0] = 0.3
            self.point.weight[1] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.depthwise, self.grouped, self.point, self.wide):
            x = torch.relu(layer(x))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Mixed(), (3, 9, 9), (0.5,) * 3, (0.25,) * 3)


FORMATS = [Int(4, "channel"), Int(3, "tensor"), Int(3, "channel", symmetric=True), Int(2, "channel"), Int(8, "channel")]
NOTHING = Images(torch.empty(0, 3, 9, 9), torch.empty(0, dtype=torch.long))


def after(model: Model, form: Int, *steps: RoundByFlips | SetWeightRanges | RestoreMoments) -> Student:
    student = convert(model, Scheme(form, None))
    for step in steps:
        step(student, model, NOTHING, Run())
    return student


def codes(student: Student) -> dict[str, Tensor]:
    """Frozen integers by layer."""
    program = freeze(student, {}).program
    return {op.numbers["layer"]: op.tensors["codes"] for op in program if "codes" in op.tensors}


@pytest.mark.parametrize("ranges", [MinMax(), GoldenSection()])
@pytest.mark.parametrize("form", FORMATS, ids=repr)
def test_freezing_finds_the_codes_that_were_chosen(form: Int, ranges: Ranges, model: Model) -> None:
    student = after(model, form, RoundByFlips(ranges))
    found = codes(student)
    assert list(found) == ["first", "depthwise", "grouped", "point", "wide", "linear"]
    for name, layer in student.layers().items():
        weight = model.net.get_parameter(f"{name}.weight").double()
        scale, zero = (v.double() for v in to_grid(*ranges(weight.float(), form), form))
        rows = [v.expand(len(weight), *[1] * (weight.ndim - 1)).flatten().tolist() for v in (scale, zero)]
        x = weight.reshape(*weight.shape[:2], -1)
        for number, (step, origin) in enumerate(zip(*rows, strict=True)):
            wanted = oracle(x[number : number + 1] / step, int(form.low - origin), int(form.high - origin), True, True)
            error = (found[name][number].double() - origin).flatten() - x[number].flatten() / step
            assert error.sum().item() == pytest.approx((wanted - x[number : number + 1] / step).sum().item(), abs=1e-3)
            if form.bits < 8 and number:  # rows of equal weights may flip any of them
                assert torch.equal(found[name][number].double().flatten(), wanted.flatten() + origin)
        assert torch.equal(layer.quantizer(layer.weight), layer.weight.detach())


@pytest.mark.parametrize("form", FORMATS, ids=repr)
def test_elements_alone_are_round_to_nearest(form: Int, model: Model) -> None:
    mine, plain = codes(after(model, form, RoundByFlips(kernels=False, channels=False))), codes(after(model, form))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)
    assert any(not torch.equal(codes(after(model, form, RoundByFlips()))[name], plain[name]) for name in plain)


def test_chunks_do_not_change_the_codes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = codes(after(model, Int(4, "channel"), RoundByFlips()))
    monkeypatch.setattr("dreamquant.steps.rounding.CHUNK", 50)
    pieces = codes(after(model, Int(4, "channel"), RoundByFlips()))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_the_order_in_memory_does_not_change_the_codes(model: Model) -> None:
    whole = codes(after(model, Int(4, "channel"), RoundByFlips()))
    model.net.to(memory_format=torch.channels_last)
    assert not model.net.get_parameter("first.weight").is_contiguous()
    assert all(torch.equal(whole[name], other) for name, other in codes(after(model, Int(4, "channel"), RoundByFlips())).items())


def test_flips_bring_outputs_of_constant_inputs_closer(model: Model) -> None:
    x = torch.ones(1, 8, 9, 9)
    errors = []
    for step in (SetWeightRanges(MinMax()), RoundByFlips()):
        layer = after(model, Int(3, "channel"), step).layers()["grouped"]
        errors.append((layer(x) - model.net.get_submodule("grouped")(x)).abs().mean().item())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("size", ["norm", "gain"])
@pytest.mark.parametrize("form", FORMATS, ids=repr)
def test_moments_come_back_and_codes_stay(form: Int, size: str, model: Model) -> None:
    before = after(model, form, SetWeightRanges(GoldenSection()))
    student = copy.deepcopy(before)
    RestoreMoments(size)(student, model, NOTHING, Run())  # type: ignore[arg-type]
    old, new = codes(before), codes(student)
    for name, layer in student.layers().items():
        assert torch.equal(old[name], new[name]) and layer.quantizer.scale.isfinite().all()
        rows = (layer.weight.detach(), layer.quantizer(layer.weight), model.net.get_parameter(f"{name}.weight").detach())
        latent, a, b = (v.flatten(1) if form.per == "channel" else v.reshape(1, -1) for v in rows)
        assert torch.equal(latent, a)
        a0, b0 = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        alive = a0.norm(dim=1) > 1e-6
        if size == "norm":
            assert torch.allclose(a0.norm(dim=1)[alive], b0.norm(dim=1)[alive], rtol=1e-4)
        else:
            assert torch.allclose((a0 * b0).sum(1)[alive], (b0 * b0).sum(1)[alive], rtol=1e-4)
        if not form.symmetric:
            inner = (layer.quantizer.zero > form.low) & (layer.quantizer.zero < form.high)
            off = (a.mean(1) - b.mean(1)).abs() / layer.quantizer.scale.flatten()
            assert (off[inner.flatten()] <= 0.5001).all()


def test_a_mean_that_is_steps_away_goes_into_the_zero_point(model: Model) -> None:
    student = after(model, Int(4, "channel"), SetWeightRanges(MinMax()))
    layer = student.layers()["wide"]
    shifted = replace(model, net=copy.deepcopy(model.net))
    shifted.net.get_parameter("wide.weight").data += 2.3 * layer.quantizer.scale.detach()
    zero, weight = layer.quantizer.zero.clone(), layer.weight.detach().clone()
    RestoreMoments()(student, shifted, NOTHING, Run())
    moved = zero - layer.quantizer.zero
    assert moved.flatten().tolist() == [2.0] * 6
    assert (layer.weight - weight).mean() > 0


def test_gain_is_what_clipping_took() -> None:
    """By hand: the threes of the first row are clipped at two, and the grid is stretched by one and a half."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    net[1].weight.data = torch.tensor([[0.0, 3.0, 0.0, 3.0], [0.0, -3.0, 0.0, 3.0]])
    model = Model.from_module(net, (1, 2, 2), (0.5,), (0.25,))
    student = convert(model, Scheme(Int(4, "channel"), None))
    layer = student.layers()["1"]
    low, high = torch.tensor([[0.0], [-2.0]]), torch.tensor([[2.0], [2.0]])
    layer.quantizer.fix(*to_grid(low, high, Int(4, "channel")))
    RestoreMoments("gain")(student, model, NOTHING, Run())
    assert layer.quantizer.scale.flatten().tolist() == pytest.approx([1.5 * 2 / 15, 1.5 * 4 / 15], rel=0.1)
    assert torch.allclose(layer.quantizer(layer.weight)[0], torch.tensor([0.0, 3.0, 0.0, 3.0]), atol=1e-5)
    with pytest.raises(ValueError, match="volume.*norm"):
        RestoreMoments("volume")  # type: ignore[arg-type]
