"""Export to ONNX: packed weights, integer activations, 32-bit biases, in the form that stock ONNX Runtime runs on its integer kernels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from dreamquant import __version__
from dreamquant.export.writer import BOXES, ENDS, Writer
from dreamquant.folder import replacing
from dreamquant.quant.deploy import folded
from dreamquant.quant.quantized import QuantizedModel

if TYPE_CHECKING:
    from torch import Tensor

    from dreamquant.export.check import OnnxCheck

# INT4 came with operator set 21, INT2 with 25; the older a file may be, the more runtimes read it
OPSETS = {False: (21, 10), True: (25, 13)}


@dataclass(frozen=True)
class ExportReport:
    """What was written. `types` counts the layers whose weights are stored in each type."""

    path: str
    bytes: int
    opset: int
    types: Mapping[str, int]
    operators: Mapping[str, int]
    check: OnnxCheck | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def export(
    quantized: QuantizedModel, path: str | os.PathLike[str], check: bool = True, images: Tensor | None = None, two_bits: str = "int2"
) -> ExportReport:
    """Write `quantized.deployed()` as an ONNX file: "input" takes normalised images (batch, C, H, W), "logits" are floats.

    Weights of 3 and 4 bits are stored as INT4. Those of 2 bits are INT2, which needs operator set 25 and a runtime that has
    it, or INT4, which more runtimes read, with `two_bits="int4"`. With `check` the file is run on normalised `images`, or
    noise, and compared. Raises ValueError, naming the op, for a program with a part that has no ONNX form.
    """
    if two_bits not in ("int2", "int4"):
        raise ValueError(f"two_bits={two_bits!r}: choose 'int2' or 'int4'")
    boxes = BOXES | ({2: BOXES[4]} if two_bits == "int4" else {})
    deployed = quantized.deployed().to("cpu")
    writer = Writer(deployed, boxes)
    model, opset = _model(writer)
    _write(model, Path(path))
    layers = [op for op in deployed.program if op.kind in ("conv", "linear")]
    types = Counter(boxes[op.numbers["bits"]].__name__ if op.numbers["bits"] in boxes else "int8" for op in layers)
    operators = Counter(node.op_type for node in model.graph)
    checked = None
    if check:
        from dreamquant.export.check import check as compare

        checked = compare(quantized, path, images)
    return ExportReport(str(path), Path(path).stat().st_size, opset, dict(types), dict(operators), checked)


def export_float(quantized: QuantizedModel, path: str | os.PathLike[str]) -> None:
    """The same network with nothing quantized but its weights' values, in 32-bit floats: what speed and size are compared with."""
    _write(_model(Writer(folded(quantized).to("cpu"), floating=True))[0], Path(path))


def _model(writer: Writer) -> tuple[ir.Model, int]:
    deployed = writer.model
    for op in deployed.program:
        writer.write(op)
    last = writer.done[deployed.program[-1].name]
    logits = ir.Value(name=ENDS[1], type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", deployed.classes]))
    writer.nodes.append(ir.node("Identity", [last], outputs=[logits], name="end"))
    narrow = any(value.dtype == ir.DataType.INT2 for value in writer.initializers.values())
    opset, version = OPSETS[narrow]
    read = {value.name for node in writer.nodes for value in node.inputs if value is not None}
    kept = [value for name, value in writer.initializers.items() if name in read]
    name = deployed.name or "network"
    graph = ir.Graph([writer.image], [logits], nodes=writer.nodes, initializers=kept, opset_imports={"": opset}, name=name)
    model = ir.Model(graph, ir_version=version, producer_name="dreamquant", producer_version=__version__)
    facts = deployed.facts
    model.metadata_props.update({"mean": repr(list(facts.mean)), "std": repr(list(facts.std)), "model": facts.name})
    return model, opset


def _write(model: ir.Model, path: Path) -> None:
    with replacing(path) as temporary:
        ir.save(model, temporary)
        onnx.checker.check_model(str(temporary))
