from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.export.check import check, session_of
from dreamquant.export.onnx import export, export_float
from dreamquant.quant.freeze import freeze
from dreamquant.quant.program import levels, weight
from dreamquant.quant.ranges import LpSearch
from dreamquant.quant.scheme import scheme_of, uniform
from dreamquant.quant.student import convert
from dreamquant.zoo.networks import DepthwiseNet
from test_quantized import Odd, Secretive, Shortcuts, cifar, images, small, student_of


class Shuffle(nn.Module):
    """A ShuffleNet unit: chunk, concatenation, channel shuffle by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.head(x.mean([2, 3]))


class Tokens(nn.Module):
    """A transformer block: class token, positions, attention, LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(x))[:, 0])


class Pools(nn.Module):
    """Activations, pools and paddings of edge networks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 2, padding="same"), nn.Conv2d(8, 8, 3, 2)
        self.head = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.leaky_relu(self.a(x), 0.1), 3, 2, 1, count_include_pad=False)
        x = F.silu(self.b(F.pad(x, (0, 1, 0, 1))))
        x = torch.sigmoid(self.c(x)) * 2 + F.hardtanh(self.c(x), -0.5, 0.5)
        return self.head(F.adaptive_avg_pool2d(x, 3).flatten(1))


class Swish(nn.Module):
    """A MobileNetV3 block: activations that do more than clip, squeeze-and-excitation, a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Hardsigmoid())
        self.out = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.stem(x)))
        y = self.deep(x)
        return self.head((x + self.out(y * self.gate(y))).mean([2, 3]))


