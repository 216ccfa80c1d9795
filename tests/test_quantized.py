from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamquant.model import Model
from dreamquant.quant.deploy import in_float
from dreamquant.quant.freeze import freeze
from dreamquant.quant.program import Op, run
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.quant.ranges import LpSearch, MinMax
from dreamquant.quant.scheme import Int, Scheme, scheme_of, uniform
from dreamquant.quant.student import Student, convert
from dreamquant.report.layers import bits_of_sums
from dreamquant.zoo.networks import CifarResNet, DepthwiseNet

DATA = Path(os.environ.get("DREAMQUANT_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Odd(nn.Module):
    """One of each: a gate, a concatenation, a constant, LayerNorm, a slice, circular padding, a float layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, padding_mode="circular")
        self.bn = nn.BatchNorm2d(8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.norm = nn.LayerNorm(12)
        self.offset = nn.Parameter(torch.linspace(-1, 1, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.stem(x)))
        x = x * self.gate(x)
        x = torch.cat([x, F.max_pool2d(self.up(x), 2)], 1)[:, :, ::2, ::2]
        x = x.flatten(2).transpose(1, 2)
        return self.head((self.norm(x) + self.offset).mean(1))


class Shortcuts(nn.Module):
    """Sums that read what layers read through a pool and in pieces, and what no layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()), nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        left, right = F.relu(x + self.body(x)).chunk(2, 1)
        return self.head(F.relu(left + self.tail(left) + right).mean([2, 3]))


class Secretive(nn.Module):
    """Cannot be traced, so it stays whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def prepared(net: nn.Module, shape: tuple[int, int, int] = (3, 16, 16)) -> Model:
    """A model whose logits depend on the image: BatchNorm knows what it sees, with negative and zero factors among its own."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.weight.data = torch.rand(count, generator=generator) + 0.5
            module.weight.data[1::4] *= -1
            module.weight.data[0] = 0
            module.bias.data = torch.randn(count, generator=generator) * 0.3
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.randn(32, *shape, generator=generator))
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.data = torch.randn(last.weight.shape, generator=generator)
        out = net.eval()(images(64, shape))
        assert last.bias is not None
        last.bias -= out.mean(0)  # no class wins by its bias alone
    return Model.from_module(net, shape, (0.5,) * 3, (0.25,) * 3, "net")


def images(count: int = 8, shape: tuple[int, int, int] = (3, 16, 16)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))


def student_of(net: nn.Module, scheme: Scheme, shape: tuple[int, int, int] = (3, 16, 16)) -> Student:
    torch.manual_seed(0)
    student = convert(prepared(net, shape), scheme)
    with student.observing(MinMax()), torch.no_grad():
        student.net(images(shape=shape))
    return student


def small() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(1, (8, 16, 16), 3, 10)


NETS = {"resnet": small, "depthwise": lambda: DepthwiseNet((8, 16, 16), 3, 4), "odd": Odd}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w2a3", "w4a32"])
def test_frozen_computes_what_the_student_computes(net: str, bits: str, tmp_path: Path) -> None:
    student = student_of(NETS[net](), scheme_of(bits))
    quantized = freeze(student, {"seed": 3})
    with torch.no_grad():
        expected = student.net(images())
    assert torch.equal(quantized(images()), expected)
    quantized.save(tmp_path / "model.safetensors")
    loaded = QuantizedModel.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded(images()), expected)
    assert torch.equal(loaded.deployed()(images()), quantized.deployed()(images()))
    assert loaded.provenance == {"seed": 3} and loaded.facts == quantized.facts
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("placement", ["paper", "deploy"])
@pytest.mark.parametrize("net", [small, Shortcuts])
def test_what_sums_read_is_computed_and_saved_as_trained(
    net: Callable[[], nn.Module], placement: Literal["paper", "deploy"], tmp_path: Path
) -> None:
    student = student_of(net(), replace(uniform("w3a3"), residual=8, placement=placement))
    quantized = freeze(student, {})
    with torch.no_grad():
        assert torch.equal(quantized(images()), student.net(images()))
    quantized.save(tmp_path / "model.safetensors")
    loaded = QuantizedModel.load(tmp_path / "model.safetensors")
    for one, other in ((loaded, quantized), (loaded.deployed(), quantized.deployed())):
        assert torch.equal(one(images()), other(images()))
        assert bits_of_sums(one) == [8]
        assert [layer.input_bits for layer in one.layers()][1:-1] == [3] * (len(one.layers()) - 2)


