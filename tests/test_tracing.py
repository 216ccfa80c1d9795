"""Tracing into normal form: networks of many ways of writing, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations, prune

from dreamquant import Images, Model, graph
from dreamquant.quant.scheme import scheme_of, uniform
from dreamquant.quant.student import convert
from dreamquant.trace import Watch

FACTS = ((3, 16, 16), (0.5,) * 3, (0.25,) * 3)


class Functional(nn.Module):
    """Everything by functions and in place, with weights used directly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        x = F.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)
        y = F.relu(x, inplace=True)
        x = F.conv2d(y, self.weight, None, padding=1)
        x += y
        x = F.dropout(torch.relu_(x), 0.5, self.training)
        return self.head(x.mean((2, 3)).view(x.size(0), -1))


class Branching(nn.Module):
    """A submodule that looks at values: torch.fx cannot follow it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3


def test_functions_become_modules_and_nothing_is_in_place() -> None:
    torch.manual_seed(0)
    net = Functional().eval()
    model = Model.from_module(net, *FACTS)
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(model(x), net(x))
    assert [graph.kind(model.net, n) for n in graph.of_kind(model.net, "conv", "bn", "linear")] == ["conv", "bn", "conv", "linear"]
    seen = Watch(model, frozenset({"activations", "bn"}))(Images(x, torch.zeros(3, dtype=torch.long)))
    assert all((a >= 0).all() for a in seen.at["activations"]), "no activation was changed after it was returned"


class TwoWeights(nn.Module):
    """Owns two weights and a layer whose name a function's could be; uses the first weight twice."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.weight, self.second = nn.Parameter(torch.randn(3, 3, 3, 3) / 5), nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.conv2d, self.stride = nn.Conv2d(3, 3, 1), stride

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight, padding=1))
        x = self.conv2d(F.relu(F.conv2d(x, self.weight, padding=1, stride=self.stride)))
        return F.conv2d(x, self.second)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_module_may_own_several_weights_and_use_one_twice(stride: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(TwoWeights(stride), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    model, x = Model.from_module(net, *FACTS), torch.randn(3, 3, 16, 16)
    assert torch.allclose(model(x), net(x), atol=1e-6)
    assert len(graph.of_kind(model.net, "conv")) == 4 == len(convert(model, uniform("w8a8")).layers()) - 1


def test_a_layer_of_functions_called_twice_is_one_layer() -> None:
    class Convolves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3, 3, 3) / 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.w, padding=1)

    torch.manual_seed(0)
    layer = Convolves()
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    model, x = Model.from_module(net, *FACTS), torch.randn(3, 3, 16, 16)
    assert torch.allclose(model(x), net(x), atol=1e-6)
    assert list(convert(model, uniform("w8a8")).layers()) == ["0", "5"]


