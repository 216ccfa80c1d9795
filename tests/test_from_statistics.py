"""Ranges and bias corrections from statistics alone, against closed forms and against measurement."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import recipes
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.ranges import LpSearch, MinMax
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.quant.student import Student, convert
from dreamquant.recipe import Step
from dreamquant.run import Run
from dreamquant.steps.calibrate import CalibrateFromStatistics, Likely, SetWeightRanges, Span
from dreamquant.steps.correct import CorrectBias, CorrectBiasFromStatistics, channel_means
from dreamquant.steps.reestimate import ReestimateStatistics
from dreamquant.synthesis.pixels import NoImages


def net(act: nn.Module, channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), act, nn.Conv2d(channels, 3, 1))
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made[1].weight.data = torch.linspace(-1.5, 2.0, channels)
    made[1].bias.data = torch.linspace(1.0, -0.5, channels)
    return made.eval()


def calibrated(made: nn.Module, step: CalibrateFromStatistics, bits: int, run: Run | None = None) -> dict[str, tuple[float, float]]:
    model = Model.from_module(made, (1, 8, 8), (0.0,), (1.0,))
    student = convert(model, Scheme(Int(8, "channel"), Int(bits)))
    run = run or Run(0)
    step(student, model, NoImages()(model, run), run)
    return {
        name: (float(q.scale * (q.format.low - q.zero)), float(q.scale * (q.format.high - q.zero)))
        for name, q in student.activation_quantizers().items()
    }


@pytest.mark.parametrize(("act", "low", "cap"), [(nn.ReLU(), 0.0, math.inf), (nn.ReLU6(), 0.0, 6.0), (nn.LeakyReLU(0.1), None, math.inf)])
def test_spans_are_n_deviations_of_the_record(act: nn.Module, low: float | None, cap: float) -> None:
    made = net(act)
    mean, std = made[1].bias.data, made[1].weight.data.abs()
    found = calibrated(made, CalibrateFromStatistics(Span(6.0), MinMax()), 8)["_2"]
    assert found[1] == pytest.approx(min(cap, float((mean + 6 * std).max())), rel=0.02)
    lowest = float((mean - 6 * std).min()) * 0.1 if low is None else low
    assert found[0] == pytest.approx(lowest, abs=0.05)


def phi(t: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(t / 2**0.5))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_likely_values_give_the_clip_of_the_least_expected_error(bits: int) -> None:
    """Against the model of the error: what is cut off, and a uniform error within a step of what is not (spec, section 2.3)."""
    made = net(nn.ReLU(), channels=16)
    beta, gamma = made[1].bias.data.double(), made[1].weight.data.abs().double()

    def modelled(alpha: Tensor) -> Tensor:
        t = (beta - alpha) / gamma
        density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        cut = ((beta - alpha) ** 2 + gamma**2) * phi(t) + gamma * (beta - alpha) * density
        step = alpha / (2**bits - 1)
        return (cut + step**2 / 12 * (phi((alpha - beta) / gamma) - phi(-beta / gamma))).mean()

    grid = torch.linspace(0.1, float((beta + 6 * gamma).max()), 2000, dtype=torch.float64)
    best = min(grid, key=lambda alpha: float(modelled(alpha)))
    low, high = calibrated(made, CalibrateFromStatistics(Likely(4096, furthest=3.0), LpSearch(2.0, candidates=200)), bits)["_2"]
    assert low == 0
    assert float(modelled(torch.tensor(high, dtype=torch.float64))) < 1.02 * float(modelled(best))


def test_without_statistics_ranges_come_from_noise_and_a_note_says_so() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    run = Run(0)
    found = calibrated(plain, CalibrateFromStatistics(), 8, run)
    assert all(math.isfinite(high) and high > 0 for name, (_, high) in found.items() if name != "x")
    assert any("images of noise" in note for note in run.notes)
    run = Run(0)
    calibrated(net(nn.ReLU()), CalibrateFromStatistics(), 8, run)
    assert not run.notes


def test_the_image_spans_the_pixels() -> None:
    model = Model.from_module(net(nn.ReLU()), (1, 8, 8), (0.5,), (0.25,))
    student = convert(model, Scheme(Int(8, "channel"), Int(8)))
    CalibrateFromStatistics()(student, model, NoImages()(model, Run(0)), Run(0))
    q = next(iter(student.activation_quantizers().values()))
    assert float(q.scale * (q.format.high - q.zero)) == pytest.approx(2.0, rel=0.01)
    assert float(q.scale * (q.format.low - q.zero)) == pytest.approx(-2.0, rel=0.01)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.b, self.bn2, self.fc = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn2(self.b(torch.relu(self.bn(self.a(x))))))
        return self.fc(x.mean((2, 3)))


X = 0.45 + 0.26 * torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def with_statistics() -> Model:
    torch.manual_seed(1)
    made = TwoLayers()
    for bn in (made.bn, made.bn2):
        nn.init.uniform_(bn.bias, 0, 1)
        bn.momentum = None
    made.train()
    with torch.no_grad():
        made(X)
    return Model.from_module(made.eval(), (3, 12, 12), (0.0,) * 3, (1.0,) * 3)


def shift_of(model: Model, student: Student) -> float:
    """Mean over channels of how far the mean of the second layer's outputs, behind its BatchNorm, has moved."""
    one, other = (torch.fx.GraphModule(n, n.graph) for n in (model.net, student.net))
    means = []
    for made in (one, other):
        with torch.no_grad():
            y = made.bn(made.a(X)).relu()
            means.append(made.bn2(made.b(y)).mean((0, 2, 3)))
    return float((means[0] - means[1]).abs().mean())