def test_weights_take_their_true_width_in_the_file(tmp_path: Path) -> None:
    sizes = {}
    for bits in ("w8a8", "w4a8", "w3a8"):
        quantized = freeze(student_of(small(), scheme_of(bits)), {})
        quantized.save(tmp_path / bits)
        with safe_open(str(tmp_path / bits), "pt") as file:
            sizes[bits] = sum(file.get_tensor(key).numel() for key in file.keys() if key.endswith(".codes"))  # noqa: SIM118
        assert sizes[bits] == quantized.weight_bytes
    count = sizes["w8a8"]
    assert sizes["w4a8"] == count // 2 and sizes["w3a8"] == 3 * count // 8
    assert (tmp_path / "w8a8").stat().st_size - (tmp_path / "w4a8").stat().st_size >= 0.45 * count


def test_layers_are_listed_with_bits_and_work() -> None:
    student = student_of(small(), scheme_of("w4a4", ends=8))
    layers = freeze(student, {}).deployed().layers()
    assert [layer.layer for layer in layers] == list(student.layers())
    assert layers[0].bits == layers[-1].bits == 8 and {layer.bits for layer in layers[1:-1]} == {4}
    assert layers[0].macs == 16 * 16 * 8 * 27 and layers[0].input_bits == 8 and layers[2].input_bits == 4
    assert layers[1].weight_bytes == 8 * 8 * 9 // 2


def test_a_range_never_measured_is_named() -> None:
    student = convert(prepared(small()), scheme_of("w4a4"))
    with pytest.raises(ValueError, match="no range was ever measured; add a Calibrate step"):
        freeze(student, {})
    freeze(convert(prepared(small()), scheme_of("w4a32")), {})  # nothing reads a grid of activations


def test_a_step_that_is_not_positive_is_named() -> None:
    student = student_of(small(), scheme_of("w4a4"))
    layer = student.layers()["conv1"]
    layer.quantizer.fix(*layer.quantizer.grid(layer.weight))
    with torch.no_grad():
        layer.quantizer.scale[2] = -0.01
    with pytest.raises(FloatingPointError, match=r"conv1: a step of its grid is -0\.01; lower the rate"):
        freeze(student, {})


def test_weights_that_are_not_finite_are_named() -> None:
    student = student_of(small(), scheme_of("w4a4", None))
    with torch.no_grad():
        next(iter(student.layers().values())).weight[0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="conv1: its weights are not finite, .* lower the learning rate"):
        freeze(student, {})


def test_layers_left_in_float_are_listed() -> None:
    assert "up" in freeze(student_of(Odd(), scheme_of("w4a4")), {}).left_in_float


