"""QuantizedModel: a program of integers and scales. What is simulated, saved and exported is one object, so the three agree."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamquant.folder import read_tensors, write_tensors
from dreamquant.quant.packing import pack, packed_bytes, unpack
from dreamquant.quant.program import MOVES, Op, run
from dreamquant.quant.vocabulary import FUNCTIONS

FORMAT = 1
LARGEST = 4_000_000  # values of an image that a file is tried on
KINDS = ("image", "constant", "conv", "linear", "bn", "grid", "call")
NEEDED = {"conv": ("codes", "zero", "scale"), "linear": ("codes", "zero", "scale"), "bn": ("mean", "var"), "constant": ("value",)}
NUMBERS = {
    "conv": ("bits", "layer", "stride", "padding", "dilation", "groups"),
    "linear": ("bits", "layer", "rows"),
    "bn": ("eps",),
    "grid": ("live", "bits", "low", "high", "scale", "zero", "divides"),
    "call": ("function", "arguments"),
}


@dataclass(frozen=True)
class Facts:
    """What is known about the input and output; see `Model`."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    name: str


@dataclass(frozen=True)
class Layer:
    """One quantized layer. `name` is that of its op in `trace`, `layer` that of its module."""

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    weight_bytes: int
    input_bits: int | None  # None: it reads floats
    macs: int  # multiplications for one image


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A quantized network. `left_in_float` says which parts are not, and why."""

    program: tuple[Op, ...]
    facts: Facts
    placement: str = "paper"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    left_in_float: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.facts.shape

    @property
    def mean(self) -> tuple[float, ...]:
        """Subtracted from pixels in [0, 1], per channel."""
        return self.facts.mean

    @property
    def std(self) -> tuple[float, ...]:
        """What pixels less the mean are divided by, per channel."""
        return self.facts.std

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.facts.classes

    @property
    def name(self) -> str:
        """The name of the network that was quantized."""
        return self.facts.name

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((t.device for op in self.program for t in op.tensors.values()), torch.device("cpu"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight codes, packed."""
        return sum(_weight_bytes(op) for op in self.program)

    def to(self, device: str | torch.device) -> QuantizedModel:
        """The same model on a device."""
        return replace(self, program=tuple(op.to(device) for op in self.program))

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes), without gradients."""
        last_reader = {name: number for number, op in enumerate(self.program) for name in op.inputs}
        kept: dict[str, Any] = {}
        for number, (op, value) in enumerate(self._values(x, kept.__getitem__)):
            kept[op.name] = value
            for name in op.inputs:
                if last_reader[name] == number:
                    kept.pop(name, None)  # frees the memory of what nobody reads any more
        return kept[self.program[-1].name]

    def values(self, x: Tensor) -> dict[str, Any]:
        """What every op makes of normalised images: tensors, tuples of them, sizes."""
        kept: dict[str, Any] = {}
        for op, value in self._values(x, kept.__getitem__):
            kept[op.name] = value
        return kept

    def trace(self, x: Tensor) -> dict[str, Tensor]:
        """Every op's tensor on normalised images, by name."""
        return {name: value for name, value in self.values(x).items() if isinstance(value, Tensor)}

    def _values(self, x: Tensor, of: Callable[[str], Any]) -> Iterator[tuple[Op, Any]]:
        for op in self.program:
            with torch.no_grad():
                value = run(op, [x] if op.kind == "image" else [of(name) for name in op.inputs])
            yield op, value

    def deployed(self) -> QuantizedModel:
        """The same network as integer kernels run it: BatchNorm folded, 32-bit biases, every grid live; see `deploy`."""
        from dreamquant.quant.deploy import deployed

        return deployed(self)

    def check(self) -> None:
        """Run one image of zeros, unless it is very large. ValueError, or what torch raises, where that fails or gives no numbers."""
        if min(self.shape) < 1:
            raise ValueError(f"images of {self.shape}")
        if math.prod(self.shape) <= LARGEST and self(torch.zeros(1, *self.shape, device=self.device)).isnan().any():
            raise ValueError("logits of an image of zeros are no numbers")

    def layers(self) -> list[Layer]:
        """Records of the quantized layers, in execution order."""
        seen = self.trace(torch.zeros(1, *self.shape, device=self.device))
        by = {op.name: op for op in self.program}
        found = []
        for op in self.program:
            if op.kind in ("conv", "linear"):
                codes = op.tensors["codes"]
                grid = grid_of(by, op.inputs[0])
                bits = int(grid.numbers["bits"]) if grid and grid.numbers["live"] else None
                macs = seen[op.name].numel() * codes[0].numel()
                layer, width = op.numbers["layer"], op.numbers["bits"]
                found.append(Layer(op.name, layer, op.kind, tuple(codes.shape), width, _weight_bytes(op), bits, macs))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, weight codes at their true width, written whole or not at all; its folder is made.

        Raises ValueError for a network with parts that only exist in memory.
        """
        held = [op.name for op in self.program if op.kind == "opaque"]
        if held:
            raise ValueError(f"{self.name} cannot be saved: {', '.join(held)} have no form in a file; use other functions of torch")
        tensors: dict[str, Tensor] = {}
        lines = []
        for op in self.program:
            line: dict[str, Any] = {"kind": op.kind, "name": op.name, "inputs": list(op.inputs), "numbers": dict(op.numbers)}
            for key, tensor in op.tensors.items():
                if key == "codes":
                    line["shape"] = list(tensor.shape)
                    tensor = pack(tensor, op.numbers["bits"])
                tensors[f"{op.name}.{key}"] = tensor.clone()  # a file has no form for tensors that share memory
            line["tensors"] = list(op.tensors)
            lines.append(line)
        about = {
            "format": FORMAT,
            "facts": asdict(self.facts),
            "placement": self.placement,
            "provenance": dict(self.provenance),
            "left_in_float": dict(self.left_in_float),
            "program": lines,
        }
        write_tensors(Path(path), tensors, {"dreamquant": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> QuantizedModel:
        """The model of a file; nothing in it is executed. ValueError where it is not one, or damaged."""
        tensors, words = read_tensors(Path(path))
        if "dreamquant" not in words:
            raise ValueError(f"{path} is a safetensors file, but no model that dreamquant saved")
        try:
            model = _read(json.loads(words["dreamquant"]), tensors)
            model.check()
            return model.to(device)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or was written by another version: {error}") from None


def grid_of(by: Mapping[str, Op], name: str) -> Op | None:
    """The grid that a tensor lies on, seen through ops that only move values; None where it lies on none."""
    op = by[name]
    while op.kind == "call" and op.function() in MOVES and not _pads_with_other(op):
        op = by[op.inputs[0]]
    return op if op.kind == "grid" else None


def _pads_with_other(op: Op) -> bool:
    return op.function() == "pad" and bool(op.numbers["arguments"]["value"])


def _weight_bytes(op: Op) -> int:
    return packed_bytes(op.tensors["codes"].numel(), op.numbers["bits"]) if "codes" in op.tensors else 0


def _read(about: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedModel:
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']!r}; this version reads {FORMAT}")
    facts = about["facts"]
    facts = Facts(tuple(facts["shape"]), tuple(facts["mean"]), tuple(facts["std"]), facts["classes"], facts["name"])
    known: set[str] = set()
    program = []
    for line in about["program"]:
        op = _read_op(line, tensors)
        missing = [name for name in op.inputs if name not in known]
        if missing or op.name in known:
            raise ValueError(f"{op.name} reads {', '.join(missing) or 'itself'}, which no op before it makes")
        known.add(op.name)
        program.append(op)
    if not program:
        raise ValueError("an empty program")
    return QuantizedModel(tuple(program), facts, about["placement"], about["provenance"], about["left_in_float"])


def _read_op(line: dict[str, Any], tensors: dict[str, Tensor]) -> Op:
    kind, name, numbers = line["kind"], line["name"], line["numbers"]
    if kind not in KINDS:
        raise ValueError(f"{name}: no op of the kind {kind!r} exists")
    missing = [key for key in NUMBERS.get(kind, ()) if key not in numbers]
    missing += [key for key in NEEDED.get(kind, ()) if key not in line["tensors"]]
    if missing:
        raise ValueError(f"{name}: {kind} lacks {', '.join(missing)}")
    if kind == "call" and numbers["function"] not in FUNCTIONS:
        raise ValueError(f"{name}: no function {numbers['function']!r} exists")
    mine = {key: tensors[f"{name}.{key}"] for key in line["tensors"]}
    if "codes" in mine:
        mine["codes"] = unpack(mine["codes"], numbers["bits"], tuple(line["shape"]))
        if not len(mine["scale"]) == len(mine["zero"]) == len(mine["codes"]):
            raise ValueError(f"{name}: {len(mine['codes'])} channels, {len(mine['scale'])} scales, {len(mine['zero'])} zero points")
        if not bool((mine["scale"] >= 0).all()):  # zero where a BatchNorm that was folded in multiplies by it
            raise ValueError(f"{name}: a step of its weights is {mine['scale'].min().item()}")
    if kind == "grid" and not numbers["scale"] > 0:
        raise ValueError(f"{name}: the step of its grid is {numbers['scale']}")
    return Op(kind, name, tuple(line["inputs"]), numbers, mine)
