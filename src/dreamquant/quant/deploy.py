"""deployed: from the program as it was trained to the program as integer kernels run it.

BatchNorm goes into the scales of the layer before it, exactly: a negative factor turns a code into its complement and the
zero point z into -1 - z. Biases become 32-bit integers in units of input scale x weight scale. A ReLU or clamp before a
grid becomes the grid's own limits. Every grid is live and stands again behind each op that moves values. Grouped
convolutions of 8 bits lose their zero points, for which kernels are many times slower: their weights are rounded again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dreamquant.quant.program import MOVES, Op, levels, wide
from dreamquant.quant.quantized import QuantizedModel, grid_of

LARGEST = 2**31 - 1
PRODUCTS = ("matmul", "linear")
TUPLES = ("chunk", "split", "unbind")  # moves whose value is several tensors: the grid stands behind the choice of one


def deployed(model: QuantizedModel) -> QuantizedModel:
    """The program as integer kernels run it; itself where it is one already."""
    if model.placement == "deployed":
        return model
    program = _without_clamps(_folded(model.program))
    return replace(model, program=tuple(_whole(program)), placement="deployed")


def folded(model: QuantizedModel) -> QuantizedModel:
    """The program as it was trained, each BatchNorm that alone reads a layer in that layer, and nothing else changed."""
    return replace(model, program=tuple(_folded(model.program)))


def in_float(model: QuantizedModel) -> dict[str, str]:
    """What integer kernels will not run of the deployed program though activations have bits, and why, by layer or op."""
    program = deployed(model).program
    by, found = {op.name: op for op in program}, dict[str, str]()
    if all(op.kind != "grid" for op in program):
        return found
    for op in program:
        if op.kind in ("conv", "linear") and "bias32" not in op.tensors:
            found[op.numbers["layer"]] = "it reads values that are on no grid, so it runs in float"
        elif op.kind == "bn":
            found[op.name] = "no layer alone before it takes this BatchNorm in, so it runs in float"
        elif op.kind == "call" and op.function() in PRODUCTS and any(by[name].kind == "constant" for name in op.inputs):
            found[op.name] = f"{op.function()} with weights that are no module's, so they stay in float"
    return found


def _readers(program: Iterable[Op]) -> dict[str, list[Op]]:
    found: dict[str, list[Op]] = {}
    for op in program:
        for name in op.inputs:
            found.setdefault(name, []).append(op)
    return found


def _renamed(op: Op, same: dict[str, str]) -> Op:
    return replace(op, inputs=tuple(same.get(name, name) for name in op.inputs))


def _folded(program: tuple[Op, ...]) -> list[Op]:
    """Each BatchNorm that alone reads a layer goes into that layer."""
    readers, by = _readers(program), {op.name: op for op in program}
    folds: dict[str, Op] = {}
    for op in program:
        if op.kind == "bn" and by[op.inputs[0]].kind in ("conv", "linear") and len(readers[op.inputs[0]]) == 1:
            layer = by[op.inputs[0]]
            if layer.kind == "conv" or layer.numbers["rows"]:  # of more axes, BatchNorm's channels are not the layer's outputs
                folds[layer.name] = op
    same = {bn.name: layer for layer, bn in folds.items()}
    result = []
    for op in program:
        if op.name in same:
            continue
        result.append(_renamed(_fold(op, folds[op.name]) if op.name in folds else op, same))
    return result


def _fold(layer: Op, bn: Op) -> Op:
    t, b = dict(layer.tensors), bn.tensors
    one = torch.ones_like(b["mean"], dtype=torch.float64)
    factor = b.get("weight", one).double() / (b["var"].double() + bn.numbers["eps"]).sqrt()
    shift = b.get("bias", one * 0).double() - b["mean"].double() * factor
    negative = factor < 0
    t["codes"] = torch.where(negative.view(-1, *[1] * (t["codes"].ndim - 1)), ~t["codes"], t["codes"])
    t["zero"] = torch.where(negative, ~t["zero"], t["zero"])
    t["bias"] = (shift + t.get("bias", one * 0).double() * factor).float()
    t["scale"] = (t["scale"].double() * factor.abs()).float()
    return replace(layer, tensors=t)


def _limits(op: Op) -> tuple[float, float] | None:
    """What an op cuts values to; None for an op that does something else."""
    match op.function():
        case "relu":
            return 0.0, math.inf
        case "relu6":
            return 0.0, 6.0
        case "clamp" | "hardtanh":
            low, high = op.numbers["arguments"]["min"], op.numbers["arguments"]["max"]
        case _:
            return None
    if isinstance(low, dict) or isinstance(high, dict):
        return None
    return -math.inf if low is None else low, math.inf if high is None else high


def _without_clamps(program: list[Op]) -> list[Op]:
    """Rounding is monotonous: the rounded clamped value is the rounded value clamped between the rounded limits."""
    readers, by = _readers(program), {op.name: op for op in program}
    cut = {}
    for op in program:
        limits, reading = _limits(op), readers.get(op.name)
        if limits and reading and all(reader.kind == "grid" for reader in reading):
            cut[op.name] = limits
    result = []
    for op in program:
        if op.name in cut:
            continue
        if op.kind == "grid" and op.inputs[0] in cut:
            n = dict(op.numbers)
            low, high = (_code(n, limit) for limit in cut[op.inputs[0]])
            op = replace(op, inputs=by[op.inputs[0]].inputs, numbers={**n, "low": low, "high": high})
        result.append(op)
    return result


def _code(grid: dict[str, Any], value: float) -> int:
    """The code of one number."""
    if math.isinf(value):
        return int(grid["high"] if value > 0 else grid["low"])
    quotient = torch.tensor(value) / torch.tensor(grid["scale"])
    return int((quotient.round() + grid["zero"]).clamp(grid["low"], grid["high"]))


def _whole(program: list[Op]) -> Iterable[Op]:
    """Grids live, and again behind moves; layers that read a grid with a 32-bit bias."""
    live = [replace(op, numbers={**op.numbers, "live": True, "divides": True}) if op.kind == "grid" else op for op in program]
    by = {op.name: op for op in live}
    readers = _readers(live)
    same: dict[str, str] = {}
    for op in live:
        grid = grid_of(by, op.inputs[0]) if op.inputs else None
        if op.kind in ("conv", "linear") and grid is not None:
            if op.kind == "conv" and op.numbers["groups"] > 1 and op.numbers["bits"] == 8:
                op = _without_zero_points(op)
            op = _with_integers(op, float(grid.numbers["scale"]))
        yield _renamed(op, same)
        if op.kind == "call" and op.function() in MOVES and op.function() not in TUPLES and grid_of(by, op.name) and op.name in readers:
            assert grid is not None
            again = f"{op.name}.grid"
            yield Op("grid", again, (op.name,), {**grid.numbers, "again": True})
            same[op.name] = again


def _without_zero_points(op: Op) -> Op:
    """A layer whose levels are signed bytes; a channel whose levels were not takes a coarser scale."""
    whole = levels(op).double()
    ratio = (whole.flatten(1).abs().amax(1) / 127).clamp_min(1)
    codes = torch.round(whole / wide(ratio, whole.ndim)).to(torch.int8)
    scale = (op.tensors["scale"].double() * ratio).float()
    return replace(op, tensors={**op.tensors, "codes": codes, "zero": torch.zeros_like(op.tensors["zero"]), "scale": scale})


def _with_integers(op: Op, step: float) -> Op:
    """A layer with its bias as integers. A channel whose bias does not fit in 32 bits takes a coarser scale."""
    t = dict(op.tensors)
    scale = t["scale"].double().clamp_min(1e-30)
    bias = t.pop("bias", torch.zeros_like(t["scale"])).double()
    coarse = torch.maximum(scale, bias.abs() / (step * (LARGEST // 2)))
    t["codes"] = _coarser(t["codes"], t["zero"], scale / coarse)
    t["scale"] = coarse.float()
    # the unit that is written into files: a product of two 32-bit floats, itself one
    unit = (torch.tensor(step, device=scale.device) * t["scale"]).double()
    t["bias32"] = torch.round(bias / unit).clamp(-LARGEST, LARGEST).to(torch.int32)
    return replace(op, numbers={**op.numbers, "input_scale": step}, tensors=t)


def _coarser(codes: Tensor, zero: Tensor, ratio: Tensor) -> Tensor:
    if bool((ratio == 1).all()):
        return codes
    shape = (-1, *[1] * (codes.ndim - 1))
    levels = (codes.double() - zero.double().view(shape)) * ratio.view(shape)
    return (torch.round(levels) + zero.double().view(shape)).to(torch.int8)
