"""check: an exported file run in ONNX Runtime, against the simulation it was written from."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from dreamquant.quant.quantized import QuantizedModel

INTEGER = {
    "conv": ("QLinearConv", "ConvInteger", "ConvIntegerToFloat"),
    "linear": ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    "add": ("QLinearAdd",),
    "norm": (),
}
FLOATING = {
    "conv": ("Conv", "FusedConv", "NhwcFusedConv"),
    "linear": ("Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    "add": ("Add",),
    "norm": ("BatchNormalization",),
}
NOISE, BATCH, RUNS = 32, 16, 9


@dataclass(frozen=True)
class OnnxCheck:
    """How the file behaves. `integer` and `floating` count operators of the graph as the runtime optimised it."""

    images: int
    classes: int  # different first classes among these images: with one, agreement says nothing
    agreement: float  # share of images with the same first class
    difference: float  # the largest of a logit
    relative: float  # norm of the difference over norm of the logits
    integer: Mapping[str, int]
    floating: Mapping[str, int]
    coverage: float  # integer operators over all convolutions, linears, additions and lone BatchNorms
    bytes: int
    milliseconds: float  # median of one image on one thread
    float_bytes: int | None
    float_milliseconds: float | None
    runtime: str

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def session_of(path: str | os.PathLike[str], optimised: Path | None = None, threads: int = 1) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU whose integer kernels do not saturate.

    On x86 without VNNI instructions products of unsigned and signed bytes overflow 16 bits; `x64quantprecision` says not to.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has a class of its own for every way to fail
        raise ValueError(f"ONNX Runtime {onnxruntime.__version__} does not load {path}: {str(error).splitlines()[0]}") from None


def check(quantized: QuantizedModel, onnx_path: str | os.PathLike[str], x: Tensor | None = None, compare_float: bool = True) -> OnnxCheck:
    """Run the file on normalised images (N, C, H, W), or seeded noise, and compare with `quantized.deployed()`.

    With `compare_float` size and time are also told of the network in floats. Raises ValueError for a file that does not load,
    no images, or images that hold values which are not finite.
    """
    from dreamquant.export.onnx import export_float

    images = _noise(quantized) if x is None else x.detach().float().cpu()
    if not len(images) or not images.isfinite().all():
        raise ValueError(f"{len(images)} images to check the file on, {int((~images.isfinite()).sum())} of their values not finite")
    deployed = quantized.deployed().to("cpu")
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        session = session_of(onnx_path, optimised)
        integer, floating = _coverage(optimised)
        parts = images.split(BATCH)
        theirs = np.concatenate([session.run(["logits"], {"input": part.numpy()})[0] for part in parts])
        ours = torch.cat([deployed(part) for part in parts]).numpy()
        one = images[:1].numpy()
        float_bytes = float_time = None
        if compare_float:
            export_float(quantized, Path(folder) / "float.onnx")
            float_bytes = (Path(folder) / "float.onnx").stat().st_size
            float_time = _milliseconds(session_of(Path(folder) / "float.onnx"), one)
        taken = _milliseconds(session, one)
    done, total = sum(integer.values()), sum(integer.values()) + sum(floating.values())
    return OnnxCheck(
        images=len(images),
        classes=len(np.unique(ours.argmax(1))),
        agreement=float((theirs.argmax(1) == ours.argmax(1)).mean()),
        difference=float(np.abs(theirs - ours).max()),
        relative=float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), 1e-30)),
        integer=integer,
        floating=floating,
        coverage=done / total if total else 0.0,
        bytes=Path(onnx_path).stat().st_size,
        milliseconds=taken,
        float_bytes=float_bytes,
        float_milliseconds=float_time,
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


def _noise(quantized: QuantizedModel) -> Tensor:
    """Uniform pixels, seeded, as the network takes them."""
    pixels = torch.rand(NOISE, *quantized.shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (quantized.mean, quantized.std))
    return (pixels - mean) / std


def _coverage(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Convolutions, linears, additions and BatchNorms of an optimised graph on integers, and in floats."""
    count = Counter(node.op_type for node in onnx.load(path).graph.node)
    return tuple({kind: sum(count[name] for name in names) for kind, names in table.items()} for table in (INTEGER, FLOATING))  # type: ignore[return-value]


def _milliseconds(session: onnxruntime.InferenceSession, x: np.ndarray[Any, Any]) -> float:
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        session.run(["logits"], {"input": x})
        times.append(time.perf_counter() - begun)
    return 1000 * median(times)
