"""Maps of where a network looks: closed forms, and networks of every usual kind of ending."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant import Images, Model, graph
from dreamquant.losses.saliency import Cam, GradCam, GradCamPlusPlus, Saliency, saliency
from dreamquant.losses.student import SaliencyMatch
from dreamquant.trace import Watch
from oracles import FACTS, pair_of, twelve_images

MAPS: list[Saliency] = [GradCam(), GradCamPlusPlus(), Cam()]
MORE: list[Saliency] = [GradCam(True), GradCam(place="map"), GradCamPlusPlus(True, "saliency"), Cam(True)]


class Squeeze(nn.Module):
    """Squeeze and excitation: convolutions on one place, which are not where a network looks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual (MobileNetV2), with squeeze and excitation where asked for (MobileNetV3, EfficientNet)."""

    def __init__(self, inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module], squeeze: bool) -> None:
        super().__init__()
        wide = 3 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), act(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), act(),
            Squeeze(wide) if squeeze else nn.Identity(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


def mobile(act: Callable[[], nn.Module], squeeze: bool, head: str) -> Model:
    """A small depthwise network with seeded statistics; 3x16x16 in, five classes out."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act()]
    blocks = [Inverted(8, 8, 1, act, squeeze), Inverted(8, 12, 2, act, squeeze), Inverted(12, 12, 1, act, squeeze)]
    last = [nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20), act(), nn.AdaptiveAvgPool2d(1)]
    heads: dict[str, list[nn.Module]] = {
        "linear": [nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 5)],
        "convolution": [nn.Conv2d(20, 5, 1), nn.Flatten()],  # MobileNetV2 of pytorchcv
        "deep": [nn.Flatten(), nn.Linear(20, 16), nn.Hardswish(), nn.Linear(16, 5)],  # MobileNetV3
    }
    net = nn.Sequential(*stem, *blocks, *last, *heads[head])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that follows
    for _ in range(5):
        net(torch.randn(64, 3, 16, 16) + 0.2)
    return Model.from_module(net.eval(), *FACTS)


@pytest.fixture
def resnet(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


@pytest.fixture(
    scope="module",
    params=[(nn.ReLU6, False, "linear"), (nn.ReLU6, False, "convolution"), (nn.Hardswish, True, "deep"), (nn.SiLU, True, "linear")],
    ids=["mobilenet_v2", "mobilenet_v2 with a convolution for a classifier", "mobilenet_v3", "efficientnet"],
)
def depthwise(request: pytest.FixtureRequest) -> Model:
    return mobile(*request.param)


@pytest.mark.parametrize("by", MAPS, ids=repr)
def test_depthwise_networks_look_somewhere(by: Saliency, depthwise: Model) -> None:
    conv = graph.last_convolution(depthwise.net)
    assert conv is not None and conv.meta["shape"][1:] == (20, 4, 4), "the last one with places, not squeeze, not classifier"
    images = twelve_images(5)
    maps = saliency(Watch(depthwise, frozenset({by.place}))(images), by)
    assert maps.shape == (12, 4, 4) and maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1
    assert (maps.amax((1, 2)) > 0.99).float().mean() > 0.5, "not empty: SynQ's code looks at the classifier there and sees nothing"
    seen = pair_of(depthwise, images, frozenset({by.place}))
    value = SaliencyMatch(by)(seen)
    last = seen.student.watch.source.get_submodule(str(conv.target)).get_parameter("weight")
    assert value > 0 and torch.autograd.grad(value, last)[0].abs().sum() > 0


@pytest.mark.parametrize("by", [*MAPS, *MORE], ids=repr)
def test_equal_networks_look_at_the_same(by: Saliency, resnet: Model) -> None:
    images, needs = twelve_images(), frozenset({by.place})
    seen = pair_of(resnet, images, needs)
    object.__setattr__(seen, "student", Watch(resnet, needs)(images))
    assert SaliencyMatch(by)(seen).item() == 0


def normalised(raw: Tensor) -> Tensor:
    low, high = raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True)
    return (raw - low) / (high - low + 1e-10)


@pytest.mark.parametrize("of_label", [False, True])
def test_cam_is_the_classifiers_weights_on_the_last_map(of_label: bool, resnet: Model) -> None:
    seen = Watch(resnet, frozenset({"map"}))(twelve_images())
    (last,) = seen.at["map"]
    classes = seen.images.labels if of_label else seen.logits.argmax(1)
    weight = resnet.net.get_submodule("linear").get_parameter("weight")[classes]  # (B, C)
    want = normalised(torch.einsum("bc,bchw->bhw", weight, last))
    assert torch.allclose(saliency(seen, Cam(of_label)), want, atol=1e-5)


def test_grad_cam_on_the_last_map_is_cam_without_what_speaks_against(resnet: Model) -> None:
    seen = Watch(resnet, frozenset({"map"}))(twelve_images())
    (last,) = seen.at["map"]
    weight = resnet.net.get_submodule("linear").get_parameter("weight")[seen.logits.argmax(1)].clamp_min(0)
    want = normalised(torch.einsum("bc,bchw->bhw", weight, last))
    assert torch.allclose(saliency(seen, GradCam(place="map")), want, atol=1e-4)


def test_grad_cam_of_the_label_follows_the_label(resnet: Model) -> None:
    images = twelve_images()
    watch = Watch(resnet, frozenset({"saliency"}))
    winners = Images(images.pixels, watch(images).logits.argmax(1))
    others = Images(images.pixels, (winners.labels + 1) % 10)
    own = saliency(watch(winners))
    assert torch.allclose(saliency(watch(winners), GradCam(True)), own, atol=1e-6)
    assert not torch.allclose(saliency(watch(others), GradCam(True)), own, atol=1e-2)


def test_grad_cam_plus_plus_is_the_published_formula() -> None:
    """Equations 10 and 19 with the derivatives of exp(score) taken by autograd, on a score that is linear in the map."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 3, 2, 2, generator=generator, dtype=torch.double).requires_grad_()
    slope = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.double)
    y = torch.exp((slope * a).sum())
    first = torch.autograd.grad(y, a, create_graph=True)[0]
    weights = torch.zeros(3, dtype=torch.double)
    for k in range(3):
        for i in range(2):
            for j in range(2):
                second = torch.autograd.grad(first[0, k, i, j], a, create_graph=True)[0]
                third = torch.autograd.grad(second[0, k, i, j], a, retain_graph=True)[0][0, k, i, j]
                share = second[0, k, i, j] / (2 * second[0, k, i, j] + a[0, k].sum() * third)
                weights[k] += (share * first[0, k, i, j].clamp_min(0)).detach()
    want = F.relu((weights.view(1, 3, 1, 1) * a).sum(1)).detach()
    got = GradCamPlusPlus()(a.detach(), slope)
    assert torch.allclose(normalised(got), normalised(want), atol=1e-9)


def test_a_network_without_places_says_so() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = Model.from_module(net, *FACTS)
    for by in (GradCam(), Cam()):
        with pytest.raises(ValueError, match=f"no place for '{by.place}'"):
            Watch(model, SaliencyMatch(by).wants())


def test_every_watched_place_has_its_own_tail(resnet: Model) -> None:
    seen = Watch(resnet, frozenset({"saliency", "map"}))(twelve_images())
    for place in ("saliency", "map"):
        assert torch.allclose(seen.watch.tail_from(place)(*seen.at[place]), seen.logits, atol=1e-5)
    assert seen.watch.tail is seen.watch.tail_from("saliency")
