"""Writer: ONNX nodes from ops, one value for each op. Layers and grids here; what calls become is in `forms`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from dreamquant.export.forms import write_call
from dreamquant.quant.program import Op, levels, weight
from dreamquant.quant.quantized import QuantizedModel, grid_of

# The type that codes are stored in; there is none of 3 bits
BOXES = {2: ml_dtypes.int2, 3: ml_dtypes.int4, 4: ml_dtypes.int4}
BATCHES = (2, 3)
ENDS = ("input", "logits")  # what the file's own input and output are called


class Writer:
    """Collects the nodes and initializers of a deployed program. `floating` leaves the quantization out.

    `boxes` maps bits to the type weights are stored in. Sizes are learnt by running two batches: what differs is the batch.
    """

    def __init__(self, model: QuantizedModel, boxes: Mapping[int, Any] = BOXES, floating: bool = False) -> None:
        self.model, self.boxes, self.floating = model, boxes, floating
        self.by = {op.name: op for op in model.program}
        self.readers: dict[str, list[Op]] = {}
        for op in model.program:
            for name in op.inputs:
                self.readers.setdefault(name, []).append(op)
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.done: dict[str, Any] = {}  # op name -> value, list of values, or what is no tensor
        self.seen = [model.values(torch.zeros(n, *model.shape, device=model.device)) for n in BATCHES]
        self.fixed: set[str] = set()  # ops that are the same for every image
        self.image = ir.Value(name=ENDS[0], type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", *model.shape]))

    def node(self, kind: str, inputs: Sequence[ir.Value | None], name: str = "", count: int = 1, **attributes: Any) -> Any:
        """Adds a node; its output, or its outputs where `count` is more than one.

        Values of ops keep the names of these, which no sign but letters, digits and _ is in; all other names have another one.
        """
        name = f"op/{name}" if name in ENDS else name or f"{kind}/{len(self.nodes)}"
        outputs = [ir.Value(name=name if count == 1 else f"{name}.{number}") for number in range(count)]
        self.nodes.append(ir.node(kind, list(inputs), attributes, outputs=outputs, name=f"n.{name}"))
        return outputs[0] if count == 1 else outputs

    def constant(self, array: Any, name: str = "") -> ir.Value:
        """An initializer; equal names are one."""
        name = name or f"c/{len(self.initializers)}"
        if name not in self.initializers:
            array = np.asarray(array)
            tensor = ir.Tensor(array, name=name)
            self.initializers[name] = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        return self.initializers[name]

    def integers(self, *values: int) -> ir.Value:
        """A constant vector of 64-bit integers."""
        return self.constant(np.array(values, np.int64), "i/" + "_".join(map(str, values)))

    def number(self, value: float) -> ir.Value:
        """A constant 32-bit float."""
        return self.constant(np.float32(value), f"f/{float(np.float32(value))!r}")

    def shape(self, op: Op) -> tuple[int, ...]:
        """The shape of an op's tensor, -1 for the axis that grows with the batch."""
        two, three = (tuple(seen[op.name].shape) for seen in self.seen)
        found = tuple(a if a == b else -1 for a, b in zip(two, three, strict=True))
        if found.count(-1) > 1:
            raise ValueError(f"{op.name}: more than one axis of {op.function()} grows with the batch; ONNX cannot say that here")
        return found

    def rank(self, name: str) -> int:
        """The number of axes of an op's tensor."""
        return int(self.seen[0][name].ndim)

    def write(self, op: Op) -> None:
        """Writes one op. Raises ValueError, naming it, for one without an ONNX form."""
        match op.kind:
            case "image":
                self.done[op.name] = self.image
            case "constant":
                self.fixed.add(op.name)
                self.done[op.name] = self.constant(_array(op.tensors["value"]), f"{op.name}.value")
            case "conv" | "linear":
                self.done[op.name] = self._layer(op, self.done[op.inputs[0]])
            case "bn":
                self.done[op.name] = self._batch_norm(op)
            case "grid":
                self.done[op.name] = self._grid(op, self.done[op.inputs[0]])
            case "call" if op.inputs and all(name in self.fixed for name in op.inputs):
                self.fixed.add(op.name)
                self.done[op.name] = self.constant(_array(self.seen[0][op.name]), f"{op.name}.value")
            case "call":
                self.done[op.name] = write_call(self, op)
            case _:
                raise ValueError(f"{op.name} ({op.kind}) has no ONNX form")

    def _grid(self, op: Op, x: ir.Value, name: str = "") -> ir.Value:
        """QuantizeLinear, Clip where the codes do not fill their bytes, DequantizeLinear."""
        n, name = op.numbers, name or op.name
        if not n["live"] or self.floating:
            return x
        base = 2 ** (n["bits"] - 1)  # codes are signed, bytes are not
        scale = self.number(n["scale"])
        zero = self._byte(n["zero"] + base)
        q = self.node("QuantizeLinear", [x, scale, zero], f"{name}.q")
        low, high = n["low"] + base, n["high"] + base
        if (low, high) != (0, 255) and not n.get("again"):
            q = self.node("Clip", [q, self._byte(low), self._byte(high)], f"{name}.clip")
        return self.node("DequantizeLinear", [q, scale, zero], name)

    def _byte(self, value: int) -> ir.Value:
        """A constant of 8 bits without a sign."""
        return self.constant(np.uint8(value), f"u/{value}")

    def _on_integers(self, op: Op) -> bool:
        """Whether a runtime can run a layer on integers: it reads a grid, and a convolution also writes one.

        Such a layer is never written with weights in floats: ONNX Runtime would quantize them again, symmetrically, and give
        other results.
        """
        if self.floating or "bias32" not in op.tensors:
            return False
        return op.kind == "linear" or all(reader.kind == "grid" for reader in self.readers.get(op.name, [op]))

    def _kernel(self, op: Op) -> ir.Value:
        """The weight, from codes in the narrowest type there is.

        For integer kernels: Cast to INT8, DequantizeLinear along the first axis. Zero points are subtracted before where the
        result fits in a byte, as a runtime does once, when it loads the file: kernels are faster with none.
        For float kernels: the same arithmetic in floats, because a DequantizeLinear would be computed at every run.
        """
        if self.floating:
            return self.constant(_array(weight(op)), f"{op.name}.weight")
        codes, zero, scale = (_array(op.tensors[key]) for key in ("codes", "zero", "scale"))
        axes = (-1,) + (1,) * (codes.ndim - 1)
        box = self.boxes.get(op.numbers["bits"])
        value = self.constant(codes if box is None else codes.astype(box), f"{op.name}.codes")
        if not self._on_integers(op):
            value = self.node("Cast", [value], f"{op.name}.wide", to=ir.DataType.FLOAT.value)
            value = self.node("Sub", [value, self.constant(zero.astype(np.float32).reshape(axes), f"{op.name}.shift")], f"{op.name}.levels")
            return self.node("Mul", [value, self.constant(scale.reshape(axes), f"{op.name}.scale")], f"{op.name}.weight")
        if zero.any() and _fits(op):
            value = self.node("Cast", [value], f"{op.name}.wide", to=ir.DataType.INT32.value)
            value = self.node("Sub", [value, self.constant(zero.astype(np.int32).reshape(axes), f"{op.name}.shift")], f"{op.name}.levels")
            zero, box = np.zeros_like(zero), np.int8
        if box is not None:
            value = self.node("Cast", [value], f"{op.name}.cast", to=ir.DataType.INT8.value)
        vectors = [self.constant(scale, f"{op.name}.scale"), self.constant(zero, f"{op.name}.zero")]
        return self.node("DequantizeLinear", [value, *vectors], f"{op.name}.weight", axis=0)

    def _bias(self, op: Op) -> ir.Value | None:
        """The bias; as 32-bit integers where the layer runs on integers."""
        t = op.tensors
        if "bias32" not in t:
            return self.constant(_array(t["bias"]), f"{op.name}.bias") if "bias" in t else None
        unit = np.float32(op.numbers["input_scale"]) * _array(t["scale"])
        if not self._on_integers(op):
            return self.constant((_array(t["bias32"]) * unit).astype(np.float32), f"{op.name}.bias")
        value = self.constant(_array(t["bias32"]), f"{op.name}.bias32")
        return self.node("DequantizeLinear", [value, self.constant(unit, f"{op.name}.unit")], f"{op.name}.bias", axis=0)

    def _layer(self, op: Op, x: ir.Value) -> ir.Value:
        inputs = [self._kernel(op), self._bias(op)]
        inputs = inputs if inputs[1] is not None else inputs[:1]
        if op.kind == "conv":
            n = op.numbers
            kernel = list(op.tensors["codes"].shape[2:])
            settings = {"kernel_shape": kernel, "strides": list(n["stride"]), "dilations": list(n["dilation"]), "group": n["groups"]}
            return self.node("Conv", [x, *inputs], op.name, pads=_pads(n["padding"], kernel, n["dilation"]), **settings)
        if self.rank(op.name) == 2:
            return self.node("Gemm", [x, *inputs], op.name, transB=1)
        # Gemm takes rows: the axes before the features become one, on the same grid as before
        rows = self.node("Reshape", [x, self.integers(-1, op.tensors["codes"].shape[1])], f"{op.name}.rows")
        grid = grid_of(self.by, op.inputs[0])
        if grid is not None:
            rows = self._grid(grid, rows, f"{op.name}.rows.grid")
        out = self.node("Gemm", [rows, *inputs], f"{op.name}.gemm", transB=1)
        return self.node("Reshape", [out, self.integers(*self.shape(op))], op.name)

    def _batch_norm(self, op: Op) -> ir.Value:
        """A BatchNorm that no layer could take in: it runs in floats."""
        t = {key: _array(value) for key, value in op.tensors.items()}
        full = {"weight": np.ones_like(t["mean"]), "bias": np.zeros_like(t["mean"]), **t}
        vectors = [self.constant(full[key], f"{op.name}.{key}") for key in ("weight", "bias", "mean", "var")]
        return self.node("BatchNormalization", [self.done[op.inputs[0]], *vectors], op.name, epsilon=op.numbers["eps"])


def _fits(op: Op) -> bool:
    """Whether code minus zero point is a signed byte, throughout."""
    whole = levels(op)
    return bool(whole.min() >= -128) and bool(whole.max() <= 127)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().contiguous().numpy()


def _pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding as ONNX has it: both starts, then both ends."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding == "same":  # PyTorch puts the odd one behind
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return [*padding, *padding]
