"""`dreamquant bench`: grids, the names of their results, processes side by side."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from commands import CONTRACT, failing
from dreamquant.cli import bench, main
from dreamquant.cli.bench import file_name, jobs_of, named
from dreamquant.folder import InUse, write_json
from dreamquant.job import Job
from dreamquant.progress import Lines


def test_bench_writes_one_file_a_job_and_skips_it(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.py"
    jobs = f"[Job('zoo:resnet-digits', 'rtn', bits, eval={str(digits)!r}) for bits in ('w8a8', 'w4a4')]"
    grid.write_text(f"from dreamquant.job import Job\n\ndef few():\n    return {jobs}\n")
    out = tmp_path / "results"
    assert main(["bench", f"{grid}:few", "--out", str(out)]) == 0
    files = sorted(out.glob("*.json"))
    assert [file.name[:32] for file in files] == ["zoo_resnet-digits-rtn-w4a4-fast-", "zoo_resnet-digits-rtn-w8a8-fast-"]
    written = json.loads(files[0].read_text())
    assert set(written) >= CONTRACT | {"commit", "job", "cores"}
    assert str(tmp_path) not in files[0].read_text() and str(digits.parent) not in files[0].read_text()
    stamps = [file.stat().st_mtime_ns for file in files]
    assert main(["bench", f"{grid}:few", "--out", str(out)]) == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert "w8a8" in capsys.readouterr().out
    assert "no function 'grid'" in failing(["bench", str(grid), "--out", str(out)], capsys)


def test_a_job_that_another_process_has_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, path = Job("zoo:resnet-digits", "rtn"), tmp_path / "x.json"
    seen: list[Path] = []

    def working(job: Job, folder: Path, *_: Any, **__: Any) -> tuple[dict[str, Any], bool]:
        seen.append(folder)
        folder.mkdir()
        with pytest.raises(InUse):
            bench.run_job(job, path, Lines(Console()))
        return {"seconds": 1}, False

    def writing(path: Path, value: Any) -> None:
        with pytest.raises(InUse):  # until the record is there
            bench.run_job(asked, path, Lines(Console()))
        write_json(path, value)

    monkeypatch.setattr(bench, "quantize_job", working)
    monkeypatch.setattr(bench, "write_json", writing)
    for _ in range(2):
        bench.run_job(asked, path, Lines(Console()))
    assert len(seen) == 1 and json.loads(path.read_text())["seconds"] == 1
    assert not list((tmp_path / ".work").iterdir())


def test_the_commit_is_not_that_of_a_project_around_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
    installed = tmp_path / "lib" / "bench.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(bench, "__file__", str(installed))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert bench.commit() is None
    subprocess.run([*git, "add", str(installed)], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", bench.commit() or "")


def test_results_have_the_same_names_wherever_the_data_lies() -> None:
    def asked(folder: str, function: str = "make", data: str = "test.tar") -> Job:
        return Job(
            f"{folder}/net.py:{function}", f"{folder}/r.py:mine", eval=f"{folder}/{data}", weights=f"{folder}/w.pt",
            images=f"{folder}/images", also=(f"{folder}/more.npz",),
        )  # fmt: skip

    assert file_name(asked("here")) == file_name(asked("/mnt/there"))
    assert len({file_name(job) for job in (asked("a"), asked("a", "other"), asked("a", data="valid.tar"))}) == 3
    assert file_name(Job("net.py:a")) != file_name(Job("net.py:b"))


@pytest.mark.parametrize("which", ["model", "recipe", "eval"])
def test_a_grid_of_two_jobs_of_one_name_is_refused(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"model": "{}/net.py:f", "recipe": "{}/r.py:f", "eval": "{}/test.tar"}
    jobs = [Job(**{"model": "zoo:resnet-digits", which: values[which].format(folder)}) for folder in "xy"]  # type: ignore[arg-type]
    (grid := tmp_path / "grid.py").write_text(f"from dreamquant.job import Job\n\ndef grid():\n    return {jobs}\n")
    said = failing(["bench", str(grid), "--out", str(tmp_path / "results")], capsys)
    assert f"{which} '{values[which].format('x')}' and '{values[which].format('y')}'" in said
    assert not (tmp_path / "results").exists()
    grid.write_text(f"from dreamquant.job import Job\n\ndef grid():\n    return {[jobs[0]] * 2}\n")
    assert list(named(jobs_of(str(grid)))) == [file_name(jobs[0])], "the same job twice is one"


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bad := tmp_path / "r.py").write_text("def bad(bits):\n    raise RuntimeError('out of ideas')\n")
    (grid := tmp_path / "grid.py").write_text(
        f"from dreamquant.job import Job\n\ndef grid():\n    return [Job('zoo:resnet-digits', name) for name in ('{bad}:bad', 'rtn')]\n"
    )
    assert main(["bench", str(grid), "--out", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err
    assert "r.py:bad raised RuntimeError: out of ideas" in said and "1 of 2 jobs failed" in said
    assert [file.name for file in (tmp_path / "results").glob("*.json")] == ["zoo_resnet-digits-rtn-w4a4-fast-seed0.json"]
    grid.write_text("def grid():\n    yield {}['x']\n")
    assert "grid.py raised KeyError: 'x'" in failing(["bench", str(grid), "--out", str(tmp_path / "results")], capsys)
