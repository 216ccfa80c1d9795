"""The command line: what it promises to scripts, and how it tells mistakes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import CONTRACT, ROOT, RTN, failing, run
from dreamquant import choose, job
from dreamquant.cli import main
from dreamquant.cli.bench import file_name
from dreamquant.folder import claimed, write_json
from dreamquant.job import Job, quantize_job


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The folder of a finished job."""
    folder = tmp_path_factory.mktemp("job") / "out"
    assert main([*RTN, "--eval", str(digits), "--out", str(folder)]) == 0
    return folder


# --- a job from end to end


def test_quantize_fills_the_folder(made: Path) -> None:
    assert {"model.safetensors", "result.json", "report.html"} <= {entry.name for entry in made.iterdir()}
    assert not (made / ".work").exists()
    assert not list(made.glob("*.part")) and not list(made.glob(".*.safetensors.*"))
    result = json.loads((made / "result.json").read_text())
    assert set(result) >= CONTRACT
    assert set(result["seconds"]) >= {"synthesis", "quantize", "total"}
    assert result["seconds"]["total"] == pytest.approx(sum(v for k, v in result["seconds"].items() if k != "total"))
    assert result["size_bytes"]["quantized"] == (made / "model.safetensors").stat().st_size < result["size_bytes"]["fp32"] / 3
    assert result["fp"]["top1"] > 0.95
    for share in (result["quantized"]["top1"], result["agreement"], result["kept"], result["deployed"]["top1"]):
        assert 0.5 < share <= 1
    assert (result["eval_images"], result["eval_classes"]) == (360, 10)
    top1 = result["quantized"]["top1"]
    assert result["standard_error"] == pytest.approx((top1 * (1 - top1) / 360) ** 0.5)
    assert result["provenance"]["seed"] == 0 and "rtn" in result["provenance"]["recipe"]
    page = (made / "report.html").read_text()
    assert "<svg" in page and "conv1" in page


def test_the_noise_of_each_layer_is_measured(made: Path) -> None:
    details = json.loads((made / "report.json").read_text())
    assert len(details["layers"]) == 8  # seven convolutions and a linear layer
    assert all(5 < layer["sqnr_db"] < 60 for layer in details["layers"])
    assert {layer["weight_bits"] for layer in details["layers"]} == {4}
    assert sum(layer["bytes"] for layer in details["layers"]) < (made / "model.safetensors").stat().st_size