def test_an_opaque_part_runs_and_is_not_saved(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Secretive(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    student = student_of(net, scheme_of("w8a8"))
    quantized = freeze(student, {})
    with torch.no_grad():
        assert torch.equal(quantized(images()), student.net(images()))
    assert "1" in quantized.left_in_float
    with pytest.raises(ValueError, match="_1 have no form in a file"):
        quantized.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def saved(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    freeze(student_of(small(), scheme_of("w4a4")), {}).save(path)
    with safe_open(str(path), "pt") as file:
        return load_file(path), json.loads(file.metadata()["dreamquant"])


@pytest.mark.parametrize(
    "change", ["function", "kind", "missing tensor", "bits", "input", "format", "stride", "groups", "shape", "length", "step", "grid"]
)
def test_a_damaged_program_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "model.safetensors"
    tensors, about = saved(path)
    program: list[dict] = about["program"]  # type: ignore[assignment]
    conv = next(line for line in program if line["kind"] == "conv")
    call = next(line for line in program if line["kind"] == "call")
    match change:
        case "function":
            call["numbers"]["function"] = "__import__"
        case "kind":
            conv["kind"] = "opaque"
        case "missing tensor":
            del tensors[conv["name"] + ".scale"]
        case "bits":
            conv["numbers"]["bits"] = 3
        case "input":
            conv["inputs"] = ["nobody"]
        case "format":
            about["format"] = 99
        case "stride":
            conv["numbers"]["stride"] = "x"
        case "groups":
            conv["numbers"]["groups"] = 7
        case "shape":
            conv["shape"] = [-conv["shape"][0], -1, *conv["shape"][2:]]
        case "length":
            tensors[conv["name"] + ".scale"] = tensors[conv["name"] + ".scale"][:-1].clone()
        case "step":
            tensors[conv["name"] + ".scale"][0] = -1
        case "grid":
            next(line for line in program if line["kind"] == "grid")["numbers"]["scale"] = 0.0
    save_file(tensors, path, {"dreamquant": json.dumps(about)})
    with pytest.raises(ValueError, match="is damaged or was written by another version"):
        QuantizedModel.load(path)


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"garbage", b"", whole[:20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            QuantizedModel.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no model that dreamquant saved"):
        QuantizedModel.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        QuantizedModel.load(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be read: is a directory"):
        QuantizedModel.load(tmp_path)


def test_a_file_that_may_not_be_read_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    saved(path := tmp_path / "model.safetensors")
    monkeypatch.setattr(Path, "open", refused)  # to root, who runs the tests in containers, nothing is denied
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: permission denied"):
        QuantizedModel.load(path)


def test_files_are_as_readable_as_others_and_their_folder_is_made(tmp_path: Path) -> None:
    saved(path := tmp_path / "out" / "deep" / "model.safetensors")
    saved(path)
    (plain := tmp_path / "plain").touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert list(path.parent.iterdir()) == [path]


def test_folding_batch_norm_changes_no_weight() -> None:
    """Every layer of the deployed program has exactly the weight times BatchNorm's factor, negative and zero factors included."""
    quantized = freeze(student_of(small(), scheme_of("w4a4")), {})
    by, deployed = {op.name: op for op in quantized.program}, {op.name: op for op in quantized.deployed().program}
    folded = [op for op in quantized.program if op.kind == "bn"]
    negative = 0
    assert len(folded) == 7 and not any(op.kind == "bn" for op in deployed.values())
    for bn in folded:
        before, after = by[bn.inputs[0]], deployed[bn.inputs[0]]
        factor = bn.tensors["weight"] / (bn.tensors["var"] + bn.numbers["eps"]).sqrt()
        negative += int((factor < 0).sum())
        assert (factor == 0).any()
        x = images(2, (before.tensors["codes"].shape[1], 9, 9)).abs()
        step = after.numbers["input_scale"]
        x = (x / step).round() * step
        expected = run(bn, [run(before, [x])])
        spread = expected.abs().max()
        assert (run(after, [x]) - expected).abs().max() < 1e-3 * spread + 2 * step * float(after.tensors["scale"].max())
    assert negative > 5


def test_a_clamp_before_a_grid_becomes_its_limits() -> None:
    quantized = freeze(student_of(DepthwiseNet((8, 16, 16), 3, 4), scheme_of("w8a4")), {})
    before, after = quantized.trace(images()), quantized.deployed().trace(images())
    assert not any(op.function() == "relu6" for op in quantized.deployed().program)
    grids = [op for op in quantized.deployed().program if op.kind == "grid" and op.name in before]
    assert all(float(after[op.name].min()) >= -1e-6 for op in grids[1:-1])
    assert all(float(after[op.name].max()) <= 6 + op.numbers["scale"] / 2 for op in grids[1:-1])


def test_deployed_twice_is_deployed_once() -> None:
    once = freeze(student_of(small(), scheme_of("w4a4")), {}).deployed()
    assert once.deployed() is once
    assert all(op.numbers["live"] for op in once.program if op.kind == "grid")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_convolution_is_integer_arithmetic(data: st.DataObject) -> None:
    """The simulated convolution equals integers convolved in 32 bits, multiplied once per channel."""
    groups = data.draw(st.sampled_from([1, 2, 4]), "groups")
    bits, input_bits = data.draw(st.integers(2, 8), "bits"), data.draw(st.integers(2, 8), "input bits")
    stride, padding, dilation = (data.draw(st.integers(low, 2)) for low in (1, 0, 1))
    per = data.draw(st.sampled_from(["channel", "tensor"]))
    symmetric = data.draw(st.booleans(), "symmetric")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000), "seed"))
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    layer.bias = nn.Parameter(torch.randn(8, generator=generator))
    net = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Model.from_module(net, (4, 8, 8), (0.5,) * 4, (0.25,) * 4)
    student = convert(model, Scheme(Int(bits, per, symmetric), Int(input_bits), spare=Int(input_bits)))
    x = torch.randn(2, 4, 8, 8, generator=generator) + 0.7
    with student.observing(LpSearch()), torch.no_grad():
        student.net(x)
    program = {op.kind + op.function(): op for op in freeze(student, {}).deployed().program}
    grid, conv = next(op for op in freeze(student, {}).deployed().program if op.kind == "grid"), program["conv"]
    n, t = grid.numbers, conv.tensors
    # integers only, from here to the last line
    codes = ((x / torch.tensor(n["scale"])).round() + n["zero"]).clamp(n["low"], n["high"]).long()
    kernel = t["codes"].long() - t["zero"].long().view(-1, 1, 1, 1)
    sums = F.conv2d((codes - n["zero"]).double(), kernel.double(), None, stride, padding, dilation, groups).long()
    sums = sums + t["bias32"].long().view(1, -1, 1, 1)
    assert int(sums.abs().max()) < 2**31
    expected = sums.double() * (t["scale"].double() * n["scale"]).view(1, -1, 1, 1)
    got = run(conv, [run(grid, [x])])
    unit = float((t["scale"] * n["scale"]).max())
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=unit * 0.01)


def test_a_bias_larger_than_32_bits_keeps_its_value() -> None:
    from dreamquant.quant.deploy import deployed

    quantized = freeze(student_of(small(), scheme_of("w8a8")), {})
    program = []
    for op in quantized.program:
        if op.kind == "bn":
            tensors = {**op.tensors, "weight": op.tensors["weight"] * 1e-12}
            op = Op(op.kind, op.name, op.inputs, op.numbers, tensors)
        program.append(op)
    made = deployed(QuantizedModel(tuple(program), quantized.facts))
    for op in made.program:
        if op.kind == "conv":
            value = op.tensors["bias32"].double() * op.tensors["scale"].double() * op.numbers["input_scale"]
            bn = next(o for o in quantized.program if o.kind == "bn" and o.inputs[0] == op.name)
            assert torch.allclose(value.float(), bn.tensors["bias"], rtol=1e-4, atol=1e-6)


def cifar() -> tuple[Model, Tensor, Tensor]:
    """The network and the images of the data folder; skips where there are none."""
    weights, data = DATA / "cifar10" / "resnet20.safetensors", DATA / "cifar10" / "lossless200.npz"
    if not weights.exists() or not data.exists():
        pytest.skip(f"no {weights.name} and {data.name} in the data folder (DREAMQUANT_DATA)")
    net = CifarResNet()
    state = {key.removeprefix("module."): value for key, value in load_file(weights).items()}
    assert not [key for key in net.load_state_dict(state, strict=False).missing_keys if "num_batches" not in key]
    model = Model.from_module(net, (3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "resnet20")
    loaded = np.load(data)
    pixels = torch.from_numpy(loaded["x"]).permute(0, 3, 1, 2).float() / 255
    return model, model.normalise(pixels), torch.from_numpy(loaded["y"]).long()


def test_eight_bits_keep_the_accuracy_of_a_real_network() -> None:
    model, x, y = cifar()
    student = convert(model, scheme_of("w8a8"))
    with student.observing(LpSearch()), torch.no_grad():
        student.net(x[:64])
    quantized = freeze(student, {})
    accuracy = [float((net(x).argmax(1) == y).float().mean()) for net in (model, quantized, quantized.deployed())]
    assert accuracy[0] > 0.88 and not math.isnan(accuracy[0])
    assert min(accuracy[1:]) > accuracy[0] - 0.02


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, divisor_override=1), nn.MaxPool2d(2, return_indices=True)], ids=str)
def test_a_module_with_settings_that_have_no_form_is_kept_whole(pool: nn.Module) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, x: Tensor) -> Tensor:
            found = self.pool(x)
            return found[0] if isinstance(pool, nn.MaxPool2d) else found

    student = student_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), First(), nn.Flatten(), nn.Linear(8 * 49, 4)), scheme_of("w8a8"))
    quantized = freeze(student, {})
    with torch.no_grad():
        assert torch.equal(quantized(images()), student.net(images()))
    assert list(quantized.left_in_float) == ["2.pool"]


