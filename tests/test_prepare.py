"""Folding, equalizing and absorbing: the same function, other weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.model import Model
from dreamquant.moments import ChannelStats, moments
from dreamquant.prepare import AbsorbHighBias, Equalize, FoldBatchNorm, WidenReLU6, columns, streams


class Chain(nn.Module):
    """Full, depthwise, grouped and pointwise convolutions, a residual stream, and a linear that reads flattened places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.bn1 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.depth, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.grouped, self.bn3 = nn.Conv2d(12, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.last, self.bn4 = nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.wide(x)))
        y = F.relu(self.bn2(self.depth(y)))
        x = x + self.bn3(self.grouped(y))
        x = F.leaky_relu(self.bn4(self.last(x)), 0.2)
        return self.fc(torch.flatten(F.max_pool2d(x, 2), 1))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    net = Chain()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.1, 4)
    return Model.from_module(net.eval(), (2, 8, 8), (0.0,) * 2, (1.0,) * 2)


X = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_folding_keeps_the_function_and_the_records(model: Model) -> None:
    folded = FoldBatchNorm()(model)
    assert not folded.points["bn"]
    torch.testing.assert_close(folded(X), model(X), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded.channel_stats["stem"].mean, model.net.bn0.bias.data)
    torch.testing.assert_close(folded.channel_stats["stem"].std, model.net.bn0.weight.data.abs())
    before, after = moments(model), moments(folded)
    torch.testing.assert_close(before["relu_1"].mean, after["relu_1"].mean)
    assert model.points["bn"], "the given model is never changed"


def test_a_batch_norm_that_cannot_be_folded_stays() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn0, self.conv, self.bn, self.fc = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.bn0(x))
            return self.fc((self.bn(y) + y).mean((2, 3)))  # the convolution has a second reader

    model = Model.from_module(Net().eval(), (1, 4, 4), (0.0,), (1.0,))
    assert FoldBatchNorm()(model).points["bn"] == ("bn0", "bn")


@pytest.mark.parametrize("across", [False, True])
def test_equalizing_keeps_the_function_and_evens_the_ranges(model: Model, across: bool) -> None:
    folded = FoldBatchNorm()(model)
    even = Equalize(sweeps=60, across_adds=across)(folded)
    torch.testing.assert_close(even(X), model(X), atol=1e-4, rtol=1e-4)
    for writers, readers in streams(even.net, across):
        written = torch.stack([even.net.get_submodule(n.target).weight.abs().flatten(1).amax(1) for n in writers]).amax(0)
        read = torch.stack([columns(even.net.get_submodule(n.target), len(written)).abs().amax((1, 3)).flatten() for n in readers]).amax(0)
        torch.testing.assert_close(written, read, rtol=2e-3, atol=0)


def test_which_tensors_are_equalized(model: Model) -> None:
    folded = FoldBatchNorm()(model)
    names = [([w.name for w in writers], [r.name for r in readers]) for writers, readers in streams(folded.net, False)]
    assert names == [(["wide"], ["depth"]), (["depth"], ["grouped"]), (["last"], ["fc"])]
    names = [([w.name for w in writers], [r.name for r in readers]) for writers, readers in streams(folded.net, True)]
    assert names == [(["stem", "grouped"], ["wide", "last"]), (["wide"], ["depth"]), (["depth"], ["grouped"]), (["last"], ["fc"])]


