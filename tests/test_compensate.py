"""DF-MPC: pairs, closed forms against least squares, re-estimated statistics against measured ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.prepare import FoldBatchNorm
from dreamquant.quant.pairs import Alternate, pairs
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.quant.student import Student, convert
from dreamquant.recipes import dfmpc
from dreamquant.run import Run
from dreamquant.steps.calibrate import SetWeightRanges
from dreamquant.steps.compensate import ByMoments, ByWeights, Channels, CompensatePairs, Unchanged
from dreamquant.steps.correct import CorrectBiasFromStatistics
from dreamquant.steps.reestimate import ReestimateStatistics, inner, tap_correlation
from dreamquant.synthesis.pixels import NoImages
from dreamquant.zoo.networks import CifarResNet, DepthwiseNet


class Plain(nn.Module):
    """Four convolutions in a row, of which one is grouped."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 16, 1), (16, 24, 1), (24, 24, 4), (24, 16, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, groups=g, bias=False) for i, o, g in sizes)
        self.bns = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in sizes)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = F.relu(bn(conv(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """A basic block whose shortcut is a strided convolution (option B), or slices and zeros (option A)."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv2, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.short = nn.Sequential(nn.Conv2d(12, 24, 1, stride=2, bias=False), nn.BatchNorm2d(24)) if option == "B" else None
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = self.short(x) if self.short else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 6, 6))
        return self.fc(F.relu(y + short).mean((2, 3)))


class Dense(nn.Module):
    """Two layers of a DenseNet: BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3, concatenated to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (12, 16, 20, 16, 28))
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=k // 2, bias=False) for i, o, k in ((12, 16, 1), (16, 8, 3), (20, 16, 1), (16, 8, 3))
        )
        self.fc = nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first in (0, 2):
            y = self.convs[first](F.relu(self.norms[first](x)))
            x = torch.cat([x, self.convs[first + 1](F.relu(self.norms[first + 1](y)))], 1)
        return self.fc(F.relu(self.norms[4](x)).mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual: expansion, depthwise and projection, added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        sizes = ((8, 24, 1, 1), (24, 24, 3, 24), (24, 8, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2, groups=g, bias=False) for i, o, k, g in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in sizes)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu(self.norms[0](self.convs[0](x)))
        y = F.relu(self.norms[1](self.convs[1](y)))
        return self.fc((x + self.norms[2](self.convs[2](y))).mean((2, 3)))


X = 0.45 + 0.26 * torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def with_statistics(net: nn.Module) -> Model:
    """Statistics of white noise, so that taps are nearly independent."""
    torch.manual_seed(3)
    for bn in net.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.uniform_(bn.bias, -0.5, 1)
            bn.momentum = None
    net.train()
    with torch.no_grad():
        net(X)
    return Model.from_module(net.eval(), (3, 12, 12), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(3)
    return with_statistics(Plain())


TERNARY = Int(2, "channel", symmetric=True)


def quantized(model: Model, *steps: object, low: Int = TERNARY) -> Student:
    run = Run(0)
    images = NoImages()(model, run)
    student = convert(model, Alternate(low, Int(6, "channel"), None).on(model, images, run))
    for step in (SetWeightRanges(LpSearch(2.0)), *steps):
        step(student, model, images, run)  # type: ignore[operator]
    return student


def test_pairs() -> None:
    def of(net: nn.Module) -> tuple[tuple[str, str], ...]:
        return pairs(Model.from_module(net.eval(), (3, 32, 32), (0.0,) * 3, (1.0,) * 3).net)

    blocks = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in range(3)]
    assert of(CifarResNet(3)) == tuple((f"{b}.conv1", f"{b}.conv2") for b in blocks)
    assert of(Plain()) == (("convs.1", "convs.2"), ("convs.3", "fc"))
    found = of(DepthwiseNet())
    assert found
    assert len({name for pair in found for name in pair}) == 2 * len(found), "no layer is in two pairs"


def test_formats_alternate(model: Model) -> None:
    scheme = Alternate(Int(2, "channel"), Int(6, "channel"), Int(8)).on(model, Images(X[:0], torch.empty(0)), Run(0))
    names = ["convs.0", "convs.1", "convs.2", "convs.3", "fc"]
    assert [scheme.weight_format(name, number, 5).bits for number, name in enumerate(names)] == [6, 2, 6, 2, 6]


def test_a_network_without_pairs_is_told_so() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model = Model.from_module(net, (1, 2, 2), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="no two layers that follow each other"):
        dfmpc("w2a32")(model)


def channels(count: int = 7, size: int = 30) -> Channels:
    torch.manual_seed(0)
    weight = torch.randn(count, size)
    vectors = [0.5 + torch.rand(count) for _ in range(6)]
    return Channels(weight, (weight + 0.5 * torch.randn_like(weight)).sign() * 0.8, *vectors, torch.rand(count))


@pytest.mark.parametrize("offset", [0.0, 0.1, 2.0])
def test_the_papers_closed_form_is_least_squares(offset: float) -> None:
    c = channels()
    found = ByWeights(offset, ridge=1e-3, limits=(-100, 100))(c)
    x, other = (c.gamma / c.sigma)[:, None] * c.weight, (c.gamma / c.quantized_sigma)[:, None] * c.quantized
    y, moved = c.beta - c.gamma * c.mu / c.sigma, c.beta - c.gamma * c.quantized_mu / c.quantized_sigma
    ridge = 1e-3 * other.square().sum(1).mean()
    for j in range(len(found)):
        a = torch.cat([other[j], (offset**0.5 * moved[j])[None], ridge.sqrt()[None]]).double().numpy()
        b = torch.cat([x[j], (offset**0.5 * y[j])[None], torch.zeros(1)]).double().numpy()
        assert float(found[j]) == pytest.approx(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0], rel=1e-4)


def test_moments_give_the_least_squares_of_two_correlated_normals() -> None:
    c = channels()
    found = ByMoments()(c)
    torch.manual_seed(1)
    for j in range(len(found)):
        r, gamma, beta = c.correlation[j], c.gamma[j], c.beta[j]
        u, v = torch.randn(2, 1_000_000)
        one, other = beta + gamma * u, beta + gamma * (r * u + (1 - r**2).sqrt() * v)
        assert float(found[j]) == pytest.approx(float((one * other).mean() / other.square().mean()), abs=5e-3)


def test_inner_products_are_covariances() -> None:
    torch.manual_seed(0)
    a, b, variance = torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3), torch.rand(4, 5)
    x = torch.randn(40_000, 5, 1)
    for correlation, values in ((0.0, torch.randn(40_000, 5, 9)), (1.0, x.expand(-1, -1, 9))):
        for o in range(4):
            one, other = ((values * variance[o].sqrt()[:, None] * w[o].flatten(1)).sum((1, 2)) for w in (a, b))
            wanted = float(((one - one.mean()) * (other - other.mean())).mean())
            assert float(inner(a, b, variance, correlation)[o]) == pytest.approx(wanted, abs=0.03 * float(one.std() * other.std()))
    mixed = inner(a, a, variance, 0.3)
    assert tap_correlation(a, variance, mixed) == pytest.approx(0.3, abs=1e-4)


