"""Op: one line of a program, in a closed vocabulary, and how each runs.

Arguments of a call are JSON; a tensor among them is {"input": number}, its place in `Op.inputs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.quant.quantizer import snapped
from dreamquant.quant.vocabulary import FUNCTIONS, VARIADIC

# Ops that only move values: a tensor on a grid stays on it.
MOVES = frozenset(
    (
        *("max_pool2d", "adaptive_max_pool2d", "flatten", "unflatten", "reshape", "expand", "repeat", "permute", "transpose", "squeeze"),
        *("unsqueeze", "getitem", "chunk", "split", "unbind", "pad", "roll", "identity", "pixel_shuffle", "channel_shuffle"),
    )
)


@dataclass(frozen=True, eq=False)
class Op:
    """One line of a program. Kinds and what they hold:

    image: nothing. constant: tensor "value". conv, linear: tensors codes (int8), zero (O,), scale (O,), perhaps bias (O,)
    and, deployed, bias32 (O,); numbers bits, layer, input_scale. bn: the four vectors and eps. grid: numbers live, bits, low,
    high, scale, zero, divides. call: numbers function, arguments. opaque: `held`, a module or function kept in memory.
    """

    kind: str
    name: str
    inputs: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    held: Callable[..., Any] | None = None

    def to(self, device: str | torch.device) -> Op:
        """The same op on a device."""
        held = self.held.to(device) if isinstance(self.held, torch.nn.Module) else self.held
        return replace(self, tensors={key: t.to(device) for key, t in self.tensors.items()}, held=held)

    def function(self) -> str:
        """The name of the function a call calls; empty for other kinds."""
        return str(self.numbers["function"]) if self.kind == "call" else ""

    def arguments(self, values: Sequence[Any]) -> dict[str, Any]:
        """Arguments of a call by name, `values` in the place of its inputs."""
        return {key: decode(value, values) for key, value in self.numbers["arguments"].items()}


class NoForm(TypeError):
    """What was to be written has no form in the vocabulary."""


def encode(value: Any, place: Callable[[Any], int | None], held: bool = False) -> Any:
    """An argument as JSON; `place` gives the number of what is an input, and None for everything else.

    Raises NoForm for what JSON has not, or, with `held`, keeps the object.
    """
    number = place(value)
    if number is not None:
        return {"input": number}
    match value:
        case None | bool() | int() | float() | str():
            return value
        case slice():
            return {"slice": [encode(part, place, held) for part in (value.start, value.stop, value.step)]}
        case tuple():
            return {"tuple": [encode(part, place, held) for part in value]}
        case list():
            return [encode(part, place, held) for part in value]
    if value is ...:
        return {"ellipsis": True}
    if held:
        return {"object": value}
    raise NoForm(f"{type(value).__name__} {value!r} cannot be written into a program")


def decode(value: Any, values: Sequence[Any]) -> Any:
    """What `encode` wrote, the inputs' values put in."""
    if isinstance(value, list):
        return [decode(part, values) for part in value]
    if not isinstance(value, dict):
        return value
    (key, content), *more = value.items()
    match key:
        case "input" if not more:
            return values[content]
        case "slice":
            return slice(*(decode(part, values) for part in content))
        case "tuple":
            return tuple(decode(part, values) for part in content)
        case "ellipsis":
            return ...
        case "object":
            return content
    raise ValueError(f"{value!r} is no argument of a program")