def test_analytic_correction_takes_the_shift_away() -> None:
    model = with_statistics()
    found = {}
    for name, steps in {"none": (), "corrected": (CorrectBiasFromStatistics(),), "whole": (ReestimateStatistics(),)}.items():
        student = convert(model, Scheme(Int(3, "tensor"), None))
        run = Run(0)
        for step in (SetWeightRanges(MinMax()), *steps):
            step(student, model, NoImages()(model, run), run)
        found[name] = shift_of(model, student)
    assert found["corrected"] < 0.25 * found["none"]
    assert found["whole"] < 0.5 * found["none"]


class Again(nn.Module):
    """The sum of some calls of one layer on one tensor, each with the BatchNorm `bn` behind it, or of two layers."""

    def __init__(self, calls: int, bn: nn.Module, layers: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.layers, self.bn, self.calls = nn.ModuleList(nn.Conv2d(16, 16, 3) for _ in range(layers)), bn, calls

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return sum(self.bn(layer(x)) for layer in self.layers for _ in range(self.calls)).mean((2, 3))  # type: ignore[union-attr]


def corrected(made: nn.Module, step: Step) -> dict[str, Tensor]:
    """What the student's layers and BatchNorms hold after the step."""
    model = Model.from_module(made.eval(), (3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    student = convert(model, Scheme(Int(3, "channel"), None))
    for one in (SetWeightRanges(MinMax()), step):
        one(student, model, Images(X, torch.zeros(len(X))), Run(0))
    return {name: value for name, value in student.net.state_dict().items() if not name.startswith("q.")}


STEPS = [CorrectBiasFromStatistics(), ReestimateStatistics()]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bn", [nn.BatchNorm2d(16), nn.Identity()])
def test_several_calls_get_the_mean_of_their_corrections(step: Step, bn: nn.Module) -> None:
    found = []
    for calls in (1, 3):
        torch.manual_seed(1)
        found.append(corrected(Again(calls, bn), step))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


@pytest.mark.parametrize("step", [*STEPS, CorrectBias()])
def test_a_batch_norm_of_two_layers_stays_and_each_layer_is_corrected(step: Step) -> None:
    torch.manual_seed(1)
    made = Again(1, nn.BatchNorm2d(16), layers=2)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    after = corrected(made, step)
    for name in ("bn.running_mean", "bn.running_var"):
        assert torch.equal(after[name], before[name])
    for name in ("layers.0.bias", "layers.1.bias"):
        assert not torch.allclose(after[name], before[name], atol=1e-3)


class Last(nn.Module):
    """Linear layers whose channels lie last, of maps with as many rows as channels, and of tokens before a BatchNorm of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = nn.Conv2d(3, 12, 1), nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.mix, self.tokens, self.fc = nn.Linear(12, 5, bias=False), nn.BatchNorm1d(144), nn.Linear(5, 4)
        self.norm.weight.data, self.norm.bias.data = torch.full((12,), 0.2), torch.linspace(-1.0, 2.0, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.fc(torch.relu(self.tokens(self.mix(x.flatten(2).transpose(1, 2)))).mean(1))


@pytest.mark.parametrize("step", [*STEPS, CorrectBias()])
def test_channels_that_lie_last_are_corrected(step: Step) -> None:
    torch.manual_seed(1)
    model = Model.from_module(Last().eval(), (3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    student, names, off = convert(model, Scheme(Int(3, "channel"), None)), ["up", "down", "mix"], []
    for made in (SetWeightRanges(MinMax()), step):
        made(student, model, Images(X, torch.zeros(len(X))), Run(0))
        means = [channel_means(net, names, X) for net in (model.net, student.net)]
        off.append([float((means[0][name] - means[1][name]).norm()) for name in names])
    assert [len(means[0][name]) for name in names] == [24, 12, 5]
    assert sum(off[1]) < 0.5 * sum(off[0])


def test_dfq_needs_no_images_and_restores_per_tensor_eight_bits() -> None:
    model = with_statistics()
    for bn in (model.net.get_submodule("bn"), model.net.get_submodule("bn2")):  # channels of very different scale, once folded
        bn.weight.data[::4] *= 30
        bn.bias.data[::4] *= 30
    model.net.get_submodule("b").weight.data[:, ::4] /= 30
    model.net.get_submodule("fc").weight.data[:, ::4] /= 30
    errors = {}
    for name, recipe in {"dfq": recipes.dfq("w8a32", effort="paper"), "rtn": recipes.rtn("w8a32")}.items():
        prepared = (
            recipe
            if name == "dfq"
            else type(recipe)("rtn", NoImages(), Scheme(Int(8), None), (), recipes.dfq("w8a32", effort="paper").prepare[:1])
        )
        with torch.no_grad():
            errors[name] = float((prepared(model)(X) - model(X)).square().mean())
    assert errors["dfq"] < 0.3 * errors["rtn"]