class InPlace(nn.Module):
    """Changes a tensor and reads it under its old name; `change` does it."""

    def __init__(self, change: Callable[[InPlace, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.head, self.rectify = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), nn.ReLU(inplace=True)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y * 0.5
        self.change(self, y)
        return self.head((y + z).mean((2, 3)))


def operated(y: Tensor) -> None:
    y += 0.5
    y *= 2
    y -= y.mean((2, 3), keepdim=True)
    y /= 3


CHANGES: dict[str, Callable[[InPlace, Tensor], object]] = {
    "module": lambda m, y: m.rectify(y),
    "keyword": lambda m, y: F.relu(y, inplace=True),
    "function": lambda m, y: F.relu_(y),
    "leaky": lambda m, y: F.leaky_relu_(y, 0.1),
    "methods": lambda m, y: y.mul_(3).add_(1, alpha=2).sub_(0.5).div_(2).clamp_min_(-1),
    "operators": lambda m, y: operated(y),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_place_is_read_as_it_is_then(change: str) -> None:
    torch.manual_seed(0)
    net, x = InPlace(CHANGES[change]).eval(), torch.randn(3, 3, 16, 16)
    kept = x.clone()
    assert torch.allclose(Model.from_module(net, *FACTS)(x), net(x), atol=1e-6) and torch.equal(x, kept)


def test_an_image_is_not_changed_in_place() -> None:
    class Normalising(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(0.25)
            return super().forward(x)

    net, x = Normalising(lambda m, y: None).eval(), torch.randn(3, 3, 16, 16)
    kept, model = x.clone(), Model.from_module(net, *FACTS)
    assert torch.allclose(model(x), net(x.clone()), atol=1e-6) and torch.equal(x, kept)


def test_modules_may_be_called_like_functions() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_, self.size, self.relu_ = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.size(self.norm_(x))
            z = y
            y += 1
            return self.relu_((y * z).mean((2, 3)))

    net, x = Called().eval(), torch.randn(3, 3, 16, 16)
    assert torch.allclose(Model.from_module(net, *FACTS)(x), net(x), atol=1e-6)


def test_numbers_do_not_change_in_place() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            channels = x.shape[1]
            more = channels
            more += 5
            y = 0.5 * self.conv(x)
            torch.relu_(y)
            return self.head(y.reshape(-1, more, 14 * 14).mean(2) * channels)

    net, x = Counting().eval(), torch.randn(3, 3, 16, 16)
    assert torch.allclose(Model.from_module(net, *FACTS)(x), net(x), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m, y: y.view(-1).relu_(), "InPlace computes something else when it is traced"),
        (lambda m, y: y.normal_(), "InPlace gives other logits each time"),
    ],
)
def test_a_trace_that_computes_something_else_is_refused(change: Callable[[InPlace, Tensor], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Model.from_module(InPlace(change).eval(), *FACTS)


def test_logits_that_are_not_finite_are_no_other_computation() -> None:
    class Masked(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(F.relu(super().forward(x)))

    net, x = Masked(lambda m, y: None).eval(), torch.randn(3, 3, 16, 16)
    assert torch.equal(Model.from_module(net, *FACTS)(x), net(x))


@pytest.mark.parametrize("read", [lambda x: x.size(0), lambda x: x.shape[0], lambda x: x.size()[0]])
def test_a_batch_size_read_from_the_input_binds_no_piece_to_it(read: Callable[[Tensor], int]) -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            count = read(x)
            x = self.second(F.relu(self.first(x))).mean((2, 3), keepdim=True)
            return self.head(x.view(count, -1))

    net = Sized().eval()
    model = Model.from_module(net, *FACTS)
    x = torch.randn(5, 3, 16, 16)
    assert torch.equal(model(x), net(x))
    assert [end for _, end in graph.units(model.net)] == ["relu", "second", "head"]


def stages() -> nn.Sequential:
    """Three pieces: two convolutions with what follows, and the mean with the classifier."""
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


class Optional(nn.Module):
    """Has arguments beside the image, which nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.net = stages()


class Unused(Optional):
    def forward(self, x: Tensor, unused: Tensor | None = None, *more: Tensor, **options: bool) -> Tensor:
        return self.net(x)


class Scaled(Optional):
    def forward(self, x: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        return self.net(x) * scale + shift


class Asked(Optional):
    def forward(self, x: Tensor, features: bool = False, mask: Tensor | None = None) -> Tensor:
        x = x if mask is None else x * mask
        return self.net[:4](x) if features else self.net(x)


@pytest.mark.parametrize("form", [Unused, Scaled, Asked])
def test_an_argument_with_a_default_binds_no_piece_to_it(form: type[Optional]) -> None:
    net, x = form().eval(), torch.randn(5, 3, 16, 16)
    model, plain = Model.from_module(net, *FACTS), Model.from_module(stages(), *FACTS)
    assert torch.equal(model(x), net(x))
    assert len(graph.units(model.net)) == len(graph.units(plain.net)) == 3
    assert len(model.points["map"]) == 1


def test_a_module_that_cannot_be_traced_stays_whole_and_is_listed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Branching(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    model = Model.from_module(net, *FACTS)
    assert list(model.left_in_float) == ["1"] and "TraceError" in model.left_in_float["1"]
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), net(x))


def test_a_network_that_cannot_be_traced_says_why() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Root cannot be traced by torch\.fx"):
        Model.from_module(Root(), *FACTS)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"not \(2, classes\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 3)), r"does not take inputs of shape \(3, 16, 16\)"),
    ],
)
def test_networks_that_do_not_classify(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Model.from_module(net, *FACTS)


def test_the_name_of_quantizers_is_refused_for_a_weight() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean((2, 3)) * self.q)

    with pytest.raises(ValueError, match="quantizers are kept under the name q"):
        Model.from_module(Pooled(), *FACTS)


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", 'x", "y'])
def test_names_that_cannot_stand_in_code_are_refused(name: str) -> None:
    net, weight = nn.Sequential(), nn.Linear(4, 4)
    net.add_module(name, nn.Flatten())
    weight.register_parameter(name, nn.Parameter(torch.ones(1)))
    for odd in (net, weight):
        with pytest.raises(ValueError, match="torch.fx cannot write the name"):
            Model.from_module(odd, *FACTS)


def test_nan_weights_are_named(tiny_net: nn.Module) -> None:
    next(tiny_net.parameters()).data[0] = float("nan")
    with pytest.raises(ValueError, match="conv.*NaN"):
        Model.from_module(tiny_net, *FACTS)


def test_whatever_changes_the_logits_changes_the_digest() -> None:
    def digest(act: nn.Module | None = None, pool: nn.Module | None = None, slope: float = 0.1, eps: float = 1e-5, **settings: Any) -> str:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                conv = nn.Conv2d(3, 4, 3, **{"padding": 1, **settings})
                self.body = nn.Sequential(conv, nn.BatchNorm2d(4, eps), act or nn.ReLU(), pool or nn.AvgPool2d(2, padding=1))
                self.head = nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(F.leaky_relu(self.body(x), slope).mean((2, 3)))

        torch.manual_seed(0)
        return Model.from_module(Net(), *FACTS).digest()

    uneven, pool = nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.AdaptiveAvgPool2d(4)
    assert digest() == digest()
    found = [digest(), digest(nn.SiLU()), digest(nn.LeakyReLU(0.1)), digest(nn.LeakyReLU(0.2)), digest(pool=uneven), digest(pool=pool)]
    found += [digest(slope=0.2), digest(stride=2), digest(padding=2), digest(padding_mode="reflect"), digest(eps=1e-2)]
    assert len(set(found)) == len(found)


def test_attention_is_unfolded_exactly() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 4, 4)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x, _ = self.attention(x, x, x, need_weights=False)
            return self.head(x.mean(1))

    net = Tokens().eval()
    model = Model.from_module(net, *FACTS)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(model(x), net(x), atol=1e-5)
    assert len(convert(model, scheme_of("w8a8")).layers()) == 4


class Attending(nn.Module):
    """Attention of one kind over patches."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.head, self.kind = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 5), kind
        self.query, self.mask = nn.Parameter(torch.randn(1, 1, 12)), nn.Buffer(torch.eye(16))
        if kind == "layer":
            self.attention: nn.Module = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        else:
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        match self.kind:
            case "layer":
                x = self.attention(x)
            case "pool":
                x = self.attention(self.query.expand(x.shape[0], -1, -1), x, x)[0]
            case "masked":
                x = self.attention(x, x, x, attn_mask=self.mask)[0]
            case "norms":
                x = self.attention(self.norm(x), self.norm(x), self.norm(x))[0]
        return self.head(x.mean(1))


@pytest.mark.parametrize(("kind", "layers"), [("layer", 2), ("pool", 2), ("masked", 2), ("norms", 4)])
def test_attention_that_cannot_be_unfolded_stays_whole(kind: str, layers: int) -> None:
    net, x = Attending(kind).eval(), torch.randn(2, 3, 16, 16)
    model = Model.from_module(net, *FACTS)
    assert torch.allclose(model(x), net(x), atol=1e-5)
    assert len(convert(model, uniform("w8a8")).layers()) == layers


MADE: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: [prune.l1_unstructured(layer, name, 0.3) for name in ("weight", "weight", "bias")],
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_weights_made_of_others_become_parameters(kind: str) -> None:
    net, x = stages(), torch.randn(2, 3, 16, 16)
    MADE[kind](net[2])
    net(x)  # hooks leave a weight with a gradient behind, which deepcopy refuses
    model = Model.from_module(net.eval(), *FACTS)
    assert torch.allclose(model(x), net(x), atol=1e-6)
    layer = model.net.get_submodule("2")
    assert type(layer) is nn.Conv2d and layer.bias is not None and len(list(layer.parameters())) == 2
    layer.weight.data.zero_()
    assert (layer(torch.ones(1, 6, 3, 3)) == layer.bias.view(1, -1, 1, 1)).all(), "nothing makes the weight again"
    assert torch.allclose(Model.from_module(net, *FACTS)(x), net(x), atol=1e-6), "the given network is never changed"


def test_a_weight_that_two_layers_share_is_each_ones_own() -> None:
    net, x = stages(), torch.randn(2, 3, 16, 16)
    net.insert(3, nn.Conv2d(6, 6, 3))
    net[3].weight = net[2].weight
    model = Model.from_module(net.eval(), *FACTS)
    assert torch.equal(model(x), net(x))
    first, second = (model.net.get_parameter(f"{name}.weight") for name in ("2", "3"))
    assert first is not second and first.data_ptr() != second.data_ptr()
    assert net[3].weight is net[2].weight
