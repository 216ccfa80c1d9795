"""Learned rounding, dropped quantization, and the step that rebuilds a network piece by piece with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model, Run, graph
from dreamquant.learn import Learn
from dreamquant.losses.student import SoftLabel
from dreamquant.losses.unit import RelativeError, SquaredError, squared_error
from dreamquant.optimizers import Adam, Cosine, Relative
from dreamquant.quant.freeze import freeze
from dreamquant.quant.quantizer import LearnSteps
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of
from dreamquant.quant.student import Student, convert
from dreamquant.recipes import find
from dreamquant.run import Loop
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.finetune import FineTune
from dreamquant.steps.pieces import Blocks, Inputs, Layers, through
from dreamquant.steps.reconstruct import Anneal, Reconstruct
from dreamquant.synthesis.transforms import Flip
from faults import Killed, killing_after

FACTS = ((3, 16, 16), (0.5,) * 3, (0.25,) * 3)
QUICK = Reconstruct(3, 8, rounding=Adam(1e-2), weight_steps=Adam(1e-4), activation_steps=Adam(1e-3), transforms=(Flip(),), views=2)
TUNE = FineTune(Learn(SoftLabel(), Adam(0.05), (), LearnSteps(), LearnSteps()), iterations=10, batch=8)
REBUILD = Reconstruct(10, 8, weight_steps=Adam(0.05), activation_steps=Adam(0.05))


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def images(model: Model, count: int = 20) -> Images:
    pixels = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(3))
    return Images(pixels, torch.zeros(count, dtype=torch.long))


def ready(model: Model, bits: str = "w3a3") -> Student:
    """A student with calibrated ranges and weights that round to the nearest code of a good grid."""
    student = convert(model, scheme_of(bits))
    for step in (Calibrate(LpSearch()), SetWeightRanges()):
        step(student, model, images(model), Run())
    return student


def on_their_grids(student: Student) -> bool:
    return all(torch.equal(layer.quantizer(layer.weight), layer.weight) for layer in student.layers().values())


@pytest.mark.parametrize("step", [TUNE, REBUILD], ids=["fine-tune", "reconstruct"])
def test_steps_stay_positive_at_any_rate(step: FineTune | Reconstruct, model: Model) -> None:
    student = ready(model, "w8a8")
    before = [layer.quantizer.grid(layer.weight)[0].detach().clone() for layer in student.layers().values()]
    step(student, model, images(model), Run())
    after = [layer.quantizer.grid(layer.weight)[0] for layer in student.layers().values()]
    assert all((a >= b / 4).all() for a, b in zip(after, before, strict=True))
    assert any((a == b / 4).any() for a, b in zip(after, before, strict=True))  # which the rate would have taken below zero
    freeze(student, {})


def test_the_regulariser_is_zero_at_the_ends_and_waits() -> None:
    anneal = Anneal(0.5, start=20, end=2, warm_up=0.2)
    half, ends = torch.full((4,), 0.5), torch.tensor([0.0, 1.0])
    assert anneal.exponent(0.1) is None
    assert [anneal.exponent(done) for done in (0.2, 0.6, 1.0)] == pytest.approx([20, 11, 2])
    b = torch.tensor(11.0, dtype=torch.float64)
    assert anneal([half], None) == 0 and anneal([], b) == 0
    assert anneal([half, ends], b) == 0.5 * 4
    assert anneal([torch.tensor([0.75])], b) == pytest.approx(0.5 * (1 - 0.5**11))
    h = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: anneal([h], b), (h,))


def test_unit_errors_by_hand() -> None:
    mine, wanted = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    assert SquaredError()(mine, wanted).item() == pytest.approx((mine - wanted).square().sum(1).mean().item(), rel=1e-5)
    tokens = torch.randn(4, 7, 3)
    assert SquaredError()(tokens, 0 * tokens).item() == pytest.approx(tokens.square().sum(2).mean().item(), rel=1e-5)
    once, scaled = RelativeError()(mine, wanted), RelativeError()(30 * mine, 30 * wanted)
    assert once.item() == pytest.approx(scaled.item(), rel=1e-4) and once > 1


def test_squared_error_has_torchs_gradient_in_the_layout_of_its_input() -> None:
    mine = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    value = squared_error(mine, wanted)
    (gradient,) = torch.autograd.grad(value, mine)
    theirs = F.mse_loss(mine, wanted)
    assert value.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(gradient, torch.autograd.grad(theirs, mine)[0], atol=1e-7)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(squared_error(mine, mine.detach()), mine)[0].eq(0).all()  # not NaN where they agree


class OneLayer(nn.Module):
    """A linear layer whose inputs are strongly correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("pieces", [Blocks(), Layers()])
