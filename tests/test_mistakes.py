"""What goes wrong is told in a line or two, before the work where it can be."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from commands import RTN, failing, run
from dreamquant import choose, job
from dreamquant.cli import main, told
from dreamquant.job import Job, quantize_job


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["quantize", "zoo:nothing"], "nothing"),
        (["quantize", "zoo:resnet-digits", "--recipe", "syng"], "did you mean synq"),
        (["quantize", "zoo:resnet-digits", "--recipe", "nonsense_on:rtn"], "unknown recipe modifier"),
        (["quantize", "zoo:resnet-digits", "--recipe", "absent.py:mine"], "no file absent.py"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--bits", "four"], "four"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--bits", "w9a4"], "weights take 2 to 8 bits"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--ends", "0"], "ends of 0 bits"),
        (["quantize", "zoo:resnet-digit", "--recipe", "rtn"], "did you mean resnet-digits"),
        (["quantize", "net.py:make", "--shape", "3,8,8"], "no file net.py"),
        (["quantize", "zoo:resnet-digits", "--weights", "absent.safetensors"], "no file absent.safetensors"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--shape", "3,8,8"], "give --shape C,H,W"),
        (["quantize", "zoo:resnet-digits", "--effort", "slow"], "slow"),
        (["quantize", "zoo:resnet-digits", "--seed", "x"], "--seed"),
        (["quantize", "zoo:resnet-digits", "--nonsense"], "--nonsense"),
        (["quantize", "zoo:resnet-digits", "--shape", "3,32"], "--shape '3,32'"),
        (["quantize", "zoo:resnet-digits", "--mean", "a"], "--mean 'a'"),
        (["quantize", "zoo:resnet-digits", "--device", "tpu"], "choose auto, cpu, cuda"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--eval", "absent.npz"], "absent.npz"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--set", "synthesis"], "part.field=value"),
        (["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--set", "synthesis.nothing=1"], "nothing"),
        (["quantize"], "MODEL"),
        (["evaluate", "zoo:resnet-digits"], "--eval"),
        (["evaluate", "absent", "--eval", "absent.npz"], "no folder absent"),
        (["export", "absent"], "is not the folder of a result"),
        (["report", "absent"], "is not the folder of a result"),
        (["recipes", "absent"], "absent"),
        (["bench", "absent.py", "--out", "results"], "absent.py"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_told_in_a_line(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in failing(argv, capsys)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_data_of_other_classes_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "eleven.npz", tmp_path / "out"
    np.savez(data, x=np.zeros((11, 8, 8, 1), np.uint8), y=np.arange(11))
    assert "class 10; the network knows 0 to 9" in failing([*RTN, "--eval", str(data), "--out", str(out)], capsys)
    assert not out.exists()


def small_net(folder: Path, layers: str) -> Path:
    """A file whose function `make` returns these layers, one after the other."""
    file = folder / "net.py"
    file.write_text(f"import torch.nn as nn\n\ndef make():\n    return nn.Sequential({layers})\n")
    return file


def test_a_network_that_takes_no_images_is_not_evaluated(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = (
        small_net(tmp_path, "nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)"),
        tmp_path / "out",
    )
    facts = ["--shape", "4,8,8", "--mean", "0.5,0.5,0.5,0.5", "--std", "0.2,0.2,0.2,0.2"]
    argv = ["quantize", f"{file}:make", *facts, "--recipe", "rtn", "--out", str(out)]
    assert "takes 4 channels and images have 1 or 3: it can be quantized without --eval" in failing([*argv, "--eval", str(digits)], capsys)
    assert not out.exists()
    assert main(argv) == 0


def test_what_could_not_be_saved_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = (
        small_net(tmp_path, "nn.Conv2d(1, 4, 3), nn.SELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)"),
        tmp_path / "out",
    )
    facts = ["--shape", "1,8,8", "--mean", "0.5", "--std", "0.25"]
    assert "no form for _1 (SELU)" in failing(["quantize", f"{file}:make", *facts, "--recipe", "rtn", "--out", str(out)], capsys)
    assert not out.exists()


def test_folders_that_are_not_ours_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "did not write" in failing([*RTN, "--out", str(tmp_path)], capsys)
    assert "is a file" in failing([*RTN, "--out", str(tmp_path / "thesis.tex")], capsys)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_full_disk_nan_and_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> None:
        def stop(*_: object) -> None:
            raise error

        monkeypatch.setattr(job, "_quantize", stop)

    argv = [*RTN, "--out", str(tmp_path / "out")]
    for full in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")):
        raising(full)
        assert "no space left" in failing(argv, capsys)
    error = FloatingPointError("loss term KL is not finite in pixels.3")
    error.add_note("step 2 of rtn: FineTune")
    raising(error)
    said = failing(argv, capsys)
    assert "loss term KL" in said and "step 2 of rtn" in said
    raising(KeyboardInterrupt())
    assert main(argv) == 130
    assert "the same command resumes" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(argv) == 0  # what stopped before does not stand in the way


@pytest.mark.parametrize("number", [errno.EROFS, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_what_the_system_refuses_is_told_with_its_file(number: int) -> None:
    (line,) = told(OSError(number, os.strerror(number), "results/x.json")) or [""]
    assert line == f"error: results/x.json: {os.strerror(number).lower()}"
    (line,) = told(OSError(errno.EDQUOT, "Disk quota exceeded", "results/x.json")) or [""]
    assert "no space left on the disk for results/x.json" in line
    assert told(FileNotFoundError("no weights")) == ["error: no weights"]


def test_folders_that_cannot_be_made_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("dangling", "loop", "x" * 300):
        assert f"{tmp_path / name}: " in failing([*RTN, "--out", str(tmp_path / name)], capsys)


def test_our_own_errors_keep_their_traceback() -> None:
    assert told(OSError("could not get source code")) is None
    assert told(KeyError("x")) is None and told(RuntimeError("x")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def bad(bits):\n    return {}['x']", r"r\.py:bad raised KeyError: 'x'"),
        ("def bad(bits, strength):\n    return 1", r"r\.py:bad raised TypeError: bad\(\) missing 1 required .* 'strength'"),
        ("def bad(bits):\n    exit(0)", r"r\.py:bad raised SystemExit: 0; keep what ends the program under"),
        ("exit(0)", r"r\.py failed when it was loaded: SystemExit: 0; keep what ends the program under"),
    ],
)
def test_a_function_that_fails_is_told_with_its_file(text: str, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "r.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        choose.chosen(f"{file}:bad", "w4a4", "fast", None)


def test_data_of_one_name_or_of_none_is_refused(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(digits, tmp_path)
    both = (str(digits), str(tmp_path / digits.name))
    with pytest.raises(ValueError, match="two are the same"):
        quantize_job(Job("zoo:resnet-digits", "rtn", also=both), tmp_path / "out")
    assert "--eval is empty" in failing([*RTN, "--eval", "", "--out", str(tmp_path / "out")], capsys)
    assert "--eval is empty" in failing(["evaluate", "zoo:resnet-digits", "--eval", ""], capsys)
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    answer = run(["quantize", "zoo:resnet-digits", "--recipe", "nothing"], cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: unknown recipe 'nothing'") and answer.stdout == ""