def measured(net: nn.Module, name: str) -> Tensor:
    """Mean and deviation of the outputs of the BatchNorm `name`, on the images whose statistics the float network has. (2, C)"""
    seen: dict[str, Tensor] = {}

    class Seen(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target == name:
                seen[name] = value
            return value

    with torch.no_grad():
        Seen(net).run(X)  # type: ignore[arg-type]
    return torch.stack([seen[name].mean((0, 2, 3)), seen[name].std((0, 2, 3))])


def test_re_estimated_statistics_restore_what_the_float_network_has(model: Model) -> None:
    for name in ("bns.1", "bns.2", "bns.3"):
        wanted = measured(model.net, name)
        errors = []
        for steps in ((), (CorrectBiasFromStatistics(),), (ReestimateStatistics(),)):
            got = measured(quantized(model, *steps).net, name)
            errors.append([float(v) for v in (got - wanted).abs().mean(1)])
        none, bias, both = errors
        assert both[0] < 0.5 * none[0], name
        assert both[1] < 0.5 * none[1] + 0.02, name
        assert bias[0] < none[0]


def test_a_channel_that_does_not_vary_keeps_its_scale(model: Model) -> None:
    """A filter of zeros, one that reads a constant alone, and one that rounds to nothing beside larger ones."""
    conv, bn = model.net.get_submodule("convs.1"), model.net.get_submodule("bns.0")
    bn.weight.data[2], bn.bias.data[2] = 0.0, 0.5
    conv.weight.data[0] = 0
    conv.weight.data[1, torch.arange(16) != 2] = 0
    conv.weight.data[2] *= 0.01
    student = convert(model, Scheme(Int(4), None))
    SetWeightRanges()(student, model, NoImages()(model, Run(0)), Run(0))
    ReestimateStatistics()(student, model, NoImages()(model, Run(0)), Run(0))
    was, now = (net.get_submodule("bns.1").running_var[:3] for net in (model.net, student.net))
    torch.testing.assert_close(now, was)


def test_without_batch_norm_the_same_comes_out(model: Model) -> None:
    folded = FoldBatchNorm()(model)
    with torch.no_grad():
        one, other = (quantized(m, ReestimateStatistics()).net(X) for m in (model, folded))
    torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)


def distance(model: Model, student: Student) -> float:
    with torch.no_grad():
        return float((student.net(X) - model.net(X)).square().mean() / model.net(X).var())


@pytest.mark.parametrize("low", [TERNARY, Int(2, "channel"), Int(3, "channel", symmetric=True)])
def test_compensation_beats_its_absence(model: Model, low: Int) -> None:
    again, last = SetWeightRanges(LpSearch(2.0)), ReestimateStatistics()
    none = distance(model, quantized(model, low=low))
    alone = distance(model, quantized(model, CompensatePairs(Unchanged()), again, last, low=low))
    whole = distance(model, quantized(model, CompensatePairs(ByMoments()), again, last, low=low))
    assert alone < 0.5 * none
    assert whole < 0.5 * none
    assert whole < 1.1 * alone, "with four levels the statistics carry all of the gain; with three the factors add some"