def test_learned_rounding_beats_the_nearest_on_a_layers_output(pieces: Blocks | Layers) -> None:
    torch.manual_seed(0)
    model = Model.from_module(OneLayer(), (3, 4, 4), (0.5,) * 3, (0.25,) * 3)
    mixing = torch.randn(6, 48)
    seen, new = (torch.randn(n, 6) @ mixing + 0.1 * torch.randn(n, 48) for n in (200, 500))
    student = ready(model, "w3a32")

    def error() -> float:
        x = new.view(-1, 3, 4, 4)
        with torch.no_grad():
            return F.mse_loss(student.net(x), model.net(x)).item()

    nearest = error()
    step = Reconstruct(300, drop=0.0, rounding=Adam(1e-2), error=RelativeError(), anneal=Anneal(1e-4), pieces=pieces)
    step(student, model, Images(seen.view(-1, 3, 4, 4), torch.zeros(200)), Run())
    assert error() < 0.6 * nearest
    assert on_their_grids(student)


def test_a_rebuilt_student_freezes_to_exactly_its_codes(model: Model) -> None:
    student = ready(model)
    QUICK(student, model, images(model), Run())
    assert on_their_grids(student)
    quantized = freeze(student, {})
    ops = {op.numbers["layer"]: op for op in quantized.program if "layer" in op.numbers}
    for name, layer in student.layers().items():
        codes = layer.weight / layer.quantizer.scale + layer.quantizer.zero
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert torch.equal(ops[name].tensors["codes"].float(), codes.round())
    x = images(model).pixels
    with torch.no_grad():
        assert torch.allclose(quantized(x), student.net(x), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in student.net.parameters())


def test_rebuilding_brings_the_student_closer_to_its_teacher(model: Model) -> None:
    student, given = ready(model, "w2a4"), images(model, 64)
    fresh = torch.randn(64, 3, 16, 16)

    def error() -> float:
        with torch.no_grad():
            return RelativeError()(student.net(fresh), model.net(fresh)).item()

    before = error()
    run = Run()
    Reconstruct(60, rounding=Adam(3e-2), anneal=Anneal(1e-3), activation_steps=Adam(1e-3))(student, model, given, run)
    assert error() < 0.7 * before
    assert any(name.endswith("reconstruction") for name in run.curves)


