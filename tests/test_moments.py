"""Moments of tensors without data: closed forms against sampling, propagation against what a network really does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.model import Model
from dreamquant.moments import floor, moments
from dreamquant.normal import clipped, quantiles, through

ENDS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, math.inf), (-math.inf, 0.5)]


@pytest.mark.parametrize(("low", "high"), ENDS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-1.5, 2.0), (5.0, 3.0), (3.0, 1e-5)])
def test_clipped_moments_are_those_of_samples(low: float, high: float, mean: float, std: float) -> None:
    samples = (mean + std * quantiles(200_000).double()).clamp(low, high)
    first, second = clipped(torch.tensor(mean), torch.tensor(std**2), low, high)
    assert abs(float(first) - float(samples.mean())) < 1e-3 * max(1, std)
    assert abs(float(second) - float(samples.var())) < 2e-3 * max(1, std**2)


def test_clipping_keeps_a_variance_far_below_the_mean() -> None:
    first, second = clipped(torch.tensor([1000.0, 30.0, 0.0]), torch.tensor([1e-2, 1e-6, 1.0]), 0.0, math.inf)
    torch.testing.assert_close(first[:2], torch.tensor([1000.0, 30.0]))
    torch.testing.assert_close(second, torch.tensor([1e-2, 1e-6, 0.5 - 0.5 / math.pi]), atol=0, rtol=1e-3)


def test_any_function_by_quantiles() -> None:
    mean, var = through(torch.nn.functional.gelu, torch.tensor([0.3, -1.0]), torch.tensor([1.0, 4.0]), nodes=201)
    samples = F.gelu(torch.tensor([0.3, -1.0])[:, None] + torch.tensor([1.0, 2.0])[:, None] * torch.randn(2, 400_000))
    torch.testing.assert_close(mean, samples.mean(1), atol=0.01, rtol=0.01)
    torch.testing.assert_close(var, samples.var(1), atol=0.03, rtol=0.03)


def test_quantiles_keep_the_variance() -> None:
    mean, var = through(lambda x: 2 * x, torch.tensor([0.0, 3.0]), torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(mean, torch.tensor([0.0, 6.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(var, torch.tensor([4.0, 16.0]), atol=0, rtol=1e-4)


class Small(nn.Module):
    """Every kind of node that moments pass: a residual sum, a concatenation, pools, a gate, a split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.conv3, self.bn3 = nn.Conv2d(16, 12, 1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu6(self.bn1(self.conv1(x)))
        b = F.relu(a + self.bn2(self.conv2(a)))
        b = b * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(b, 1)))
        left, right = b.chunk(2, dim=1)
        c = torch.cat([right, left, F.max_pool2d(a, 3, 1, 1)], 1)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.silu(self.bn3(self.conv3(c))), 1), 1))