def test_the_same_command_again_shows_the_result(made: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamp = (made / "result.json").stat().st_mtime_ns
    assert main([*RTN, "--eval", str(digits), "--out", str(made)]) == 0
    said = capsys.readouterr()
    assert "finished result of this command" in said.err and "accuracy, quantized" in said.out
    assert re.search(r"test images.* 360 .*of 10 classes; accuracies ± \d\.\d points", said.out)
    assert (made / "result.json").stat().st_mtime_ns == stamp


def test_another_command_does_not_touch_the_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failing([*RTN, "--seed", "1", "--out", str(made)], capsys)
    assert "another command (seed differs)" in said and "--out" in said
    assert "recipe differs" in failing([*RTN, "--ends", "8", "--out", str(made)], capsys)


def test_evaluation_can_be_added_later(made: Path, digits: Path, tmp_path: Path) -> None:
    before = tmp_path / "out"
    assert main([*RTN, "--out", str(before)]) == 0
    result = json.loads((before / "result.json").read_text())
    assert result["eval_images"] is None and result["standard_error"] is None
    assert result["fp"] is None and result["quantized"] is None and result["agreement"] is None and result["kept"] is None
    weights = (before / "model.safetensors").read_bytes()
    assert weights == (made / "model.safetensors").read_bytes()  # same seed, same machine, same bits
    assert main([*RTN, "--eval", str(digits), "--out", str(before)]) == 0
    after = json.loads((before / "result.json").read_text())
    assert after["quantized"] == json.loads((made / "result.json").read_text())["quantized"]
    assert (before / "model.safetensors").read_bytes() == weights


def test_data_that_changed_is_measured_again(digits: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "out"
    argv = [*RTN, "--eval", str(data), "--out", str(out)]
    with np.load(digits) as arrays:
        x, y = arrays["x"], arrays["y"]

    def images_and_float(x: np.ndarray, y: np.ndarray) -> tuple[int, float]:
        np.savez(data, x=x, y=y)
        assert main(argv) == 0
        found = json.loads((out / "result.json").read_text())
        return found["eval_images"], found["fp"]["top1"]

    assert images_and_float(x, y)[0] == 360
    weights = (out / "model.safetensors").read_bytes()
    assert images_and_float(x[:100], y[:100])[0] == 100
    count, share = images_and_float(x[:100], (y[:100] + 1) % 10)
    assert count == 100 and share < 0.2, "other labels of as many images"
    upright = images_and_float(x[:100], y[:100])[1]
    assert images_and_float(x[:100, ::-1], y[:100])[1] < upright, "other pixels of the same labels"
    assert (out / "model.safetensors").read_bytes() == weights and "(100 images of 10 classes" in (out / "report.html").read_text()
    older = json.loads((out / "result.json").read_text())
    del older["eval_digest"]
    (out / "result.json").write_text(json.dumps(older))
    assert images_and_float(x, y)[0] == 100, "what an older version wrote is believed"


def test_a_finished_folder_has_its_report(made: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(path: Path, value: Any) -> None:
        if path.name == "result.json":
            raise KeyboardInterrupt
        write_json(path, value)

    out = tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr(job, "write_json", stopping)
        assert main([*RTN, "--eval", str(digits), "--out", str(out)]) == 130
    assert (out / "report.html").exists() and not (out / "result.json").exists()
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()  # as older versions left it, killed before its writing
    assert main([*RTN, "--eval", str(digits), "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "report.html").read_bytes() == (made / "report.html").read_bytes()
    assert (tmp_path / "copy" / "result.json").read_bytes() == (made / "result.json").read_bytes()


def test_evaluate_export_and_report(made: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    assert main(["evaluate", str(folder), "--eval", str(digits)]) == 0
    said = capsys.readouterr().out
    result = json.loads((made / "result.json").read_text())
    assert f"{100 * result['quantized']['top1']:.1f} %" in said and "kept" in said and "note" not in said
    counted = "360 of 10 classes; accuracies ± {:.1f} points"
    assert counted.format(100 * result["standard_error"]) in said
    (folder / ".job.json").unlink()  # as where the network's own file is gone
    assert main(["evaluate", str(folder), "--eval", str(digits)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "kept" not in said and "note: no float network to compare with" in said
    told = failing(["evaluate", str(folder), "--eval", str(digits), "--weights", "absent.pt", "--classes", "7"], capsys)
    assert "--weights, --classes: for a float network" in told
    assert main(["evaluate", "zoo:resnet-digits", "--eval", str(digits)]) == 0
    said, share = capsys.readouterr().out, result["fp"]["top1"]
    assert f"{100 * share:.1f} %" in said and counted.format(100 * (share * (1 - share) / 360) ** 0.5) in said
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == (made / "report.html").read_text()
    assert main(["export", str(folder), "--to", "onnx", "--check"]) == 0
    assert (folder / "model.onnx").stat().st_size > 1000
    page = (folder / "report.html").read_text()
    assert "<h2>ONNX</h2>" in page and "integer kernels" in page and str(folder) not in page
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "model.safetensors", alone)
    assert main(["export", str(alone), "--check"]) == 0
    assert sorted(file.name for file in alone.iterdir()) == ["model.onnx", "model.safetensors"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_job_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    """Killed or interrupted in the middle, the same command ends with the same bytes as a run that was left alone."""
    argv = ["quantize", "zoo:resnet-digits", "--recipe", "zeroq", "--device", "cpu"]
    small = ["--set", "synthesis.count=32", "--set", "synthesis.batch=16", "--set", "synthesis.iterations=25"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert main([*argv, *small, "--out", str(alone)]) == 0
    command = [sys.executable, "-m", "dreamquant.cli", *argv, *small, "--out", str(killed)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background, it is ignored
    )
    deadline = time.monotonic() + 300
    while not list(killed.glob(".work/**/*.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in said and ("the same command resumes" in said) == (how == signal.SIGINT)
    assert main([*argv, *small, "--out", str(killed)]) == 0
    for file in ("model.safetensors", "images/images.safetensors"):
        assert (alone / file).read_bytes() == (killed / file).read_bytes()
    curves = [json.loads((folder / "report.json").read_text())["curves"] for folder in (alone, killed)]
    assert curves[0] == curves[1]


def test_given_images_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["quantize", "zoo:resnet-digits", "--recipe", "zeroq", "--device", "cpu"]
    small = ["--set", "synthesis.count=32", "--set", "synthesis.batch=32", "--set", "synthesis.iterations=5"]
    assert main([*argv, *small, "--out", str(tmp_path / "first")]) == 0
    given = ["--images", str(tmp_path / "first" / "images")]
    assert main([*argv, *given, "--out", str(tmp_path / "second")]) == 0
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("first", "second"))
    assert first["images"].pop("source") == "OptimizePixels" and second["images"].pop("source") == "GivenImages"
    assert first["images"] == second["images"] and first["images"]["count"] == 32
    assert (tmp_path / "second" / "images" / "preview.png").exists()
    provenance = json.loads((tmp_path / "second" / "result.json").read_text())["provenance"]
    assert first["images"]["digest"] in provenance["recipe"] and str(tmp_path) not in json.dumps(provenance)
    said = failing([*argv, "--images", str(tmp_path), "--out", str(tmp_path / "third")], capsys)
    assert "no dreamed images" in said


def test_the_command_alone_helps_and_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("dreamquant ")
    main([])
    said = capsys.readouterr()
    assert "quantize" in said.out + said.err and "error" not in said.out + said.err


def test_what_a_kill_leaves_is_taken_away(digits: Path, tmp_path: Path) -> None:
    out, argv = tmp_path / "out", [*RTN, "--eval", str(digits), "--out", str(tmp_path / "out")]
    out.mkdir()
    (out / "..job.json.7727").write_text("{")  # killed while it marked the folder
    assert main(argv) == 0
    kept = {*out.rglob("*"), out / ".mine.2024"}
    left = [out / ".report.json.8086", out / ".model.safetensors.12", out / "images" / ".preview.png.8061", out / ".work" / "x.safetensors"]
    (out / ".work").mkdir()
    for path in (*left, out / ".mine.2024"):
        path.touch()
    assert main(argv) == 0  # finished before
    assert set(out.rglob("*")) == kept and not any(".7727" in path.name for path in kept)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"fingerprint": {}}', "\xff"])
def test_a_mark_that_is_none_of_ours_is_named(text: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".job.json").write_text(text, encoding="latin-1")
    said = failing([*RTN, "--out", str(tmp_path)], capsys)
    assert f"{tmp_path / '.job.json'} " in said and ("not valid JSON" in said or "names no job" in said)
    with pytest.raises(ValueError, match=r"\.job\.json (is not valid JSON|names no job)"):
        job.float_model_of(tmp_path)


def test_a_result_whose_model_is_gone_is_made_again(made: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    _, before = quantize_job(Job("zoo:resnet-digits", "rtn", eval=str(digits), device="cpu"), tmp_path / "copy")
    assert not before
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_one_folder_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(tmp_path / "out"):
        assert "in use" in failing([*RTN, "--out", str(tmp_path / "out")], capsys)
    with (tmp_path / "out" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_recipes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import dreamquant.recipes as r\n\ndef plain(bits='w4a4'):\n    return r.rtn(bits)\n\ndef wrong():\n    return 3\n")
    assert choose.chosen(f"{file}:plain", "w8a8", "fast", None) == choose.chosen("rtn", "w8a8", "fast", None)
    with pytest.raises(ValueError, match="takes no ends"):
        choose.chosen(f"{file}:plain", "w8a8", "fast", 8)
    with pytest.raises(ValueError, match="takes no bits"):
        choose.chosen(f"{file}:wrong", "w8a8", "fast", None)
    with pytest.raises(ValueError, match="it has plain, wrong"):
        choose.chosen(f"{file}:nothing", "w4a4", "fast", None)
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match="ModuleNotFoundError"):
        choose.chosen(f"{file}:plain", "w4a4", "fast", None)


def test_a_recipe_may_import_files_beside_its_own(tmp_path: Path) -> None:
    (tmp_path / "parts_of_mine.py").write_text("from dreamquant.recipes import rtn\n")
    (file := tmp_path / "mine.py").write_text("def mine(bits):\n    from parts_of_mine import rtn\n    return rtn(bits)\n")
    assert choose.chosen(f"{file}:mine", "w4a4", "fast", None) == choose.chosen("rtn", "w4a4", "fast", None)
    assert str(tmp_path) not in sys.path
    (tmp_path / "this.py").write_text("d = None\n")  # called like a module of Python's that nobody imports
    file.write_text("import this\nfrom dreamquant.recipes import rtn\n\ndef mine(bits):\n    return rtn(bits) if this.d else None\n")
    assert choose.chosen(f"{file}:mine", "w4a4", "fast", None).name == "rtn", "a file called like a library hides nothing"


def test_modifiers_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(choose, "modifiers", lambda: {"louder": lambda recipe: replace(recipe, name=f"louder:{recipe.name}")})
    assert choose.chosen("louder:rtn", "w4a4", "fast", None).name == "louder:rtn"
    with pytest.raises(ValueError, match="did you mean louder"):
        choose.chosen("loudr:rtn", "w4a4", "fast", None)
    with pytest.raises(ValueError, match="unknown recipe 'rtnn'"):
        choose.chosen("louder:rtnn", "w4a4", "fast", None)


def test_bits_are_the_same_in_capitals() -> None:
    assert Job("m", bits="W4A32") == Job("m", bits="w4a32")


# --- the rest


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert {"dream", "rtn", "synq"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert main(["recipes", "rtn"]) == 0
    assert "Recipe(name='rtn'" in capsys.readouterr().out


def test_the_readme_lists_the_recipes_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """`dreamquant recipes --markdown` writes the table between the marks."""
    assert main(["recipes", "--markdown"]) == 0
    _, between, _ = (ROOT / "README.md").read_text().split("<!-- recipes -->")
    assert between.strip() == capsys.readouterr().out.strip()


def test_default_folders_tell_jobs_apart() -> None:
    assert Job("timm:resnet18", ends=8).folder() == Path("dreamquant-out/timm_resnet18-dream-w4a4-ends8")
    assert Job("nets/mine.py:factory", "synq_on:rtn").folder() == Path("dreamquant-out/mine-synq_on_rtn-w4a4")
    assert file_name(Job("m")) != file_name(Job("m", set=("synthesis.iterations=3",)))


def test_json_never_holds_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": float("inf"), "c": np.float64(2.0).item()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": None, "c": 2.0}


def test_devices() -> None:
    assert job.device_of("cpu") == "cpu"
    assert job.device_of("auto") in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees 0 CUDA devices"):
            job.device_of("cuda:0")


def test_help_names_every_command() -> None:
    answer = run(["--help"], check=True)
    for command in ("quantize", "evaluate", "dream", "export", "report", "recipes", "bench", "demo"):
        assert command in answer.stdout


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from dreamquant.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.DEVNULL, check=True)


def test_further_data_is_measured_without_quantizing_again(tmp_path: Path, digits: Path) -> None:
    asked = Job("zoo:resnet-digits", recipe="rtn", eval=str(digits))
    first, _ = quantize_job(asked, tmp_path / "out")
    again, before = quantize_job(replace(asked, also=(str(digits),)), tmp_path / "out")
    assert first["also"] == {} and not before
    assert again["also"][digits.name]["eval_images"] == 360
    assert again["also"][digits.name]["quantized"] == again["quantized"] == first["quantized"]
    assert again["seconds"]["quantize"] == first["seconds"]["quantize"]