def test_a_log_softmax_at_the_end_has_a_form(tmp_path: Path) -> None:
    student = student_of(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 4), nn.LogSoftmax(1)), scheme_of("w8a8")
    )
    freeze(student, {}).save(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(QuantizedModel.load(tmp_path / "model.safetensors")(images()), student.net(images()))


class Left(nn.Module):
    """An image normalised inside, a sum before a BatchNorm, a convolution behind an interpolation, weights that are no module's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.full((1, 3, 1, 1), 0.4))
        self.first, self.second, self.norm, self.third = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3),
        )
        self.up, self.weight, self.linear = nn.Upsample(scale_factor=2), nn.Parameter(torch.randn(8, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first((x - self.middle) / 0.25))
        x = F.relu(self.norm(x + self.second(x)))
        return self.linear(self.third(self.up(x)).mean((2, 3)) @ self.weight)


def test_what_runs_in_float_is_listed_and_an_image_normalised_inside_is_still_the_image() -> None:
    student = student_of(Left(), uniform("w4a2", ends=8))
    assert set(in_float(freeze(student, {}))) == {"norm", "third", "matmul"}
    for whole in (student_of(Left(), scheme_of("w4a32")), student_of(small(), scheme_of("w4a4"))):
        assert in_float(freeze(whole, {})) == {}
    (image,) = (q for name, q in student.activation_quantizers().items() if name == "truediv")
    assert image.format.bits == 8 and not image.live


def test_an_image_normalised_channel_by_channel_is_still_the_image() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([(x[:, i : i + 1] - 0.4) / (0.2 + i / 10) for i in range(3)] + [-x], 1)
            return self.head(F.relu(self.first(x)).mean((2, 3)))

    quantizers = student_of(Channels(), uniform("w4a2")).activation_quantizers()
    assert quantizers["cat"].format.bits == 8 and not quantizers["cat"].live and quantizers["relu"].live
