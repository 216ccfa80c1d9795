"""What the calls of a program become in ONNX. A function that is not here cannot be exported, and is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from dreamquant.quant.program import Op

if TYPE_CHECKING:
    from dreamquant.export.writer import Writer

Form = Callable[["Writer", Op, dict[str, Any]], Any]
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
    "softplus": "Softplus",
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


def _ints(value: Any, count: int = 2) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * count


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


def _softmax(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Softmax", [a["x"]], op.name, axis=a["dim"])


def _cat(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Concat", a["tensors"], op.name, axis=a["dim"])


def _stack(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    axis = a["dim"] % w.rank(op.name)
    return w.node("Concat", [w.node("Unsqueeze", [v, w.integers(axis)]) for v in a["tensors"]], op.name, axis=axis)


def _reshape(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("Reshape", [a["x"], w.integers(*w.shape(op))], op.name)


def _flatten(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    if a["start_dim"] == 1 and w.rank(op.name) == 2:
        return w.node("Flatten", [a["x"]], op.name, axis=1)
    return _reshape(w, op, a)


def _permute(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    rank = w.rank(op.name)
    return w.node("Transpose", [a["x"]], op.name, perm=[d % rank for d in a["dims"]])


def _transpose(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    order = list(range(w.rank(op.name)))
    first, second = a["dim0"] % len(order), a["dim1"] % len(order)
    order[first], order[second] = second, first
    return w.node("Transpose", [a["x"]], op.name, perm=order)


def _expand(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    shape = w.shape(op)
    if -1 not in shape:
        return w.node("Expand", [a["x"], w.integers(*shape)], op.name)
    if w.seen[0][op.name].shape[shape.index(-1)] != 2:
        raise ValueError(f"{op.name}: expand to a multiple of the batch has no ONNX form here")
    batch = w.node("Shape", [w.image], f"{op.name}.batch", start=0, end=1)
    sizes = w.node("Concat", [batch if size == -1 else w.integers(size) for size in shape], f"{op.name}.sizes", axis=0)
    return w.node("Expand", [a["x"], sizes], op.name)


def _pieces(w: Writer, op: Op, a: dict[str, Any]) -> list[ir.Value]:
    """chunk and split."""
    parts, axis = w.seen[0][op.name], a["dim"]
    found = w.node("Split", [a["x"], w.integers(*(part.shape[axis] for part in parts))], op.name, len(parts), axis=axis)
    return found if len(parts) > 1 else [found]


def _unbind(w: Writer, op: Op, a: dict[str, Any]) -> list[ir.Value]:
    count = len(w.seen[0][op.name])
    axis = a["dim"]
    return [w.node("Gather", [a["x"], w.constant(np.int64(i), f"index{i}")], f"{op.name}.{i}", axis=axis) for i in range(count)]


def _getitem(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    """Whole numbers, slices, None and an ellipsis; no tensors."""
    x, index = a["x"], a["index"]
    if isinstance(x, list):
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    if ... in index:
        at, rank = index.index(...), w.rank(op.inputs[0])
        filled = rank - sum(part is not None and part is not ... for part in index)
        index = (*index[:at], *[slice(None)] * filled, *index[at + 1 :])
    cuts, squeezed, axis = [], [], 0
    for part in index:
        if isinstance(part, bool) or not (part is None or isinstance(part, (int, slice))):
            raise ValueError(f"{op.name}: the index {part!r} has no ONNX form here")
        if isinstance(part, slice) and part != slice(None):
            cuts.append((part.start or 0, 2**62 if part.stop is None else part.stop, axis, part.step or 1))
        elif isinstance(part, int) and not isinstance(part, slice):
            cuts.append((part, 2**62 if part == -1 else part + 1, axis, 1))
            squeezed.append(axis)
        axis += part is not None
    if cuts:
        starts, stops, axes, steps = (w.integers(*values) for values in zip(*cuts, strict=True))
        x = w.node("Slice", [x, starts, stops, axes, steps])
    if squeezed:
        x = w.node("Squeeze", [x, w.integers(*squeezed)])
    kept = [part for part in index if part is None or isinstance(part, slice)]
    new = [number for number, part in enumerate(kept) if part is None]
    return w.node("Unsqueeze", [x, w.integers(*new)]) if new else x


def _roll(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    x, shape = a["x"], w.seen[0][op.name].shape
    if a["dims"] is None:
        raise ValueError(f"{op.name}: roll without dims has no ONNX form here")
    for shift, dim in zip(_ints(a["shifts"], 1), _ints(a["dims"], 1), strict=True):
        at = -shift % shape[dim]
        if at:
            axis = w.integers(dim)
            tail = w.node("Slice", [x, w.integers(at), w.integers(2**62), axis])
            x = w.node("Concat", [tail, w.node("Slice", [x, w.integers(0), w.integers(at), axis])], axis=dim)
    return x


def _pad(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    rank, pairs = w.rank(op.name), [tuple(a["pad"][i : i + 2]) for i in range(0, len(a["pad"]), 2)]
    if not any(a["pad"]):
        return a["x"]
    sides = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    if min(v for side in sides for v in side) < 0:
        raise ValueError(f"{op.name}: negative padding has no ONNX form here")
    counts = w.integers(*(s[0] for s in sides), *(s[1] for s in sides))
    value = [w.number(a["value"] or 0.0)] if a["mode"] == "constant" else []
    return w.node("Pad", [a["x"], counts, *value], op.name, mode=modes[a["mode"]])


def _window(op: Op, a: dict[str, Any]) -> dict[str, Any]:
    kernel, padding = _ints(a["kernel_size"]), _ints(a["padding"])
    strides = kernel if a["stride"] in (None, [], ()) else _ints(a["stride"])
    return {"kernel_shape": kernel, "strides": strides, "pads": [*padding, *padding], "ceil_mode": int(a["ceil_mode"])}


def _max_pool(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("MaxPool", [a["x"]], op.name, dilations=_ints(a["dilation"]), **_window(op, a))


def _avg_pool(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    window = _window(op, a)
    if tuple(window["kernel_shape"]) == tuple(w.seen[0][op.inputs[0]].shape[2:]) and not any(window["pads"]):
        return w.node("GlobalAveragePool", [a["x"]], op.name)
    return w.node("AveragePool", [a["x"]], op.name, count_include_pad=int(a["count_include_pad"]), **window)


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
    axes = list(range(rank)) if a["dim"] is None else sorted(d % rank for d in _ints(a["dim"], 1))
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


def _pixel_shuffle(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("DepthToSpace", [a["x"]], op.name, blocksize=a["upscale_factor"], mode="CRD")


def _channel_shuffle(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    _, c, height, width = w.seen[0][op.name].shape
    grouped = w.node("Reshape", [a["x"], w.integers(-1, a["groups"], c // a["groups"], height, width)])
    return w.node("Reshape", [w.node("Transpose", [grouped], perm=[0, 2, 1, 3, 4]), w.integers(-1, c, height, width)], op.name)


FORMS: dict[str, Form] = {
    "leaky_relu": _leaky,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    **dict.fromkeys(("relu6", "clamp", "hardtanh"), _clamp),
    "softmax": _softmax,
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("reshape", "unflatten", "squeeze", "unsqueeze"), _reshape),
    "flatten": _flatten,
    "permute": _permute,
    "transpose": _transpose,
    "expand": _expand,
    **dict.fromkeys(("chunk", "split"), _pieces),
    "unbind": _unbind,
    "getitem": _getitem,
    "roll": _roll,
    "pad": _pad,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(("mean", "sum"), _mean),
    "layer_norm": _layer_norm,
    "attention": _attention,
    "pixel_shuffle": _pixel_shuffle,
    "channel_shuffle": _channel_shuffle,
}