NETS = {
    "resnet": small,
    "depthwise": lambda: DepthwiseNet((8, 16, 16), 3, 4),
    "shuffle": Shuffle,
    "tokens": Tokens,
    "pools": Pools,
    "swish": Swish,
}


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a3", "w2a2", "w4a32"])
def test_every_width_runs_in_onnx_runtime_as_simulated(bits: str, tmp_path: Path) -> None:
    quantized = freeze(student_of(small(), scheme_of(bits)), {})
    report = export(quantized, tmp_path / "net.onnx", images=images(32))
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
    found = report.check
    assert found is not None and found.classes >= 3  # with one class, agreement would say nothing
    assert found.agreement >= 31 / 32 and found.relative < 0.05
    if bits == "w4a32":
        assert found.coverage == 0
    else:
        assert found.integer == {"conv": 7, "linear": 1, "add": 3, "norm": 0} and found.coverage == 1
    assert report.as_dict()["check"]["images"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(("net", "count"), [(small, {"conv": 7, "linear": 1, "add": 3}), (Shortcuts, {"conv": 3, "linear": 1, "add": 3})])
def test_what_sums_read_at_its_own_bits_runs_on_integers(net: Callable[[], nn.Module], count: dict[str, int], tmp_path: Path) -> None:
    quantized = freeze(student_of(net(), replace(uniform("w3a3"), residual=8)), {})
    assert not torch.equal(quantized(images(32)), freeze(student_of(net(), uniform("w3a3")), {})(images(32)))
    found = export(quantized, tmp_path / "net.onnx", images=images(32)).check
    assert found is not None and found.classes >= 3
    assert found.agreement >= 31 / 32 and found.relative < 0.05
    assert found.integer == {**count, "norm": 0} and found.coverage == 1


@pytest.mark.parametrize("bits", ["w8a8", "w6a8"])
@pytest.mark.parametrize("net", NETS)
def test_families_export(net: str, bits: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = freeze(student_of(NETS[net](), scheme_of(bits)), {})
    found = export(quantized, tmp_path / "net.onnx", images=images(32)).check
    assert found is not None and found.classes >= 3  # with one class, agreement would say nothing
    # of Pools three images in four are equal to the bit (tested below), in others a mean on the edge falls to the next code
    assert found.agreement >= 31 / 32 and found.relative < (0.05 if net == "pools" else 0.02)
    least = {"resnet": 1, "depthwise": 1, "shuffle": 1, "tokens": 0.8, "pools": 0.75, "swish": 1}[net]
    assert found.coverage >= least


def test_what_differs_is_a_code_on_the_edge(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = freeze(student_of(Pools(), scheme_of("w8a8")), {})
    export(quantized, tmp_path / "net.onnx")
    x = images(32)
    (theirs,) = session_of(tmp_path / "net.onnx").run(["logits"], {"input": x.numpy()})
    assert sum(np.array_equal(a, b) for a, b in zip(theirs, quantized.deployed()(x).numpy(), strict=True)) >= 24


def test_what_hardswish_reads_has_a_grid_at_deployment_alone() -> None:
    student = student_of(Swish(), scheme_of("w4a4"))
    spare = {name: q for name, q in student.activation_quantizers().items() if name in ("bn", "deep_1")}
    assert len(spare) == 2 and not any(q.live for q in spare.values()) and {q.format.bits for q in spare.values()} == {8}
    grids = [op for op in freeze(student, {}).deployed().program if op.kind == "grid"]
    assert len([op for op in grids if op.inputs[0] in ("stem", "deep_0")]) == 2 and all(op.numbers["live"] for op in grids)
    assert "bn1" not in student_of(small(), scheme_of("w4a4")).activation_quantizers()  # ReLU is the limit of its own grid


def test_grouped_convolutions_of_8_bits_are_deployed_without_zero_points(tmp_path: Path) -> None:
    deep = nn.Conv2d(8, 8, 3, groups=8)
    deep.weight.data[:4] = deep.weight.data[:4].abs() + 0.1  # levels from 0 to 255
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), deep, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    quantized = freeze(student_of(net, scheme_of("w8a8")), {})
    (before,), (after,) = ([op for op in q.program if op.numbers.get("groups") == 8] for q in (quantized, quantized.deployed()))
    assert before.tensors["zero"].any() and not after.tensors["zero"].any()
    assert levels(after).abs().max() == 127
    off = (weight(after) - weight(before)).flatten(1).abs().amax(1)
    assert (off <= after.tensors["scale"] * 0.5001).all() and (after.tensors["scale"] <= before.tensors["scale"] * 2.01).all()
    assert export(quantized, tmp_path / "net.onnx", images=images(32)).check.agreement == 1  # type: ignore[union-attr]
    four = freeze(student_of(net, scheme_of("w4a8")), {})
    assert [op.tensors["zero"].any() for op in four.deployed().program if op.numbers.get("groups") == 8] == [True]


def test_weights_take_half_a_byte_in_the_file(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)
    )
    bytes_of = {}
    for bits in ("w8a8", "w4a8", "w2a8"):
        quantized = freeze(student_of(net, scheme_of(bits)), {})
        bytes_of[bits] = export(quantized, tmp_path / bits, check=False).bytes - quantized.weight_bytes
    assert max(bytes_of.values()) - min(bytes_of.values()) < 1500  # all that differs is the codes
    assert max(bytes_of.values()) < 10_000
    older = export(quantized, tmp_path / "older", check=False, two_bits="int4")
    assert older.opset == 21 and older.types == {"int4": 3} and older.bytes - quantized.weight_bytes * 2 < 10_000
    with pytest.raises(ValueError, match="two_bits='int1'"):
        export(quantized, tmp_path / "none", two_bits="int1")


def test_the_batch_is_free(tmp_path: Path) -> None:
    quantized = freeze(student_of(Shuffle(), scheme_of("w8a8")), {})
    export(quantized, tmp_path / "net.onnx", check=False)
    session = session_of(tmp_path / "net.onnx")
    assert [v.name for v in (*session.get_inputs(), *session.get_outputs())] == ["input", "logits"]
    whole = session.run(None, {"input": images(5).numpy()})[0]
    single = np.concatenate([session.run(None, {"input": images(5)[i : i + 1].numpy()})[0] for i in range(5)])
    assert whole.shape == (5, 4) and np.allclose(whole, single, atol=1e-5)


def test_what_has_no_form_is_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Secretive(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"_1 \(opaque\) has no ONNX form"):
        export(freeze(student_of(net, scheme_of("w8a8")), {}), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="conv_transpose2d has no ONNX form"):
        export(freeze(student_of(Odd(), scheme_of("w8a8")), {}), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "out" / "deep" / "net.onnx"
    export(freeze(student_of(small(), scheme_of("w8a8")), {}), path, check=False)
    (plain := tmp_path / "plain").touch()
    assert list(path.parent.iterdir()) == [path] and path.stat().st_mode == plain.stat().st_mode


def test_a_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"does not load .*net\.onnx"):
        check(freeze(student_of(small(), scheme_of("w8a8")), {}), tmp_path / "net.onnx")


@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_a_real_network_agrees(bits: str, tmp_path: Path) -> None:
    model, x, _ = cifar()
    student = convert(model, scheme_of(bits))
    with student.observing(LpSearch()), torch.no_grad():
        student.net(x[:64])
    found = export(freeze(student, {}), tmp_path / "net.onnx", images=x).check
    assert found is not None and found.agreement >= 0.995
    assert found.integer == {"conv": 19, "linear": 1, "add": 9, "norm": 0}
    assert found.float_bytes is not None and found.bytes < found.float_bytes / 3


class Named(nn.Module):
    """Modules called like the file's own input and output, and like what a writer may call its constants."""

    def __init__(self) -> None:
        super().__init__()
        names = ("input", "i1", "u0", "c0", "index0", "f0", "Identity_3", "end")
        for name in names:
            self.add_module(name, nn.Conv2d(3, 3, 3, padding=1))
        self.names, self.logits = names, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = F.relu(self.get_submodule(name)(x)) + 0.5
        return self.logits(x.mean(3).mean(2))


def test_a_network_may_call_its_modules_as_it_likes(tmp_path: Path) -> None:
    quantized = freeze(student_of(Named(), scheme_of("w4a4")), {})
    found = export(quantized, tmp_path / "net.onnx", images=images(16)).check
    assert found is not None and found.relative < 0.05


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize(
    "pool",
    [
        *(
            nn.AvgPool2d(k, s, p, ceil_mode=True, count_include_pad=c)
            for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 3, 1))
            for c in (True, False)
        ),
        *(nn.MaxPool2d(k, s, p, d, ceil_mode=True) for k, s, p, d in ((2, 2, 0, 1), (3, 2, 1, 1), (2, 3, 1, 1), (3, 2, 1, 2))),
    ],
    ids=str,
)
def test_windows_that_reach_beyond_the_border(pool: nn.Module, size: int, tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(beta=5.0), pool, nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.LazyLinear(4)
    )
    net(torch.zeros(1, 3, size, size))
    quantized = freeze(student_of(net, scheme_of("w8a8"), (3, size, size)), {})
    found = export(quantized, tmp_path / "net.onnx", images=images(16, (3, size, size))).check
    assert found is not None and found.relative < 0.01


def test_the_file_in_floats_computes_what_the_network_does_without_grids(tmp_path: Path) -> None:
    export_float(freeze(student_of(small(), scheme_of("w8a8")), {}), tmp_path / "float.onnx")
    (found,) = session_of(tmp_path / "float.onnx").run(["logits"], {"input": images(8).numpy()})
    expected = freeze(student_of(small(), scheme_of("w8a32")), {})(images(8))
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_check_wants_images_of_finite_values(tmp_path: Path) -> None:
    quantized = freeze(student_of(small(), scheme_of("w8a8")), {})
    for wrong in (images(2) * float("nan"), images(2)[:0]):
        with pytest.raises(ValueError, match="images to check the file on"):
            export(quantized, tmp_path / "net.onnx", images=wrong)