@pytest.mark.parametrize(("count", "save_every"), [(0, 0.0), (4, 0.0), (9, 0.0), (0, 1e9), (3, 1e9), (8, 1e9)])
def test_a_killed_reconstruction_continues_to_the_same_bits(
    count: int, save_every: float, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt(folder: str) -> Student:
        student = ready(model)
        QUICK(student, model, images(model), Run(1, tmp_path / folder, save_every=save_every))
        return student

    whole = rebuilt("whole").state_dict()
    monkeypatch.setattr(Loop, "save", killing_after(count))
    with pytest.raises(Killed):
        rebuilt("killed")
    monkeypatch.undo()
    resumed = rebuilt("killed").state_dict()
    tensors = [key for key, value in whole.items() if isinstance(value, Tensor)]
    assert all(torch.equal(whole[key], resumed[key]) for key in tensors) and whole.keys() == resumed.keys()


class Scaled(nn.Module):
    """The first op is no convolution; depthwise, strided, grouped, linear, no BatchNorm at places, one channel, odd sides."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 5 * 4, 12)
        self.grouped, self.head = nn.Conv2d(4, 4, 1, groups=2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.pad(x * 2 - 1, (0, 1, 1, 0)), 2)
        x = self.depthwise(F.relu(self.first(x)))
        x = x + self.grouped(x)
        return self.head(F.relu(self.last(x.flatten(1))))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("pieces", [Blocks(), Layers()])
@pytest.mark.parametrize(("net", "shape"), [(Scaled(), (1, 23, 19)), (Shared(), (3, 9, 9))])
def test_networks_of_other_kinds(net: nn.Module, shape: tuple[int, int, int], pieces: Blocks | Layers) -> None:
    torch.manual_seed(0)
    model = Model.from_module(net, shape, (0.5,) * shape[0], (0.25,) * shape[0])
    layers = {name for name, _ in model.net.named_modules() if name} & set(ready(model).layers())
    found = list(pieces(model.net))
    covered = {str(n.target) for _, start, end in found for n in graph.cut_out(model.net, (start,), end).graph.nodes}
    assert layers <= covered
    student, before = ready(model), {k: v.clone() for k, v in model.net.state_dict().items()}
    start = student.state_dict()["head.weight"].clone()
    Reconstruct(8, batch=8, rounding=Adam(0.2), pieces=pieces)(student, model, images(model), Run())
    assert on_their_grids(student) and not torch.equal(student.state_dict()["head.weight"], start)
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in before.items())
    assert student.net(images(model).pixels).isfinite().all()


def test_inputs_are_those_of_the_whole_prefix(model: Model) -> None:
    student, pixels = ready(model), images(model, 70).pixels
    inputs = Inputs(model.net, student.net, pixels)
    for cut, _ in graph.units(model.net)[1:]:
        inputs.go_to(cut)
        for mine, net in zip(inputs.at(cut), (model.net, student.net), strict=True):
            whole = through(graph.cut_out(net, ("x",), cut), pixels, pixels.device)
            assert torch.allclose(mine, whole, atol=1e-4)


def test_what_is_missing_is_named(model: Model) -> None:
    with pytest.raises(ValueError, match="Reconstruct needs images"):
        QUICK(ready(model), model, images(model)[:0], Run())
    with pytest.raises(ValueError, match="relu: no range was ever measured; add a Calibrate"):
        QUICK(convert(model, scheme_of("w3a3")), model, images(model), Run())
    with pytest.raises(ValueError, match="give `rounding` too"):
        replace(QUICK, rounding=None)


def test_steps_alone_are_learned_where_rounding_is_not(model: Model) -> None:
    student = ready(model)
    before = {key: value.clone() for key, value in student.state_dict().items() if isinstance(value, Tensor)}
    Reconstruct(3, drop=0.0, rounding=None, activation_steps=Adam(4e-4, schedule=Cosine()))(student, model, images(model), Run())
    after = student.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    live = {f"q.{name}.scale" for name, q in student.activation_quantizers().items() if q.live}
    assert changed == live


def test_relative_rates_are_in_units_of_the_steps(model: Model) -> None:
    student = ready(model, "w6a3")
    before = {name: float(q.scale) for name, q in student.activation_quantizers().items() if q.live}
    once = Reconstruct(1, 8, rounding=None, activation_steps=Relative(Adam(1e-2)))  # Adam's first update is its rate
    once(student, model, images(model), Run())
    moved = [abs(float(student.activation_quantizers()[name].scale) / scale - 1) for name, scale in before.items()]
    reached = [share for share in moved if share]
    assert len(reached) >= 3 and reached == pytest.approx([1e-2] * len(reached), rel=0.01)


def test_eight_bits_are_not_lost_at_the_rates_of_few(model: Model) -> None:
    dreamed = images(model, 32)
    rebuild = find("dream")("w8a8").steps[-1]
    assert isinstance(rebuild, Reconstruct)

    def error(how: Reconstruct) -> float:
        student = ready(model, "w8a8")
        replace(how, iterations=60)(student, model, dreamed, Run())
        return float(F.mse_loss(student.net(dreamed.pixels), model.net(dreamed.pixels)))

    absolute = replace(rebuild, weight_steps=Adam(4e-3, schedule=Cosine()), activation_steps=Adam(1.6e-3, schedule=Cosine()))
    lost, kept = error(absolute), error(rebuild)
    assert 10 * kept < lost
