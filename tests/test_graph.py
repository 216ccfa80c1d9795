"""What the graph knows, and where quantizers stand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import Images, Model, graph, load_model
from dreamquant.quant.quantizer import Quantizer
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import Int, Scheme, scheme_of, uniform
from dreamquant.quant.student import convert
from dreamquant.run import Run
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.steps.correct import CorrectBias, channel_means
from dreamquant.trace import Watch
from test_quantized import Shortcuts

FACTS = ((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


def test_units_cover_the_network_in_order(model: Model) -> None:
    x = torch.randn(2, 3, 16, 16)
    value = x
    pieces = graph.units(model.net)
    for (into, out), following in zip(pieces, [*pieces[1:], None], strict=True):
        value = graph.cut_out(model.net, (into,), out)(value)
        assert following is None or following[0] == out
    assert torch.allclose(value, model(x), atol=1e-5)


class Halves(nn.Module):
    """Its only path goes through the two halves of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.first(x)).chunk(2, 1)
        return F.relu(self.second(one * other)).mean((2, 3))


def test_pieces_begin_and_end_at_tensors() -> None:
    net = Model.from_module(Halves(), *FACTS).net
    assert graph.units(net)[:2] == (("x", "relu"), ("relu", "relu_1"))


def test_the_tail_from_saliency_gives_the_logits(model: Model) -> None:
    seen = Watch(model, frozenset({"saliency"}))(Images(torch.randn(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)))
    assert torch.allclose(seen.watch.tail(*seen.at["saliency"]), seen.logits, atol=1e-5)


def test_watching_does_not_change_the_network(model: Model) -> None:
    x = torch.randn(4, 3, 16, 16)
    seen = Watch(model, frozenset({"bn", "blocks", "features"}))(Images(x, torch.zeros(4, dtype=torch.long)))
    assert torch.allclose(seen.logits, model(x), atol=1e-4)
    assert set(seen.moments) == set(model.points["bn"])


def test_gradients_through_the_moments_are_those_of_autograd(model: Model) -> None:
    x = torch.randn(3, 3, 16, 16, dtype=torch.double, requires_grad=True)
    model.net.double()
    bn = model.net.get_submodule(str(graph.of_kind(model.net, "bn")[0].target))
    watch = Watch(model, frozenset({"bn"}))
    seen = watch(Images(x, torch.zeros(3, dtype=torch.long)))
    name = model.points["bn"][0]
    got = torch.autograd.grad(seen.moments[name].second.sum() + seen.moments[name].first.square().sum() + seen.logits.sum(), x)[0]
    conv = graph.named(model.net, name).all_input_nodes[0]
    before = graph.cut_out(model.net, ("x",), conv.name)(x)
    assert isinstance(bn, nn.BatchNorm2d) and bn.running_mean is not None and bn.running_var is not None
    z = (before - bn.running_mean.view(1, -1, 1, 1)) / (bn.running_var + bn.eps).sqrt().view(1, -1, 1, 1)
    want = torch.autograd.grad(z.square().mean((2, 3)).sum() + z.mean((2, 3)).square().sum() + model.net(x).sum(), x)[0]
    assert torch.allclose(got, want, atol=1e-8)


def test_paper_placement_leaves_image_averages_and_branch_ends_in_float(model: Model) -> None:
    student = convert(model, scheme_of("w4a4"))
    live = {name for name, q in student.activation_quantizers().items() if q.live}
    assert live == set(model.points["activations"])
    everything = convert(model, Scheme(scheme_of("w4a4").weights, scheme_of("w4a4").activations, placement="deploy"))
    assert all(q.live for q in everything.activation_quantizers().values())
    assert len(everything.activation_quantizers()) > len(live)


def test_a_resnet20_has_a_quantizer_behind_every_activation_and_no_other() -> None:
    """The published count, 19: one at the start and two in each of nine blocks; shortcuts have none of their own."""
    student = convert(load_model("zoo:resnet20-cifar10"), scheme_of("w3a3"))
    live = [q for q in student.activation_quantizers().values() if q.live]
    assert len(live) == 19 and {q.format.bits for q in live} == {3}
    assert {layer.quantizer.format.bits for layer in student.layers().values()} == {3}, "the first and the last layer too"


def test_ends_give_the_first_and_last_layer_eight_bits(model: Model) -> None:
    layers = convert(model, scheme_of("w3a3", ends=8)).layers()
    bits = [layer.quantizer.format.bits for layer in layers.values()]
    assert bits[0] == bits[-1] == 8 and set(bits[1:-1]) == {3}


def test_ends_change_the_bits_of_activations_and_nothing_else(model: Model) -> None:
    scheme = Scheme(Int(3, "channel"), Int(3, symmetric=True), ends=8, placement="deploy")
    net = convert(model, scheme).net
    read = [net.get_submodule(str(node.all_input_nodes[0].target)) for node in graph.of_kind(net, "conv")]
    assert [q.format for q in read if isinstance(q, Quantizer)] == [Int(8), Int(8, symmetric=True), *[Int(3, symmetric=True)] * 5]