def test_the_closed_form_of_a_triple() -> None:
    """Conv, depthwise, conv: at the fixed point all three have the range (r1 r2 r3)^(1/3) (spec, section 3.1)."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1, groups=1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(16, 2)
    )
    for number, value in ((0, 8.0), (2, 0.5), (4, 2.0)):
        nn.init.constant_(net[number].weight, value)
    nn.init.constant_(net[6].weight, 1.0)
    even = Equalize(sweeps=200, tolerance=1e-7)(Model.from_module(net.eval(), (1, 4, 4), (0.0,), (1.0,)))
    ranges = [even.net.get_submodule(name).weight.abs().max().item() for name in ("0", "2", "4", "6")]
    assert ranges == pytest.approx([8 ** (1 / 4)] * 4, rel=1e-3)


def test_records_are_rescaled_with_their_channels(model: Model) -> None:
    folded = FoldBatchNorm()(model)
    even = Equalize()(folded)
    factor = folded.net.wide.weight.flatten(1).abs().amax(1) / even.net.wide.weight.flatten(1).abs().amax(1)
    torch.testing.assert_close(even.channel_stats["wide"].std * factor, folded.channel_stats["wide"].std)
    torch.testing.assert_close(even.channel_stats["wide"].mean * factor, folded.channel_stats["wide"].mean)


def test_relu6_is_no_path_until_it_is_widened() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Model.from_module(net.eval(), (1, 4, 4), (0.0,), (1.0,))
    assert not streams(model.net, False)
    wide = WidenReLU6()(model)
    assert len(streams(wide.net, False)) == 1
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(wide(x), model(x))  # nothing here is above 6


def test_absorbing_is_exact_above_the_bias() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net[1].weight.data, net[1].bias.data = torch.full((4,), 0.1), torch.tensor([5.0, 1.0, 0.1, -1.0])
    folded = FoldBatchNorm()(Model.from_module(net.eval(), (1, 4, 4), (0.0,), (1.0,)))
    absorbed = AbsorbHighBias()(folded)
    moved = folded.channel_stats["_0"].mean - absorbed.channel_stats["_0"].mean
    torch.testing.assert_close(moved, torch.tensor([4.7, 0.7, 0.0, 0.0]))
    x = 0.1 * torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(absorbed(x), folded(x), atol=1e-5, rtol=1e-5)


def test_shared_layers_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))

    model = Model.from_module(Twice().eval(), (1, 4, 4), (0.0,), (1.0,))
    assert len(graph.of_kind(model.net, "conv")) == 3
    assert not streams(model.net, True)


class Placed(nn.Module):
    """Layers whose channels lie where `form` puts them, ReLUs between, which equalizing must not take for one another."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.conv = form, nn.Conv2d(2, 8, 3, padding=1)
        self.tokens, self.places, self.last = nn.Linear(8, 8), nn.Linear(64, 16), nn.Linear(8, 8)
        self.joined, self.pooled, self.classes = nn.Linear(512, 8), nn.Linear(16, 8), nn.Linear(8, 3)
        for parameter in self.parameters():
            parameter.data[0] *= 10

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        match self.form:
            case "places":  # a linear reads places, not the convolution's channels
                x = F.relu(self.places(x.flatten(2))).mean(1)
                return self.classes(F.relu(self.pooled(x)))
            case "last axis":
                x = F.relu(self.last(x)).mean((1, 2))
            case "joined tokens":  # places go before channels
                x = F.relu(self.tokens(x.permute(0, 2, 3, 1)))
                x = F.relu(self.joined(x.flatten(1)))
            case "pooled tokens":  # a pool takes the last two axes for places
                x = F.relu(self.tokens(x.permute(0, 2, 3, 1)))
                x = F.relu(self.last(F.max_pool2d(x, 3, 1, 1))).mean((1, 2))
            case "joined images":
                x = F.relu(self.last(x.flatten(0, 2))).view(-1, 64, 8).mean(1)
            case "tokens":  # here all have their channels last
                x = F.relu(self.last(F.relu(self.tokens(x.permute(0, 2, 3, 1))))).mean((1, 2))
        return self.classes(x)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("form", ["places", "last axis", "joined tokens", "pooled tokens", "joined images", "tokens"])
def test_channels_that_lie_elsewhere_are_no_channels_to_equalize(form: str, across: bool) -> None:
    model = Model.from_module(Placed(form).eval(), (2, 8, 8), (0.0,) * 2, (1.0,) * 2)
    even = Equalize(across_adds=across)(model)
    torch.testing.assert_close(even(X), model(X), atol=1e-5, rtol=1e-4)
    found = [([w.name for w in writers], [r.name for r in readers]) for writers, readers in streams(model.net, across)]
    wanted = {"places": [(["pooled"], ["classes"])], "joined tokens": [(["joined"], ["classes"])], "tokens": [(["tokens"], ["last"])]}
    assert found == wanted.get(form, [])


@pytest.mark.parametrize("form", ["places", "last axis", "joined tokens", "pooled tokens", "joined images"])
def test_channels_that_lie_elsewhere_are_not_absorbed(form: str) -> None:
    model = Model.from_module(Placed(form).eval(), (2, 8, 8), (0.0,) * 2, (1.0,) * 2)
    known = {n.name: ChannelStats(torch.ones(len(b)), 0.1 * torch.ones(len(b))) for n, b in biases(model) if n.name in ("conv", "tokens")}
    absorbed = AbsorbHighBias()(replace(model, channel_stats=known))
    assert all(torch.equal(b, c) for (_, b), (_, c) in zip(biases(model), biases(absorbed), strict=True))


def biases(model: Model) -> list[tuple[fx.Node, Tensor]]:
    """Layers and their biases."""
    return [(n, model.net.get_parameter(f"{n.target}.bias")) for n in graph.of_kind(model.net, *graph.LAYERS)]


def test_a_batch_norm_of_tokens_is_not_folded() -> None:
    """Its channels are the tokens, not what the linear layer makes, however many of either there are."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn, self.fc = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            nn.init.uniform_(self.bn.weight, 0.5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.bn(self.linear(x.view(-1, 8, 16)))).mean(1))

    torch.manual_seed(0)
    model = Model.from_module(Tokens().eval(), (2, 8, 8), (0.0,) * 2, (1.0,) * 2)
    folded = FoldBatchNorm()(model)
    assert folded.points["bn"] == ("bn",)
    torch.testing.assert_close(folded(X), model(X))


def test_layers_that_share_a_weight_are_folded_apart() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    second.weight = first.weight
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    for norm in norms:
        nn.init.uniform_(norm.weight, 2, 4)
    net = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Model.from_module(net.eval(), (2, 8, 8), (0.0,) * 2, (1.0,) * 2)
    torch.testing.assert_close(FoldBatchNorm()(model)(X), model(X))
