"""The demo: the digits network of the zoo, quantized without data, exported, and tested on real handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor

from dreamquant.cli import show
from dreamquant.evaluate import LabelledImages, evaluate
from dreamquant.export import export
from dreamquant.export.check import session_of
from dreamquant.folder import replacing
from dreamquant.job import Job, quantize_job
from dreamquant.progress import progress_on
from dreamquant.quant.quantized import Facts, QuantizedModel
from dreamquant.report.page import kilobytes, percent

HELD_OUT = 5  # every fifth digit was kept from training, see training/train_zoo.py


def run_demo(out: Path) -> None:
    """Quantize zoo:resnet-digits to W4A4 into `out`, with its accuracy before and after, as a job and as an ONNX file."""
    torch.set_num_threads(1)  # on images of 8x8 pixels threads wait for each other longer than they work
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
    export(quantized, file, check=False)
    scores = evaluate(OnnxNetwork(file, quantized.facts), LabelledImages.open(data), reference=quantized.deployed())
    show.result(result, folder)
    words = f"onnx:   {file}, {kilobytes(file.stat().st_size)}: {percent(scores.top1)} of {scores.images} real digits in ONNX Runtime"
    console.print(words, highlight=False, markup=False, soft_wrap=True)


def write_digits(path: Path) -> None:
    """scikit-learn's digits that training did not see, as bytes, in the form that --eval takes."""
    bunch = load_digits()
    x = (bunch.images * (255 / 16)).round().astype(np.uint8)[::HELD_OUT, :, :, None]  # (N, H, W, 1)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, x=x, y=bunch.target[::HELD_OUT])


class OnnxNetwork:
    """An exported file in ONNX Runtime, in the form that `evaluate` takes."""

    def __init__(self, file: Path, facts: Facts) -> None:
        self.session = session_of(file)
        self.shape, self.mean, self.std, self.classes = facts.shape, facts.mean, facts.std, facts.classes
        self.device = torch.device("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"input": x.numpy()})[0])