ARCHITECTURES = {
    "residual A": (lambda: Residual("A"), (("conv1", "conv2"),)),
    "residual B": (lambda: Residual("B"), (("conv1", "conv2"),)),
    "dense": (Dense, (("convs.0", "convs.1"), ("convs.2", "convs.3"))),
    "inverted": (Inverted, (("convs.0", "convs.1"),)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_paired_and_gains(name: str) -> None:
    make, wanted = ARCHITECTURES[name]
    torch.manual_seed(5)
    model = with_statistics(make())
    assert pairs(model.net) == wanted
    again, last = SetWeightRanges(LpSearch(2.0)), ReestimateStatistics()
    none = distance(model, quantized(model))
    assert distance(model, quantized(model, CompensatePairs(ByMoments()), again, last)) < 0.7 * none
    assert distance(model, quantized(model, CompensatePairs(ByWeights()), again, last)) < 0.7 * none


def test_nothing_to_compensate_at_eight_bits(model: Model) -> None:
    before = model.net.get_submodule("convs.2").weight.clone()
    student = quantized(model, CompensatePairs(ByMoments()), low=Int(8, "channel"))
    torch.testing.assert_close(student.net.get_submodule("convs.2").weight.data, before, rtol=2e-3, atol=1e-6)


def test_a_depthwise_reader_is_scaled_row_by_row(model: Model) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )
    small = Model.from_module(net.eval(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)
    assert pairs(small.net) == (("3", "6"),)
    student = quantized(small, CompensatePairs(ByMoments()))
    share = student.net.get_submodule("6").weight / small.net.get_submodule("6").weight
    assert torch.allclose(share, share[:, :, :1, :1].expand_as(share), rtol=1e-4)
    assert (share < 1).all()


class Mixing(nn.Module):
    """Two convolutions, the second of which reads the first through `move`."""

    def __init__(self, move: Callable[[Tensor], Tensor], reads: nn.Module) -> None:
        super().__init__()
        self.stem, self.low, self.move = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), move
        self.bn, self.reads, self.last = nn.BatchNorm2d(8), reads, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.move(F.relu(self.bn(self.low(F.relu(self.stem(x))))))
        x = F.relu(self.reads(x))
        return self.last(x.mean((2, 3)) if isinstance(self.reads, nn.Conv2d) else x)


def shuffled(x: Tensor) -> Tensor:
    return x.view(-1, 2, 4, 8, 8).transpose(1, 2).contiguous().view(-1, 8, 8, 8)


REORDERED: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "shuffle": (nn.ChannelShuffle(4), nn.Conv2d(8, 6, 3)),
    "shuffle by views": (shuffled, nn.Conv2d(8, 6, 3)),
    "pixels": (nn.PixelShuffle(2), nn.Conv2d(2, 6, 3)),
    "half": (lambda x: x.chunk(2, 1)[1], nn.Conv2d(4, 6, 3)),
    "rolled": (lambda x: x.roll(1, 1), nn.Conv2d(8, 6, 3)),
    "padded": (lambda x: F.pad(x[:, 4:], (0, 0, 0, 0, 0, 4)), nn.Conv2d(8, 6, 3)),
    "places first": (lambda x: x.permute(0, 2, 3, 1).flatten(1), nn.Linear(512, 6)),
}
KEPT: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "pools": (lambda x: F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 3, 1, 1), nn.Conv2d(8, 6, 3)),
    "rolled places": (lambda x: F.pad(x, (1, 1, 1, 1)).roll(1, 2), nn.Conv2d(8, 6, 3)),
    "enlarged": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), nn.Conv2d(8, 6, 3)),
    "flat": (lambda x: F.max_pool2d(x, 2).view(x.size(0), -1), nn.Linear(128, 6)),
    "mean": (lambda x: x.mean(3).mean(2), nn.Linear(8, 6)),
    "channels last": (lambda x: x.flatten(2).transpose(1, 2).mean(1), nn.Linear(8, 6)),
}


def mixing(move: Callable[[Tensor], Tensor], reads: nn.Module) -> Model:
    return Model.from_module(Mixing(move, reads).eval(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("form", REORDERED)
def test_layers_between_which_channels_change_places_are_no_pair(form: str) -> None:
    assert pairs(mixing(*REORDERED[form]).net) == (("reads", "last"),)


@pytest.mark.parametrize("form", KEPT)
def test_layers_between_which_channels_stay_are_a_pair(form: str) -> None:
    assert pairs(mixing(*KEPT[form]).net) == (("low", "reads"),)


def test_linears_of_tokens_are_a_pair_but_for_a_batch_norm_of_the_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.first, self.low, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), norm
            self.high, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x.flatten(1, 2)))
            return self.last(F.relu(self.high(F.relu(self.norm(self.low(x))).mean(1))))

    of = [Model.from_module(Tokens(n).eval(), (1, 8, 8), (0.0,), (1.0,)) for n in (nn.Identity(), nn.BatchNorm1d(8))]
    assert [pairs(model.net) for model in of] == [(("low", "high"),), (("high", "last"),)]
