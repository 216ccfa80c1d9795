"""What calls that only move values become in ONNX: shapes, pieces, slices, paddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from dreamquant.quant.program import Op

if TYPE_CHECKING:
    from dreamquant.export.writer import Writer

Form = Callable[["Writer", Op, dict[str, Any]], Any]


def ints(value: Any, count: int = 2) -> list[int]:
    """Whole numbers from several, or from one that stands for `count`."""
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * count


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
    return [w.node("Gather", [a["x"], w.constant(np.int64(i), f"index/{i}")], f"{op.name}.{i}", axis=axis) for i in range(count)]


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
    for shift, dim in zip(ints(a["shifts"], 1), ints(a["dims"], 1), strict=True):
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


def _pixel_shuffle(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    return w.node("DepthToSpace", [a["x"]], op.name, blocksize=a["upscale_factor"], mode="CRD")


def _channel_shuffle(w: Writer, op: Op, a: dict[str, Any]) -> ir.Value:
    _, c, height, width = w.seen[0][op.name].shape
    grouped = w.node("Reshape", [a["x"], w.integers(-1, a["groups"], c // a["groups"], height, width)])
    return w.node("Reshape", [w.node("Transpose", [grouped], perm=[0, 2, 1, 3, 4]), w.integers(-1, c, height, width)], op.name)


MOVES: dict[str, Form] = {
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
    "pixel_shuffle": _pixel_shuffle,
    "channel_shuffle": _channel_shuffle,
}
