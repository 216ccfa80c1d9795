"""Every form of MODEL, and every way a user can get it wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from dreamquant import load_model, zoo
from dreamquant.intake import load_weights

FILE = """
import torch.nn as nn

def factory():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

def with_facts():
    net = factory()
    net.pretrained_cfg = {"input_size": (3, 20, 24), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    return net

def broken():
    raise RuntimeError("no such layer")

def number():
    return 3
"""
FACTS = {"shape": (3, 16, 16), "mean": (0.5,), "std": (0.25,)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("name", list(zoo.ENTRIES))
def test_the_zoo_loads_with_its_facts(name: str) -> None:
    entry, model = zoo.ENTRIES[name], load_model(f"zoo:{name}")
    assert (model.shape, model.mean, model.std, model.classes) == (entry.shape, entry.mean, entry.std, entry.classes)
    file = Path(zoo.__file__).parent / f"{name}.safetensors"
    assert file.stat().st_size < 4 << 20
    key, stored = next(iter(load_file(file).items()))
    assert torch.equal(model.net.state_dict()[key], stored)


def test_a_file_with_facts_from_flags_or_from_the_module(file: Path) -> None:
    model = load_model(f"{file}:factory", **FACTS)  # type: ignore[arg-type]
    assert (model.shape, model.mean, model.std, model.classes) == ((3, 16, 16), (0.5,) * 3, (0.25,) * 3, 5)
    carried = load_model(f"{file}:with_facts")
    assert (carried.shape, carried.mean) == ((3, 20, 24), (0.1, 0.2, 0.3))
    assert load_model(f"{file}:with_facts", mean=(0.4,)).mean == (0.4,) * 3, "flags go first"


@pytest.mark.parametrize(
    ("spec", "facts", "message"),
    [
        ("zoo:resnet20-cifar", {}, "did you mean resnet20-cifar10"),
        ("resnet18", {}, "write zoo:NAME"),
        ("net.py:factry", FACTS, "did you mean factory"),
        ("net.py:broken", FACTS, "raised RuntimeError: no such layer"),
        ("net.py:number", FACTS, "returned int"),
        ("nowhere.py:factory", FACTS, "no file"),
        ("net.py:factory", {}, "--shape --mean --std"),
        ("net.py:factory", {**FACTS, "mean": (0.5, 0.5)}, "--mean has 2 values"),
        ("net.py:factory", {**FACTS, "std": (0.0,)}, "--std"),
        ("net.py:factory", {**FACTS, "shape": (3, 16)}, "three positive numbers"),
        ("net.py:factory", {**FACTS, "shape": (1, 16, 16)}, r"does not take inputs of shape \(1, 16, 16\)"),
        ("net.py:factory", {**FACTS, "classes": 7}, "5 classes, not the 7"),
    ],
)
def test_mistakes_are_told_in_a_line(spec: str, facts: dict, message: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(spec, **facts)
    assert "\n" not in str(caught.value)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("form", ["safetensors", "prefixed", "pth", "wrapped", "half"])
def test_weights_of_every_form(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = {k: v.clone() for k, v in network().state_dict().items()}
    path = tmp_path / ("w.pth" if form in ("pth", "wrapped") else "w.safetensors")
    if form in ("pth", "wrapped"):
        torch.save({"state_dict": state} if form == "wrapped" else state, path)
    else:
        prefix = "module." if form == "prefixed" else ""
        save_file({prefix + k: v.half() if form == "half" and v.is_floating_point() else v for k, v in state.items()}, path)
    torch.manual_seed(2)
    net = network()
    load_weights(net, path)
    assert (
        torch.allclose(net.state_dict()["0.weight"], state["0.weight"], atol=1e-3) and net.state_dict()["0.weight"].dtype == torch.float32
    )


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["5.weight"] = torch.zeros(9, 4)
    del state["5.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"missing: 5\.bias; unexpected: extra\.weight; wrong shape: 5\.weight \(9, 4\) for \(5, 4\)"):
        load_weights(network(), tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> tuple:
        return (open, ("pwned", "w"))


def test_code_in_a_weights_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="would run code"):
        load_weights(network(), tmp_path / "w.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_broken_and_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        load_weights(network(), tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match=name):
        load_weights(network(), tmp_path / name)


def test_nan_weights_are_refused(file: Path, tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.weight"][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"0\.weight holds NaN"):
        load_model(f"{file}:factory", weights=tmp_path / "w.safetensors", **FACTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
        "torchvision:shufflenet_v2_x0_5",
        "timm:efficientnet_lite0",
        "timm:resnet18",
    ],
)
def test_architectures_of_the_libraries(spec: str) -> None:
    if not importlib.util.find_spec("timm"):
        pytest.skip("timm and torchvision are not installed")
    model = load_model(spec, weights="random", shape=(3, 64, 64))
    assert model.shape == (3, 64, 64) and model.classes == 1000 and not model.left_in_float and model.has_batch_norm()
    with pytest.raises(ValueError, match="did you mean"):
        load_model(spec + "x")
