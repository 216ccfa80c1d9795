"""Commands as users give them, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamquant.cli import main

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = {
    "model", "recipe", "bits", "effort", "seed", "device", "seconds", "size_bytes", "fp", "quantized", "agreement", "kept", "provenance",
}  # fmt: skip


RTN = ["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--bits", "w4a4", "--device", "cpu"]


def failing(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must end with status 2 and without a traceback."""
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2, said
    return said


def run(argv: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-m", "dreamquant.cli", *argv], capture_output=True, text=True, env=environment, **settings)
