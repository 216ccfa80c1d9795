"""The demo: the digits network of the zoo, quantized without data, exported, and tested on real handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from sklearn.datasets import load_digits

from dreamquant.cli import show
from dreamquant.evaluate import LabelledImages
from dreamquant.export import onnx
from dreamquant.folder import replacing
from dreamquant.job import Job, quantize_job
from dreamquant.progress import progress_on
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.report.page import kilobytes, percent

HELD_OUT = 5  # every fifth digit was kept from training, see training/train_zoo.py


def run_demo(out: Path) -> None:
    """Quantize zoo:resnet-digits to W4A4 into `out`, with its accuracy before and after, as a job and as an ONNX file."""
    out.mkdir(parents=True, exist_ok=True)
    data = out / "digits.npz"
    write_digits(data)
    folder = out / "resnet-digits-w4a4"
    job = Job("zoo:resnet-digits", bits="w4a4", eval=str(data))
    console = Console()
    console.print("zoo:resnet-digits to 4-bit weights and activations; no data is read until the result is frozen", highlight=False)
    with progress_on(Console(stderr=True)) as progress:
        result, _ = quantize_job(job, folder, progress, "dreamquant demo")
    file = folder / "model.onnx"
    quantized = QuantizedModel.load(folder / "model.safetensors")
    onnx.export(quantized, file)
    show.result(result, folder)
    accuracy, count = onnx_accuracy(quantized, file, data)
    words = f"onnx:   {file}, {kilobytes(file.stat().st_size)}, {percent(accuracy)} of {count} real digits in ONNX Runtime"
    console.print(words, highlight=False, markup=False, soft_wrap=True)


def write_digits(path: Path) -> None:
    """scikit-learn's digits that training did not see, as bytes, in the form that --eval takes."""
    bunch = load_digits()
    x = (bunch.images * (255 / 16)).round().astype(np.uint8)[::HELD_OUT, :, :, None]  # (N, H, W, 1)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, x=x, y=bunch.target[::HELD_OUT])


def onnx_accuracy(quantized: QuantizedModel, file: Path, data: Path) -> tuple[float, int]:
    """The share of images that the ONNX file gets right in ONNX Runtime, and how many there are."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = count = 0
    for pixels, labels in LabelledImages.open(str(data)).batches(quantized.shape, 64):
        x = (pixels - torch.tensor(quantized.mean).view(1, -1, 1, 1)) / torch.tensor(quantized.std).view(1, -1, 1, 1)
        logits = session.run(None, {name: x.numpy()})[0]
        right += int((logits.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    return right / count, count
