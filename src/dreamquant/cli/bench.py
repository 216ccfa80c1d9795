"""Grids of jobs: one JSON file each, written by the program, skipped when it exists."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dreamquant.folder import InUse, locked, read_json, write_json
from dreamquant.job import Job, quantize_job
from dreamquant.loading import load_file, result_of
from dreamquant.progress import progress_on
from dreamquant.report.page import percent
from dreamquant.run import Progress


def jobs_of(grid: str) -> list[Job]:
    """The jobs that FILE.py:function returns; the function is `grid` where none is named."""
    file, _, function = grid.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"no file {path}; a grid is FILE.py or FILE.py:function")
    make = getattr(load_file(path), function or "grid", None)
    if not callable(make):
        raise ValueError(f"{path} has no function {function or 'grid'!r} that returns a list of jobs")
    jobs = result_of(lambda: list(make()), path, grid)  # a generator of jobs runs here too
    if not jobs or not all(isinstance(job, Job) for job in jobs):
        raise ValueError(f"{grid} must return a list of dreamquant.job.Job, one at least")
    return jobs


def file_name(job: Job) -> str:
    """A name that tells jobs apart: the readable choices, and a hash of the rest where it is not usual; the same on every machine."""
    usual = published(Job(job.model, job.recipe, job.bits, job.ends, job.effort, job.seed))
    # of a model's file the readable name has the stem alone, without its function
    rest = {key: value for key, value in published(job).items() if value != usual[key] or (key == "model" and ".py:" in value)}
    rest.pop("device", None)
    mark = f"-{hashlib.sha256(repr(rest).encode()).hexdigest()[:6]}" if rest else ""
    return f"{job.folder().name}-{job.effort}-seed{job.seed}{mark}.json"


def named(jobs: Sequence[Job]) -> dict[str, Job]:
    """Jobs by the names of their files; ValueError where two that differ would share one."""
    found: dict[str, Job] = {}
    for job in jobs:
        name = file_name(job)
        other = asdict(found.setdefault(name, job))
        if differs := [f"{key} {other[key]!r} and {value!r}" for key, value in asdict(job).items() if other[key] != value]:
            raise ValueError(f"two jobs would be written to {name}: {'; '.join(differs)}; give files other names, or run two grids")
    return found


def run_grid(grid: str, out: Path) -> None:
    """Run the jobs of `grid` one after the other into `out`; ValueError at the end when some failed.

    Several processes may share a grid and its folder: each leaves out what another one is at.
    """
    jobs = named(jobs_of(grid))
    out.mkdir(parents=True, exist_ok=True)
    console, failed = Console(stderr=True), 0
    with progress_on(console) as progress:
        for number, (name, job) in enumerate(jobs.items(), start=1):
            path = out / name
            if path.exists():
                continue
            console.print(f"{number} of {len(jobs)}: {path.stem}", highlight=False, markup=False)
            try:
                run_job(job, path, progress)
            except InUse:
                continue
            except (ValueError, FloatingPointError) as error:
                failed += 1
                console.print(f"error: {path.stem}: {error}", highlight=False, markup=False, soft_wrap=True)
    Console().print(table([read_json(path) for name in jobs if (path := out / name).exists()]))
    if failed:
        raise ValueError(f"{failed} of {len(jobs)} jobs failed; the others are in {out}, and the same command tries again")


def run_job(job: Job, path: Path, progress: Progress) -> None:
    """Do the job and write its record to `path`, unless another process has; InUse while one is at it."""
    work = path.parent / ".work"
    lock = work / f"{path.stem}.lock"  # beside the job's folder, which is removed under it
    with locked(lock):
        if not path.exists():
            result, _ = quantize_job(job, work / path.stem, progress, images_cache=path.parent / ".images")
            write_json(path, record(job, result))
        shutil.rmtree(work / path.stem, ignore_errors=True)
        lock.unlink(missing_ok=True)  # who has it open finds the record


def published(job: Job) -> dict[str, Any]:
    """The settings of a job as others read them: file names, but not where they lay on this machine."""
    settings = asdict(job)
    for key in ("eval", "weights", "images"):
        settings[key] = settings[key] and Path(settings[key]).name
    settings["model"] = Path(job.model).name if ".py:" in job.model else job.model
    settings["recipe"] = Path(job.recipe).name if ".py:" in job.recipe else job.recipe
    settings["also"] = tuple(Path(name).name for name in job.also)
    return settings


def record(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """What is published of one job: its result, settings, commit and hardware."""
    settings = published(job)
    return {**result, "model": settings["model"], "eval": settings["eval"], "job": settings, "commit": commit(), "cores": os.cpu_count()}


def commit() -> str | None:
    """The commit of the source that runs, with a + where files differ from it; None outside a checkout that holds it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed, it may lie below somebody else's project
        return git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def table(results: Sequence[dict[str, Any]]) -> Table:
    """One row a job."""
    found = Table("model", "recipe", "bits", "ends", "seed", "float", "quantized", "deployed", "kept", "agreement", "seconds", box=None)
    for result in results:
        shares = [(result[key] or {}).get("top1") for key in ("fp", "quantized", "deployed")] + [result["kept"], result["agreement"]]
        ends = "as all" if result["ends"] is None else str(result["ends"])
        words = [result["model"], result["recipe"], result["bits"], ends, str(result["seed"])]
        found.add_row(*map(escape, words), *map(percent, shares), f"{result['seconds']['total']:.0f}")
    return found
