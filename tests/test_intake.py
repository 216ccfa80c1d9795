"""Every form of MODEL, and every way a user can get it wrong."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from dreamquant import intake, load_model, torchvision_import, zoo
from dreamquant.intake import load_weights

FILE = """
from __future__ import annotations
from dataclasses import dataclass
import torch.nn as nn

@dataclass
class Settings:  # with annotations as text, dataclasses look for the module of this file
    width: int = 4

def factory():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

def with_facts():
    net = factory()
    net.pretrained_cfg = {"input_size": (3, 20, 24), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    return net

def broken():
    raise RuntimeError("no such layer")

def wordy():
    raise RuntimeError("one\\ntwo")

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
        ("resnet18", {}, "write torchvision:resnet18 or timm:resnet18"),
        ("net.py:factry", FACTS, "did you mean factory"),
        ("net.py:broken", FACTS, "raised RuntimeError: no such layer"),
        ("net.py:wordy", FACTS, "raised RuntimeError: one$"),
        ("net.py:number", FACTS, "returned int"),
        ("nowhere.py:factory", FACTS, "no file"),
        ("net.py:factory", {}, "--shape --mean --std"),
        ("net.py:factory", {**FACTS, "mean": (0.5, 0.5)}, "--mean has 2 values"),
        ("net.py:factory", {**FACTS, "mean": (float("nan"),)}, r"mean \(nan, nan, nan\) is not finite; give --mean"),
        ("net.py:factory", {**FACTS, "std": (0.0,)}, r"std \(0.0, 0.0, 0.0\) is not positive and finite; give --std"),
        ("net.py:factory", {**FACTS, "std": (float("nan"),)}, "give --std"),
        ("net.py:factory", {**FACTS, "std": (0.5, float("inf"), 0.5)}, "give --std"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)", r"net\.py failed when it was loaded: SystemExit: 0; keep what ends the program under"),
        ("import nothing_of_that_name", r"net\.py failed when it was loaded: ModuleNotFoundError"),
        ("def factory():\n    exit(3)", r"net\.py:factory raised SystemExit: 3; keep what ends the program under"),
    ],
)
def test_a_file_that_ends_the_program_is_told(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model(f"{file}:factory", **FACTS)  # type: ignore[arg-type]


def test_a_file_may_import_files_beside_it(file: Path) -> None:
    (file.parent / "blocks_of_mine.py").write_text("import torch.nn as nn\n\ndef pool():\n    return nn.AdaptiveAvgPool2d(1)\n")
    (file.parent / "heads_of_mine.py").write_text("import torch.nn as nn\n\ndef head():\n    return nn.Linear(3, 5)\n")
    file.write_text(
        "import torch.nn as nn\nfrom blocks_of_mine import pool\n\n"
        "def factory():\n    from heads_of_mine import head\n    return nn.Sequential(pool(), nn.Flatten(), head())\n"
    )
    assert load_model(f"{file}:factory", **FACTS).classes == 5  # type: ignore[arg-type]
    assert str(file.parent) not in sys.path


def test_libraries_below_the_folder_of_a_file_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a virtual environment beside it: to load them twice fails, or makes other classes of the same names."""
    library, package = tmp_path / "venv" / "site", tmp_path / "package_of_ours"
    library.mkdir(parents=True)
    package.mkdir()
    (library / "library_of_ours.py").write_text("width = 4\n")
    (package / "__init__.py").write_text("from package_of_ours.part import height\n")
    (package / "part.py").write_text("height = 5\n")
    monkeypatch.syspath_prepend(library)
    (tmp_path / "net.py").write_text(
        "import torch.nn as nn\nfrom library_of_ours import width\nfrom package_of_ours import height\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, height))\n"
    )
    assert load_model(f"{tmp_path / 'net.py'}:make", **FACTS).classes == 5  # type: ignore[arg-type]
    assert "library_of_ours" in sys.modules and not {"package_of_ours", "package_of_ours.part"} & set(sys.modules)
    monkeypatch.delitem(sys.modules, "library_of_ours")


def test_files_of_other_folders_may_have_the_same_names(tmp_path: Path) -> None:
    found = []
    for width in (4, 8):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "blocks_of_ours.py").write_text(f"width = {width}\n")
        (folder / "net.py").write_text(
            "import torch.nn as nn\nfrom blocks_of_ours import width\n\ndef make():\n"
            "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))\n"
        )
        found.append(load_model(f"{folder / 'net.py'}:make", **FACTS).net.get_parameter("0.weight").shape[0])  # type: ignore[arg-type]
    assert found == [4, 8] and "blocks_of_ours" not in sys.modules


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


def test_a_network_may_have_a_module_of_that_name(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("module", nn.Linear(2, 3))
    torch.save({key: value + 1 for key, value in net.state_dict().items()}, tmp_path / "w.pth")
    before = net.state_dict()["module.weight"].clone()
    load_weights(net, tmp_path / "w.pth")
    assert torch.equal(net.state_dict()["module.weight"], before + 1)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {1: torch.zeros(1)}, {"0.weight": "text"}])
def test_files_that_hold_something_else(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a state dict of tensors"):
        load_weights(network(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_broken_and_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        load_weights(network(), tmp_path / name)
    for content in (b"", b"\x00" * 40):
        (tmp_path / name).write_bytes(content)
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


def test_zoo_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.ENTRIES, "unborn", zoo.ENTRIES["resnet-digits"])
    with pytest.raises(ValueError, match="weights of zoo:unborn are not in this installation") as caught:
        load_model("zoo:unborn")
    assert str(Path(zoo.__file__).parent) not in str(caught.value)
    assert load_model("zoo:unborn", weights="random").classes == 10


def offline(*_: object, **__: object) -> None:
    raise OSError("no route to host\nand more")


def fake_vision(**members: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(list_models=lambda: ["resnet18"], is_model=lambda name: name == "resnet18", **members)


@pytest.mark.parametrize(
    ("spec", "weights", "way_out"),
    [
        ("torchvision:resnet18", None, "--weights random"),
        ("timm:resnet18", None, "--weights random"),
        ("hf:timm/resnet18", None, "check the name"),
        ("hf:timm/resnet18", "random", "check the name"),
    ],
)
def test_downloads_that_fail(spec: str, weights: str | None, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "import_vision", lambda name: fake_vision(get_model=offline, create_model=offline))
    message = rf"^{spec} could not be downloaded \(OSError: no route to host\); .*{way_out}"
    with pytest.raises(ValueError, match=message) as caught:
        load_model(spec, weights=weights)
    assert "\n" not in str(caught.value)


def test_the_hub_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, pixel_values: torch.Tensor) -> types.SimpleNamespace:
            return types.SimpleNamespace(logits=self.fc(pixel_values.mean((2, 3))))

    def giving(value: object) -> Any:
        return types.SimpleNamespace(from_pretrained=lambda name, **_: value, from_config=lambda config: value)

    package = types.ModuleType("transformers")
    package.__spec__ = importlib.util.spec_from_loader("transformers", None)
    package.AutoConfig = giving(types.SimpleNamespace(image_size=20, num_channels=3))  # type: ignore[attr-defined]
    package.AutoImageProcessor = giving(types.SimpleNamespace(image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3))  # type: ignore[attr-defined]
    package.AutoModelForImageClassification = giving(Net())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", package)
    model = load_model("hf:someone/net")
    assert (model.shape, model.mean, model.std, model.classes) == ((3, 20, 20), (0.1, 0.2, 0.3), (0.5,) * 3, 5)
    package.AutoConfig = types.SimpleNamespace(from_pretrained=offline)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="^hf:someone/net could not be downloaded"):
        load_model("hf:someone/net")


def test_packages_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dreamquant\[hf\]"):
        load_model("hf:someone/net")
    for name in ("timm", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)
    for spec in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=r"dreamquant\[vision\]"):
            load_model(spec)


def test_operators_are_declared_only_after_the_plain_import_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def importing(name: str) -> object:
        tries.append(name)
        if len(tries) == 1 and name == "broken":
            raise RuntimeError("operator torchvision::nms does not exist")
        return types

    monkeypatch.setattr(torchvision_import, "_declared", [])
    monkeypatch.setattr(torchvision_import.importlib, "import_module", importing)
    assert torchvision_import.import_vision("fine") is types and not torchvision_import._declared
    tries.clear()
    assert torchvision_import.import_vision("broken") is types
    assert tries == ["broken", "broken"] and len(torchvision_import._declared) == 1
