"""From what a user writes for MODEL to a Model: zoo:, torchvision:, timm:, hf:, file.py:factory, with weights and facts."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import zoo
from dreamquant.folder import read_tensors
from dreamquant.loading import load_file, reason, result_of
from dreamquant.model import Model
from dreamquant.torchvision_import import import_vision

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM = "random"  # --weights random: initial weights, to try an architecture without a file
SLOW_TO_START = ("googlenet", "inception_v3")  # their random initial weights take most of a minute
SHOWN = 4  # keys named in a message
CHECK = "check the name and the connection"  # without its configuration there is no network to put weights into


@dataclass(frozen=True)
class Facts:
    """What is known about a network's input; None where nothing is."""

    shape: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True)
class Found:
    """A network as its source gives it. `loaded` says that pre-trained weights are in it."""

    net: nn.Module
    facts: Facts
    loaded: bool


def load_model(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: int | None = None,
) -> Model:
    """The Model that `spec` names: zoo:NAME, torchvision:NAME, timm:NAME, hf:REPO or path/file.py:factory.

    `weights` is a safetensors or state dict file (never unpickled), or "random"; with it, networks of the libraries are
    built for `classes` classes. Facts given here go before those the network carries. Raises ValueError that names
    what is wrong and the way out.

    >>> load_model("zoo:resnet-digits").shape
    (1, 8, 8)
    """
    source, colon, name = spec.partition(":")
    pretrained = weights is None
    if spec.rpartition(":")[0].endswith(".py") or spec.endswith(".py"):
        found = _from_file(spec)
    elif colon and source in SOURCES:
        found = SOURCES[source](name, pretrained, classes)
    else:
        example = spec.rpartition(":")[2] or "resnet18"
        raise ValueError(
            f"MODEL {spec!r} does not say where it comes from: write torchvision:{example} or timm:{example}, "
            "or zoo:NAME, hf:REPO or path/file.py:function"
        )
    if weights is not None and str(weights) != RANDOM:
        load_weights(found.net, Path(weights))
    facts = _facts(spec, Facts(shape, mean, std), found.facts)
    assert facts.shape is not None and facts.mean is not None and facts.std is not None
    if len(facts.shape) != 3 or min(facts.shape) < 1:
        raise ValueError(f"--shape {','.join(map(str, facts.shape))}: give three positive numbers C,H,W")
    channels, height, width = facts.shape
    mean, std = _each(facts.mean, channels, "--mean"), _each(facts.std, channels, "--std")
    name = Path(spec).name if ".py" in spec else spec  # the folder a file lies in is nobody's business in a record
    model = Model.from_module(found.net, (channels, height, width), mean, std, name)
    if classes is not None and classes != model.classes:
        raise ValueError(f"{spec} has {model.classes} classes, not the {classes} that were asked for")
    return model


def _each(values: Sequence[float], channels: int, flag: str) -> tuple[float, ...]:
    given = tuple(float(v) for v in values)
    if len(given) not in (1, channels):
        raise ValueError(f"{flag} has {len(given)} values; give one, or one for each of the {channels} channels")
    return given * channels if len(given) == 1 else given


def _facts(spec: str, flags: Facts, carried: Facts) -> Facts:
    found = {key: getattr(flags, key) if getattr(flags, key) is not None else getattr(carried, key) for key in ("shape", "mean", "std")}
    missing = [f"--{key}" for key, value in found.items() if value is None]
    if missing:
        raise ValueError(f"{spec} does not say what images it takes; give {' '.join(missing)} (say --shape 3,32,32 --mean 0.5 --std 0.25)")
    return Facts(**found)


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 3, 0.4)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _from_zoo(name: str, pretrained: bool, classes: int | None) -> Found:
    if name not in zoo.ENTRIES:
        raise ValueError(f"unknown network zoo:{name}{_near(name, zoo.ENTRIES)} The zoo has {', '.join(zoo.ENTRIES)}")
    entry = zoo.ENTRIES[name]
    net = entry.build()
    if pretrained:
        file = Path(zoo.__file__).parent / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"the weights of zoo:{name} are not in this installation; give --weights FILE, or --weights random to try it")
        load_weights(net, file)
    return Found(net, Facts(entry.shape, entry.mean, entry.std), pretrained)