def trained_statistics(net: nn.Module, x: Tensor) -> nn.Module:
    """BatchNorms that know what `x` makes of their inputs, with an affine of their own."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
            module.momentum = None
    net.train()
    with torch.no_grad():
        net(x)
    return net.eval()


def test_propagated_moments_are_those_of_a_network_with_true_statistics() -> None:
    torch.manual_seed(0)
    x = 0.45 + 0.26 * torch.randn(256, 3, 12, 12)
    net = trained_statistics(Small(), x)
    model = Model.from_module(net, (3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    spreads = moments(model)
    calls = {node.name for node in model.net.graph.nodes if node.op.startswith("call")}
    assert calls - set(spreads) == {"chunk"}, "a tuple of tensors, each of which has its own"
    seen = {}
    with torch.no_grad():
        a = F.relu6(net.bn1(net.conv1(x)))
        seen["relu6"] = a
        seen["add"] = a + net.bn2(net.conv2(a))
        seen["relu"] = F.relu(seen["add"])
        seen["sigmoid"] = torch.sigmoid(net.gate(F.adaptive_avg_pool2d(seen["relu"], 1)))
    for name, value in seen.items():
        stats = spreads[name].channels()
        deviation = value.std((0, 2, 3)).clamp_min(0.05)
        assert float(((stats.mean - value.mean((0, 2, 3))).abs() / deviation).mean()) < 0.25, name
        if name != "sigmoid":  # of averages only a guess is known
            assert 0.7 < float((stats.std / deviation).median()) < 1.4, name


def test_exact_where_the_value_is_normal() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    net[1].weight.data, net[1].bias.data = torch.tensor([-2.0, 1.0]), torch.tensor([0.0, 3.0])
    model = Model.from_module(net.eval(), (1, 4, 4), (0.0,), (1.0,))
    stats = moments(model)["_2"].channels()
    # a half normal has the mean s / sqrt(2 pi) and the variance s^2 (1/2 - 1/(2 pi)); three deviations above zero nothing is clipped
    torch.testing.assert_close(stats.mean, torch.tensor([2 / math.sqrt(2 * math.pi), 3.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(stats.std, torch.tensor([2 * math.sqrt(0.5 - 0.5 / math.pi), 1.0]), atol=5e-3, rtol=0)


def test_floor() -> None:
    torch.manual_seed(0)
    model = Model.from_module(Small().eval(), (3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    by = {node.name: node for node in model.net.graph.nodes}
    assert floor(model.net, by["max_pool2d"]) == 0
    assert floor(model.net, by["relu"]) == 0
    assert floor(model.net, by["add"]) == -math.inf  # one side is a BatchNorm's output
    assert floor(model.net, by["silu"]) == -math.inf


def test_channels_are_followed_through_moves() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 8)
            self.norm, self.tokens = nn.LayerNorm(8), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn(self.conv(x)))
            y = self.fc(self.norm(F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 0))))
            y = F.gelu(y)[:, :, 1:]
            x = x + y.permute(0, 3, 1, 2)
            grouped = x.view(-1, 2, 4, 8, 8).transpose(1, 2).contiguous().view(-1, 8, 8, 8)
            return self.tokens(grouped.flatten(2)).transpose(1, 2).mean(1)

    model = Model.from_module(Moves().eval(), (3, 8, 8), (0.0,) * 3, (1.0,) * 3)  # as many rows and columns as channels
    spreads = moments(model)
    wanted = {"permute": 3, "pad": 3, "norm": 3, "fc": 3, "gelu": 3, "getitem": 3, "permute_1": 1, "add": 1, "view_1": 1}
    wanted |= {"flatten": 1, "tokens": 1, "transpose_1": 2, "mean": 1}
    assert {name: spreads[name].axis for name in wanted} == wanted
    record = model.net.get_submodule("norm")
    record.weight.data = torch.arange(1.0, 9)
    torch.testing.assert_close(moments(model)["norm"].channels().std, record.weight.data)


def test_sums_with_numbers_and_factors() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            shifted = y + (-1.0)
            scaled = torch.add(input=shifted, other=F.relu6(x), alpha=2)
            less = torch.add(scaled, y, alpha=-1)
            return (-3 + less + x).flatten(1)

    model = Model.from_module(Sums(), (1, 2, 2), (0.0,), (1.0,))
    by, spreads = {node.name: node for node in model.net.graph.nodes}, moments(model)
    floors = [floor(model.net, by[name]) for name in ("add", "add_1", "add_2", "add_3")]
    assert floors == [-1.0, -1.0, -math.inf, -math.inf]
    torch.testing.assert_close(spreads["add"].mean, spreads["relu"].mean - 1)
    torch.testing.assert_close(spreads["add_1"].mean, spreads["add"].mean + 2 * spreads["relu6"].mean)
    torch.testing.assert_close(spreads["add_1"].var, spreads["add"].var + 4 * spreads["relu6"].var)
    torch.testing.assert_close(spreads["add_3"].mean, spreads["add_2"].mean - 3)


def test_attention_has_no_moments_and_layer_norm_gives_new_ones() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.norm, self.fc = nn.Conv2d(1, 4, 2, 2), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            t = self.patch(x).flatten(2).transpose(1, 2)
            t = torch.softmax(t @ t.transpose(1, 2), -1) @ t
            return self.fc(self.norm(t)).mean(1)

    model = Model.from_module(Tokens().eval(), (1, 8, 8), (0.5,), (0.5,))
    spreads = moments(model)
    assert "softmax" not in spreads
    assert spreads["norm"].mean.shape == (1, 16, 4)
    assert spreads["fc"].guessed == 1
