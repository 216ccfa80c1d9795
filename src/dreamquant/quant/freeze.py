"""freeze: from a student, which learns, to a program, which only runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant.model import Model
from dreamquant.quant.names import FLOAT_LAYERS, IGNORED, MODULES, PLAIN, name_of
from dreamquant.quant.program import NoForm, Op, bound, encode
from dreamquant.quant.quantized import Facts, QuantizedModel
from dreamquant.quant.quantizer import Quantizer
from dreamquant.quant.scheme import uniform
from dreamquant.quant.student import QuantConv2d, QuantLinear, Student, convert


def freeze(student: Student, provenance: Mapping[str, Any]) -> QuantizedModel:
    """The program of a student, with integer weights. It computes what `student.net` computes.

    Raises ValueError for a quantizer without a range, FloatingPointError for a step that is not positive or weights that
    are not finite.
    """
    source = student.source
    facts = Facts(source.shape, source.mean, source.std, source.classes, source.name)
    freezing = _Freezing(student)
    with torch.no_grad():
        for node in student.net.graph.nodes:
            freezing.write(node)
    left = {**source.left_in_float, **freezing.left}
    return QuantizedModel(_used(freezing.ops, freezing.output), facts, student.scheme.placement, dict(provenance), left)


def without_form(model: Model) -> dict[str, str]:
    """The parts of a network that a file has no form for, and what they are: known before anything is dreamed."""
    program = freeze(convert(model, uniform("w8a32")), {}).program
    return {op.name: _words(op.held) for op in program if op.kind == "opaque"}


def _words(held: Any) -> str:
    """What a part that exists in memory only is called."""
    return type(held).__name__ if isinstance(held, nn.Module) else str(getattr(held, "__name__", held))


def _used(ops: list[Op], output: str) -> tuple[Op, ...]:
    """Without ops whose value nobody reads; the last one makes the output."""
    needed, kept = {output}, []
    for op in reversed(ops):
        if op.name in needed or op.kind == "image":
            needed.update(op.inputs)
            kept.append(op)
    return tuple(reversed(kept))


class _Freezing:
    """The program so far. `same` maps nodes that are left out to the op that stands for them, `plain` those that are no tensor."""

    def __init__(self, student: Student) -> None:
        self.net, self.scheme = student.net, student.scheme
        self.ops: list[Op] = []
        self.left: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.plain: dict[str, Any] = {}
        self.output = ""

    def write(self, node: fx.Node) -> None:
        """Write the op, or ops, of one node."""
        match node.op:
            case "placeholder":
                self._placeholder(node)
            case "get_attr":
                self._attribute(node)
            case "call_module":
                self._module(node, self.net.get_submodule(str(node.target)))
            case "call_function" | "call_method":
                self._function(node)
            case "output":
                self.output = self._name(node.all_input_nodes[0])

    def _name(self, node: fx.Node) -> str:
        return self.same.get(node.name, node.name)

    def _placeholder(self, node: fx.Node) -> None:
        if not any(op.kind == "image" for op in self.ops):
            self.ops.append(Op("image", node.name))
        elif node.users:
            raise ValueError(f"the network takes a second input, {node.name}; wrap it in a module that takes images only")

    def _attribute(self, node: fx.Node) -> None:
        owner, _, last = str(node.target).rpartition(".")
        value = getattr(self.net.get_submodule(owner), last)
        if isinstance(value, Tensor):
            self.ops.append(self._constant(node.name, value))
        else:
            self.plain[node.name] = value

    @staticmethod
    def _constant(name: str, value: Tensor) -> Op:
        return Op("constant", name, tensors={"value": value.detach().clone().contiguous()})

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, Quantizer):
            self._grid(node, module)
        elif isinstance(module, QuantConv2d | QuantLinear):
            self._layer(node, module)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            given = {"mean": module.running_mean, "var": module.running_var, "weight": module.weight, "bias": module.bias}
            tensors = {key: value.detach().clone() for key, value in given.items() if value is not None}
            self.ops.append(Op("bn", node.name, (self._name(node.all_input_nodes[0]),), {"eps": module.eps}, tensors))
        elif type(module) in MODULES and all(getattr(module, name, usual) == usual for name, usual in PLAIN.items()):
            function, names = MODULES[type(module)]
            kwargs = {key: getattr(module, attribute) for key, attribute in names.items()}
            if isinstance(module, FLOAT_LAYERS):
                self.left[str(node.target)] = f"{type(module).__name__} has no integer form here"
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose2d)) and (module.padding_mode != "zeros" or len(node.args) != 1):
                self._opaque(node, module)
            else:
                self._call(node, function, node.args, kwargs | dict(node.kwargs), module)
        else:
            self._opaque(node, module)

    def _function(self, node: fx.Node) -> None:
        target, args = node.target, node.args
        if target is getattr and args[1] == "shape":
            self._call(node, "size", args[:1], {}, target)
            return
        kwargs = {key: value for key, value in node.kwargs.items() if key not in IGNORED}
        name = name_of(target)
        if name is None:
            self._opaque(node, target)
        else:
            self._call(node, name, args, kwargs, target)

    def _grid(self, node: fx.Node, q: Quantizer) -> None:
        source = self._name(node.all_input_nodes[0])
        if self.scheme.activations is None:
            self.same[node.name] = source  # activations stay in float: no integer kernel will ask for a grid
            return
        if not bool(q.scale.isfinite().all()):
            raise ValueError(f"{node.all_input_nodes[0].name}: no range was ever measured; add a Calibrate step")
        _positive(node.all_input_nodes[0].name, q.scale)
        numbers: dict[str, Any] = {"live": q.live, "bits": q.format.bits, "low": q.format.low, "high": q.format.high}
        numbers |= {"scale": q.scale.item(), "zero": int(q.zero.item()), "divides": False}
        self.ops.append(Op("grid", node.name, (source,), numbers))

    def _layer(self, node: fx.Node, layer: QuantConv2d | QuantLinear) -> None:
        weight, source = layer.weight.detach(), self._name(node.all_input_nodes[0])
        if not bool(weight.isfinite().all()):  # on a GPU the loss was finite to the end where these were not
            raise FloatingPointError(f"{node.target}: its weights are not finite, so training was lost; lower the learning rate")
        scale, zero = (v.detach().expand(len(weight), *[1] * (weight.ndim - 1)).flatten() for v in layer.quantizer.grid(weight))
        if not bool(scale.isfinite().all()):
            raise ValueError(f"{node.target}: no range of its weights was ever found; add SetWeightRanges")
        _positive(str(node.target), scale)
        tensors = {"codes": layer.quantizer.codes(weight).to(torch.int8), "zero": zero.to(torch.int8), "scale": scale.float().clone()}
        if layer.bias is not None:
            tensors["bias"] = layer.bias.detach().clone()
        numbers: dict[str, Any] = {"bits": layer.quantizer.format.bits, "layer": str(node.target)}
        if isinstance(layer, QuantLinear):
            rows = len(node.meta.get("shape", ())) == 2
            self.ops.append(Op("linear", node.name, (source,), {**numbers, "rows": rows}, tensors))
            return
        padding: Any = layer.padding if isinstance(layer.padding, str) else list(layer.padding)
        if layer.padding_mode != "zeros":
            padded = f"{node.name}.pad"
            sides = {"pad": list(layer._reversed_padding_repeated_twice), "mode": layer.padding_mode, "value": None}
            self.ops.append(Op("call", padded, (source,), {"function": "pad", "arguments": {"x": {"input": 0}, **sides}}))
            source, padding = padded, [0, 0]
        numbers |= {"stride": list(layer.stride), "padding": padding, "dilation": list(layer.dilation), "groups": layer.groups}
        self.ops.append(Op("conv", node.name, (source,), numbers, tensors))

    def _encoded(self, node: fx.Node, value: Any, inputs: list[str], held: bool = False) -> Any:
        """A value of a call as JSON; tensors that it holds become constants, and inputs."""

        def place(part: Any) -> int | None:
            if isinstance(part, fx.Node) and part.name not in self.plain:
                name = self._name(part)
            elif isinstance(part, Tensor):
                name = f"{node.name}.{len(inputs)}"
                self.ops.append(self._constant(name, part))
            else:
                return None
            if name not in inputs:
                inputs.append(name)
            return inputs.index(name)

        value = fx.map_arg(value, lambda n: self.plain.get(n.name, n))
        return encode(_plain(value), place, held)

    def _call(self, node: fx.Node, function: str, args: Any, kwargs: dict[str, Any], held: Any) -> None:
        inputs: list[str] = []
        try:
            arguments = {key: self._encoded(node, value, inputs) for key, value in bound(function, args, kwargs).items()}
        except NoForm:
            self._opaque(node, held)
            return
        if function == "identity" and len(inputs) == 1:
            self.same[node.name] = inputs[0]
            return
        self.ops.append(Op("call", node.name, tuple(inputs), {"function": function, "arguments": arguments}))

    def _opaque(self, node: fx.Node, held: Any) -> None:
        inputs: list[str] = []
        args = self._encoded(node, tuple(node.args), inputs, held=True)
        kwargs = {key: self._encoded(node, value, inputs, held=True) for key, value in node.kwargs.items()}
        self.left.setdefault(str(node.target) if isinstance(held, nn.Module) else node.name, f"{_words(held)} has no form in a program")
        called = _Method(held) if isinstance(held, str) else held
        self.ops.append(Op("opaque", node.name, tuple(inputs), {"args": args, "kwargs": kwargs}, held=called))


def _positive(name: str, scale: Tensor) -> None:
    """Integer kernels have no form for other steps; training never makes one (see `Floor`)."""
    if not bool((scale > 0).all()):
        raise FloatingPointError(f"{name}: a step of its grid is {scale.min().item():g}; lower the rate that it is learned with")


class _Method:
    """A method called by its name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, owner: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(owner, self.__name__)(*args, **kwargs)


def _plain(value: Any) -> Any:
    """fx's immutable lists, torch.Size and the like as plain lists and tuples."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, slice):
        return slice(*(_plain(part) for part in (value.start, value.stop, value.step)))
    return value
