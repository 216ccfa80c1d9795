"""What the calls of a program become in ONNX: arithmetic, activations, pools, attention; what only moves values is in `moves`.

A function that is in neither cannot be exported, and is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from dreamquant.export.moves import MOVES, Form, ints
from dreamquant.quant.program import Op

if TYPE_CHECKING:
    from dreamquant.export.writer import Writer

SAME = {  # functions of one tensor that ONNX has under another name
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "neg": "Neg",
    "mish": "Mish",
    "hardswish": "HardSwish",
}
PAIRS = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "matmul": "MatMul"}


def write_call(w: Writer, op: Op) -> Any:
    """Writes a call; its value, a list of values, or the plain value of what is no tensor."""
    value = w.seen[0][op.name]
    if not _tensors(value):
        return value  # a size: where it is used, shapes are known
    name = op.function()
    arguments = op.arguments([w.done[source] for source in op.inputs])
    if name in SAME:
        return w.node(SAME[name], [arguments["x"]], op.name)
    if name in PAIRS:
        return _pair(w, op, arguments)
    if name not in FORMS:
        raise ValueError(f"{op.name}: {name} has no ONNX form here; keep the model in dreamquant's own format")
    return FORMS[name](w, op, arguments)


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and bool(value) and all(isinstance(v, Tensor) for v in value))


def _pair(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
        raise ValueError(f"{op.name}: {op.function()} with {a} has no ONNX form here")
    x, y = (v if isinstance(v, ir.Value) else w.number(v) for v in (a["x"], a["exponent"] if "exponent" in a else a["other"]))
    return w.node(PAIRS[op.function()], [x, y], op.name)


def _leaky(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("LeakyRelu", [a["x"]], op.name, alpha=float(a["negative_slope"]))


def _elu(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Elu", [a["x"]], op.name, alpha=float(a["alpha"]))


def _gelu(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Gelu", [a["x"]], op.name, approximate=a["approximate"])


def _silu(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Mul", [a["x"], w.node("Sigmoid", [a["x"]], f"{op.name}.gate")], op.name)


def _hardsigmoid(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("HardSigmoid", [a["x"]], op.name, alpha=1 / 6, beta=0.5)


def _clamp(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    limits = (0.0, 6.0) if op.function() == "relu6" else (a["min"], a["max"])
    return w.node("Clip", [a["x"], *(None if limit is None else w.number(limit) for limit in limits)], op.name)


def _softplus(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    if a["beta"] == 1:
        return w.node("Softplus", [a["x"]], op.name)
    beta = w.number(a["beta"])
    inner = w.node("Softplus", [w.node("Mul", [a["x"], beta], f"{op.name}.scaled")], f"{op.name}.soft")
    return w.node("Div", [inner, beta], op.name)


def _softmax(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Softmax" if op.function() == "softmax" else "LogSoftmax", [a["x"]], op.name, axis=a["dim"])


def _window(w: Writer, op: Op, a: dict[str, Any]) -> tuple[dict[str, Any], list[int], list[int]]:
    """Kernel and strides, padding, and how far the last windows reach beyond it, which `ceil_mode` allows.

    ONNX has a ceil_mode, too; runtimes differ from PyTorch in what it does at the border, so it is never written.
    """
    kernel, padding = ints(a["kernel_size"]), ints(a["padding"])
    strides = kernel if a["stride"] in (None, [], ()) else ints(a["stride"])
    reach = [d * (k - 1) + 1 for d, k in zip(ints(a.get("dilation", 1)), kernel, strict=True)]
    before, after = (w.seen[0][name].shape[2:] for name in (op.inputs[0], op.name))
    sizes = zip(before, after, strides, reach, padding, strict=True)
    beyond = [max(0, (out - 1) * stride + length - (size + 2 * pad)) for size, out, stride, length, pad in sizes]
    return {"kernel_shape": kernel, "strides": strides}, padding, beyond


def _pads(padding: list[int], beyond: list[int]) -> list[int]:
    """Both starts, then both ends."""
    return [*padding, *(p + more for p, more in zip(padding, beyond, strict=True))]


def _max_pool(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    window, padding, beyond = _window(w, op, a)
    return w.node("MaxPool", [a["x"]], op.name, dilations=ints(a["dilation"]), pads=_pads(padding, beyond), **window)


def _avg_pool(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    """PyTorch counts what is padded, where it is told to, and never what lies beyond."""
    window, padding, beyond = _window(w, op, a)
    if tuple(window["kernel_shape"]) == tuple(w.seen[0][op.inputs[0]].shape[2:]) and not any(padding):
        return w.node("GlobalAveragePool", [a["x"]], op.name)
    x, counted = a["x"], bool(a["count_include_pad"])
    if any(beyond) and counted and any(padding):
        x = w.node("Pad", [x, w.integers(0, 0, *padding, 0, 0, *padding), w.number(0.0)], f"{op.name}.padded", mode="constant")
        padding = [0, 0]
    return w.node("AveragePool", [x], op.name, pads=_pads(padding, beyond), count_include_pad=int(counted and not any(beyond)), **window)


def _adaptive(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    """Adaptive pools whose windows are all alike."""
    before, after = w.seen[0][op.inputs[0]].shape[2:], w.seen[0][op.name].shape[2:]
    average = "avg" in op.function()
    if tuple(after) == (1, 1):
        return w.node("GlobalAveragePool" if average else "GlobalMaxPool", [a["x"]], op.name)
    if tuple(after) == tuple(before):
        return a["x"]
    if any(b % s for b, s in zip(before, after, strict=True)):
        return _uneven(w, op, a["x"], tuple(before), tuple(after))
    kernel = [b // s for b, s in zip(before, after, strict=True)]
    return w.node("AveragePool" if average else "MaxPool", [a["x"]], op.name, kernel_shape=kernel, strides=kernel)


def _uneven(w: Writer, op: Op, x: ir.Value, before: tuple[int, ...], after: tuple[int, ...]) -> ir.Value:
    """An adaptive average is a product with a fixed matrix along each axis."""
    if "avg" not in op.function():
        raise ValueError(f"{op.name}: adaptive_max_pool2d from {before} to {after} has no ONNX form here")
    rows, columns = (_averages(b, s) for b, s in zip(before, after, strict=True))
    return w.node("MatMul", [w.constant(rows), w.node("MatMul", [x, w.constant(columns.T.copy())])], op.name)


def _averages(before: int, after: int) -> np.ndarray[Any, Any]:
    matrix = np.zeros((after, before), np.float32)
    for i in range(after):
        start, stop = i * before // after, -(-(i + 1) * before // after)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def _mean(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    """A mean over the places of images is a pool, which integer kernels have."""
    rank = w.rank(op.inputs[0])
    axes = list(range(rank)) if a["dim"] is None else sorted(d % rank for d in ints(a["dim"], 1))
    if rank == 4 and axes == [2, 3] and op.function() == "mean":
        pooled = w.node("GlobalAveragePool", [a["x"]], f"{op.name}.pool")
        return pooled if a["keepdim"] else w.node("Flatten", [pooled], op.name, axis=1)
    kind = "ReduceMean" if op.function() == "mean" else "ReduceSum"
    return w.node(kind, [a["x"], w.integers(*axes)], op.name, keepdims=int(a["keepdim"]))


def _layer_norm(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    shape = tuple(a["normalized_shape"])
    scale = a["weight"] if a["weight"] is not None else w.constant(np.ones(shape, np.float32), f"{op.name}.ones")
    bias = [a["bias"]] if a["bias"] is not None else []
    return w.node("LayerNormalization", [a["x"], scale, *bias], op.name, axis=-len(shape), epsilon=a["eps"])


def _attention(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    """softmax(q k^T s + mask) v, written out."""
    if a["is_causal"]:
        raise ValueError(f"{op.name}: causal attention has no ONNX form here")
    rank, width = w.rank(op.name), w.seen[0][op.inputs[0]].shape[-1]
    order = [*range(rank - 2), rank - 1, rank - 2]
    scale = width**-0.5 if a["scale"] is None else a["scale"]
    scores = w.node("MatMul", [a["query"], w.node("Transpose", [a["key"]], perm=order)])
    scores = w.node("Mul", [scores, w.number(scale)])
    if a["attn_mask"] is not None:
        scores = w.node("Add", [scores, a["attn_mask"]])
    return w.node("MatMul", [w.node("Softmax", [scores], axis=-1), a["value"]], op.name)


FORMS: dict[str, Form] = {
    **MOVES,
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    **dict.fromkeys(("relu6", "clamp", "hardtanh"), _clamp),
    "softplus": _softplus,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(("mean", "sum"), _mean),
    "layer_norm": _layer_norm,
    "attention": _attention,
}
