"""The folder of a job: held by one process at a time, never mistaken for another job's, written atomically."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK, JOB = ".lock", ".job.json"


class InUse(ValueError):
    """Another process works in the folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if missing, while the block runs; ValueError when it is in use or holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --out takes a folder")
    if folder.is_dir() and not (folder / JOB).exists() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds files that dreamquant did not write; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"output folder in use: another process works in {folder}; wait for it or choose another --out") from None
        yield


def belongs(folder: Path, fingerprint: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Mark the claimed `folder` as that of one job; ValueError when it is marked as another's."""
    path = folder / JOB
    if path.exists():
        before = json.loads(path.read_text())["fingerprint"]
        differs = [name for name in fingerprint if before.get(name) != fingerprint[name]]
        if differs:
            finished = any((folder / name).exists() for name in ("result.json", "images.safetensors"))
            state = "the result" if finished else "the unfinished work"
            raise ValueError(f"{folder} holds {state} of another command ({', '.join(differs)} differs); choose another --out or delete it")
    write_json(path, {"fingerprint": dict(fingerprint), "job": dict(job)})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; what is not finite becomes null, since JSON has no word for it."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of a job holds; ValueError when it is absent or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not the finished folder of a dreamquant job: {path.name} is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