def _from_torchvision(name: str, pretrained: bool, classes: int | None) -> Found:
    models = import_vision("torchvision.models")
    if name not in models.list_models():
        raise ValueError(f"unknown network torchvision:{name}{_near(name, models.list_models())}")
    if pretrained:
        net = _downloaded(lambda: models.get_model(name, weights="DEFAULT"), f"torchvision:{name}")
    else:
        settings: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        settings |= {"init_weights": False} if name in SLOW_TO_START else {}
        net = models.get_model(name, weights=None, **settings)
    side = 299 if name == "inception_v3" else 224
    return Found(net, Facts((3, side, side), IMAGENET_MEAN, IMAGENET_STD), pretrained)


def _from_timm(name: str, pretrained: bool, classes: int | None) -> Found:
    timm = import_vision("timm")
    hub = name.startswith("hf-hub:")
    if not hub and not timm.is_model(name):
        raise ValueError(f"unknown network timm:{name}{_near(name, timm.list_models())}")
    settings: dict[str, Any] = {"pretrained": True} if pretrained else {} if classes is None else {"num_classes": classes}
    if hub:  # what the network looks like is on the hub as well
        net = _downloaded(lambda: timm.create_model(name, **settings), f"hf:{name.removeprefix('hf-hub:')}", CHECK)
    elif pretrained:
        net = _downloaded(lambda: timm.create_model(name, **settings), f"timm:{name}")
    else:
        net = timm.create_model(name, **settings)
    return Found(net, _carried(net), pretrained)


class Logits(nn.Module):
    """A network of transformers, returning its logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=x).logits
        return logits


def _from_hub(name: str, pretrained: bool, classes: int | None) -> Found:
    if name.startswith("timm/"):
        return _from_timm(f"hf-hub:{name}", pretrained, classes)
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"hf:{name} needs the package transformers, which is not installed: pip install 'dreamquant[hf]'")
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    def load() -> Found:
        config = AutoConfig.from_pretrained(name, **({} if classes is None or pretrained else {"num_labels": classes}))
        net = AutoModelForImageClassification.from_pretrained(name) if pretrained else AutoModelForImageClassification.from_config(config)
        side = getattr(config, "image_size", 224)
        try:
            processor = AutoImageProcessor.from_pretrained(name)
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        except (OSError, ValueError, AttributeError):
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        return Found(Logits(net), Facts((getattr(config, "num_channels", 3), side, side), mean, std), pretrained)

    found: Found = _downloaded(load, f"hf:{name}", CHECK)
    return found


def _downloaded(load: Any, spec: str, instead: str = "give --weights FILE, or --weights random to try it") -> Any:
    """What `load` returns; any failure on the way is told with what to do instead."""
    try:
        return load()
    except Exception as error:  # the libraries raise whatever their network layers raise
        raise ValueError(f"{spec} could not be downloaded ({reason(error)}); {instead}") from None


SOURCES = {"zoo": _from_zoo, "torchvision": _from_torchvision, "timm": _from_timm, "hf": _from_hub}


def _from_file(spec: str) -> Found:
    path_text, _, function = spec.rpartition(":") if spec.rpartition(":")[0].endswith(".py") else (spec, "", "")
    path = Path(path_text)
    if not path.is_file():
        raise ValueError(f"no file {path}; MODEL is path/file.py:function")
    module = load_file(path)
    factory = getattr(module, function, None)
    if not callable(factory):
        there = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        raise ValueError(f"{path} has no function {function!r}{_near(function, there)} It has {', '.join(there) or 'none'}")
    net = result_of(factory, path, spec)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{spec} returned {type(net).__name__}, not a torch.nn.Module")
    return Found(net, _carried(net), True)


def _carried(net: nn.Module) -> Facts:
    """The facts in timm's `pretrained_cfg`, where the module carries one."""
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    if config is None:
        return Facts()
    get = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    return Facts(get("input_size"), get("mean"), get("std"))


def load_weights(net: nn.Module, path: Path) -> None:
    """Put the weights of a safetensors or state dict file into `net`; ValueError names what does not fit.

    `module.` prefixes are stripped and a {"state_dict": ...} wrapper opened. Code in a file is never run.
    """
    wanted = net.state_dict()
    state = {key if key in wanted else key.removeprefix("module."): value for key, value in _read(path).items()}
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    shapes = [f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}" for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    problems = [
        f"{word} {_some(keys)}" for word, keys in (("missing:", missing), ("unexpected:", unexpected), ("wrong shape:", shapes)) if keys
    ]
    if problems:
        raise ValueError(f"the weights in {path} do not fit the network; {'; '.join(problems)}")
    net.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in state.items() if key in wanted}, strict=False
    )


def _some(keys: list[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no file {path} for --weights")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is not a plain state dict: it is damaged or would run code. Save net.state_dict() as safetensors"
        ) from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a state dict ({reason(error)})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds {type(state).__name__}, not a state dict of tensors")
    return state