def bound(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by the names of the vocabulary, defaults put in. Raises NoForm for what it does not take."""
    variadic = VARIADIC.get(function)
    if variadic and len(args) > 1 and not isinstance(args[1], (tuple, list)):
        args = (args[0], list(args[1:]))
    if variadic and len(args) == 1 and variadic not in kwargs:
        kwargs = {variadic: next((kwargs[k] for k in ("shape", "size", "sizes", "dims") if k in kwargs), None)}
    known = {"input": "x", "self": "x", "axis": "dim", "min_val": "min", "max_val": "max"}
    kwargs = {known.get(key, key): value for key, value in kwargs.items()}
    try:
        signature = inspect.signature(FUNCTIONS[function])
    except ValueError:  # a function of torch without a signature takes one tensor
        if len(args) + len(kwargs) != 1:
            raise NoForm(f"{function} with {len(args) + len(kwargs)} arguments has no form in a program") from None
        return {"x": next(iter((*args, *kwargs.values())))}
    kwargs = {key: value for key, value in kwargs.items() if key in signature.parameters or not (value is None or value is False)}
    try:
        binding = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise NoForm(f"{function}: {error}") from None
    binding.apply_defaults()
    return dict(binding.arguments)


def wide(vector: Tensor, ndim: int, axis: int = 0) -> Tensor:
    """A vector (O,) that broadcasts along one axis of a tensor of `ndim` axes."""
    return vector.view(*(1,) * axis, -1, *(1,) * (ndim - axis - 1))


def levels(op: Op) -> Tensor:
    """Code minus zero point of a layer's weight: integers, as floats. (O, ...)"""
    codes = op.tensors["codes"]
    return codes.float() - wide(op.tensors["zero"].float(), codes.ndim)


def weight(op: Op) -> Tensor:
    """The values of a layer's weight. (O, ...)"""
    return levels(op) * wide(op.tensors["scale"], op.tensors["codes"].ndim)


def run(op: Op, values: list[Any]) -> Any:
    """The value of one op, given those of its inputs (of the image for "image")."""
    match op.kind:
        case "image":
            return values[0]
        case "constant":
            return op.tensors["value"]
        case "conv" | "linear":
            return _integers(op, values[0]) if "bias32" in op.tensors else _product(op, values[0], weight(op), op.tensors.get("bias"))
        case "bn":
            t = op.tensors
            return F.batch_norm(values[0], t["mean"], t["var"], t.get("weight"), t.get("bias"), eps=op.numbers["eps"])
        case "grid":
            return _grid(op.numbers, values[0])
        case "call":
            arguments = op.arguments(values)
            return FUNCTIONS[op.function()](arguments["x"]) if list(arguments) == ["x"] else FUNCTIONS[op.function()](**arguments)
        case "opaque":
            assert op.held is not None
            args = decode(op.numbers["args"], values)
            return op.held(*args, **{key: decode(value, values) for key, value in op.numbers["kwargs"].items()})
    raise ValueError(f"{op.name}: no op of the kind {op.kind!r} exists")


def _product(op: Op, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    if op.kind == "linear":
        return F.linear(x, kernel, bias)
    n = op.numbers
    padding = n["padding"] if isinstance(n["padding"], str) else tuple(n["padding"])
    return F.conv2d(x, kernel, bias, tuple(n["stride"]), padding, tuple(n["dilation"]), n["groups"])


def _integers(op: Op, x: Tensor) -> Tensor:
    """What an integer kernel computes: integer inputs and weights, a 32-bit bias, one multiplication per channel at the end."""
    step = torch.full((), op.numbers["input_scale"], device=x.device)
    whole = _product(op, torch.round(x / step), levels(op), op.tensors["bias32"].float())
    axis = whole.ndim - 1 if op.kind == "linear" else 1
    return whole * wide(step * op.tensors["scale"], whole.ndim, axis)


def _grid(n: Mapping[str, Any], x: Tensor) -> Tensor:
    if not n["live"]:
        return x
    scale = torch.full((), n["scale"], device=x.device)  # a tensor: CUDA would multiply by the reciprocal of a number
    if not n["divides"]:  # as PyTorch's kernel, and so the student, rounds
        return snapped(x, scale, n["low"] - n["zero"], n["high"] - n["zero"])
    return ((torch.round(x / scale) + n["zero"]).clamp(n["low"], n["high"]) - n["zero"]) * scale
