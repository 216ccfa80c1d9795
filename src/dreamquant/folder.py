"""The folder of a job: held by one process at a time, never mistaken for another job's, written atomically."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

LOCK, JOB = ".lock", ".job.json"
TEMPORARY = re.compile(r"\..+\.(html|json|onnx|png|safetensors)\.\d+")  # what `replacing` writes to, which a killed process leaves


class InUse(ValueError):
    """Another process works in the folder."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file `path`, made if missing, while the block runs; InUse where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"output folder in use: another process works in {path.parent}; wait for it or choose another --out") from None
        yield


def _ours(name: str) -> bool:
    """Whether a process that was killed while it marked its folder may have left this."""
    return name == LOCK or name.startswith(f".{JOB}.")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if missing, while the block runs; ValueError when it is in use or holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --out takes a folder")
    if folder.is_dir() and not (folder / JOB).exists() and any(not _ours(entry.name) for entry in folder.iterdir()):
        raise ValueError(f"{folder} holds files that dreamquant did not write; choose another --out")
    with locked(folder / LOCK):
        for left in (*folder.glob(".*"), *folder.glob("images/.*")):
            if TEMPORARY.fullmatch(left.name) and left.is_file():
                left.unlink()
        yield


def belongs(folder: Path, fingerprint: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Mark the claimed `folder` as that of one job; ValueError when it is marked as another's."""
    if (folder / JOB).exists():
        before, _ = marked(folder)
        differs = [name for name in fingerprint if before.get(name) != fingerprint[name]]
        if differs:
            finished = any((folder / name).exists() for name in ("result.json", "images.safetensors"))
            state = "the result" if finished else "the unfinished work"
            raise ValueError(f"{folder} holds {state} of another command ({', '.join(differs)} differs); choose another --out or delete it")
    write_json(folder / JOB, {"fingerprint": dict(fingerprint), "job": dict(job)})


def marked(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fingerprint and the settings of the job that `folder` is marked with; ValueError where the mark is none of ours."""
    match read_json(folder / JOB):
        case {"fingerprint": dict(fingerprint), "job": dict(job)}:
            return fingerprint, job
    raise ValueError(f"{folder / JOB} names no job of dreamquant; choose another folder or delete this one")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made, that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part; names that are no UTF-8 are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; what is not finite becomes null, since JSON has no word for it."""
    write_text(path, json.dumps(_finite(value), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of a job holds; ValueError when it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not the finished folder of a dreamquant job: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically, with words `about` the tensors; who may read it is what the umask says."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary, dict(about))
        temporary.chmod(mode)  # safetensors makes files that nobody but their owner may read


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the words about them; ValueError says why it cannot be read."""
    try:
        path.open("rb").close()  # safetensors says of every file that it cannot open that it is absent
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