@pytest.mark.parametrize("ends", [None, 8])
def test_what_sums_read_keeps_its_own_bits(model: Model, ends: int | None) -> None:
    student = convert(model, replace(uniform("w3a3", ends), residual=8))
    net, quantizers = student.net, student.activation_quantizers()

    def read(node: fx.Node) -> list[str]:
        """The quantizers behind what a node reads."""
        while not str(node.target).startswith("q."):
            node = node.all_input_nodes[0]
        return [str(node.target)[2:], *(read(node.all_input_nodes[0]) if "quantizes" in node.all_input_nodes[0].meta else ())]

    of_layers = [read(node.all_input_nodes[0]) for node in graph.of_kind(net, *graph.LAYERS)]
    of_sums = [read(source) for node in graph.of_kind(net, "add") for source in node.all_input_nodes]
    doubled = {tuple(names) for names in of_layers if len(names) == 2}
    assert len(doubled) == (2 if ends else 3), "what the second layer reads has 8 bits already"
    assert all((name + "_residual",) == tuple(more) for name, *more in doubled)
    assert all([quantizers[name].format.bits for name in names] == [3, 8] for names in doubled)
    assert {len(names) for names in of_sums} == {1} and {quantizers[name].format.bits for (name,) in of_sums} == {8}
    assert student.quantized_nodes() == {name: name.removesuffix("_residual") for name in quantizers}
    assert all(quantizers[name].live for names in doubled for name in names)


def test_sums_read_their_bits_through_pools_and_pieces_and_where_no_layer_reads() -> None:
    model = Model.from_module(Shortcuts(), *FACTS)
    net = (student := convert(model, replace(uniform("w3a3"), residual=8))).net

    def read(node: fx.Node) -> tuple[int, bool]:
        """The bits of the quantizer that a node reads, through what moves values, and whether it is live."""
        while not str(node.target).startswith("q."):
            node = node.all_input_nodes[0]
        q = student.activation_quantizers()[str(node.target)[2:]]
        return q.format.bits, q.live

    assert [read(node.all_input_nodes[0]) for node in graph.of_kind(net, *graph.LAYERS)] == [(8, False), (3, True), (3, True), (8, False)]
    sums = [[read(source) for source in node.all_input_nodes] for node in graph.of_kind(net, "add") if node.name != "add_2"]
    assert sums == [[(8, True), (8, True)], [(8, True), (8, False)]], "a branch that ends in no activation is in float"
    places = student.quantized_nodes()
    assert set(model.points["passed"]) <= places.keys() and all(node in places for node in ("pool", "getitem"))
    assert all(graph.named(model.net, node) for node in places.values())


def test_bits_of_what_sums_read_are_checked_and_told() -> None:
    with pytest.raises(ValueError, match="residual of 9 bits"):
        replace(uniform("w3a3"), residual=9)
    assert repr(replace(uniform("w3a3"), residual=8)).endswith("layers=(), residual=8)")


def calibrated(model: Model, bits: str) -> tuple[object, Images]:
    images = Images(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10)
    student = convert(model, scheme_of(bits))
    Calibrate(LpSearch())(student, model, images, Run())
    return student, images


def test_eight_bits_are_close_and_three_are_not(model: Model) -> None:
    errors = {}
    for bits in ("w8a8", "w3a3"):
        student, images = calibrated(model, bits)
        with torch.no_grad():
            errors[bits] = float((student.net(images.pixels) - model(images.pixels)).norm() / model(images.pixels).norm())  # type: ignore[attr-defined]
    assert errors["w8a8"] < 0.05 < errors["w3a3"]


def test_bias_correction_restores_every_mean(model: Model) -> None:
    student, images = calibrated(model, "w2a8")
    names = [n.name for n in graph.of_kind(model.net, "bn")]
    wanted = channel_means(model.net, names, images.pixels)

    def off() -> float:
        got = channel_means(student.net, names, images.pixels)  # type: ignore[attr-defined]
        return max(float((got[name] - wanted[name]).abs().max()) for name in names)

    before = off()
    CorrectBias(count=32)(student, model, images, Run())  # type: ignore[arg-type]
    assert off() < 1e-3 < before


def test_weight_ranges_lower_the_error_of_weights(model: Model) -> None:
    def error(step: object) -> float:
        student = convert(model, scheme_of("w3a8"))
        if step:
            step(student, model, Images(torch.empty(0), torch.empty(0)), Run())  # type: ignore[operator]
        return sum(float((layer.quantizer(layer.weight) - layer.weight).square().sum()) for layer in student.layers().values())

    assert error(SetWeightRanges(LpSearch(2.0))) < error(None)


def test_ends_of_activations_that_only_clip() -> None:
    class Clips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.six, self.soft = nn.ReLU6(), nn.Hardswish()

        def forward(self, x: Tensor) -> Tensor:
            x = F.hardtanh(self.six(F.relu(x)), -0.5)
            return self.soft(torch.clamp(x, max=2).clamp(0.25, 3))

    net = fx.symbolic_trace(Clips())
    ends = [graph.clip_of(net, node) for node in graph.of_kind(net, "act")]
    assert ends == [(0, math.inf), (0, 6), (-0.5, 1), (-math.inf, 2), (0.25, 3), None]
