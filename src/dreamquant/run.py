"""Run: a job's seed, folder, device and clock. `run.loop` is the one way to iterate for long: it seeds every iteration,
saves and restores the live things it is given, reports, and stops on NaN.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dreamquant.folder import read_tensors, write_tensors
from dreamquant.images import Images

GENERATOR = "generator.safetensors"


class Stateful(Protocol):
    """Modules, optimizers, image buffers: anything that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Handle(Protocol):
    """One line of progress."""

    def advance(self, done: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Progress(Protocol):
    """Where progress is shown."""

    def phase(self, name: str, total: int) -> Handle: ...


class _Silent:
    def phase(self, name: str, total: int) -> Handle:
        return self

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        return

    def close(self) -> None:
        return


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested state -> JSON, with its tensors put aside under numbers."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"@": len(tensors) - 1}
    if isinstance(value, dict):
        return {"{": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"[": [pack(v, tensors) for v in value]}
    return value


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given; tuples come back as lists."""
    if not isinstance(value, dict):
        return value
    if "@" in value:
        return tensors[str(value["@"])]
    if "[" in value:
        return [unpack(v, tensors) for v in value["["]]
    return {unpack(k, tensors): unpack(v, tensors) for k, v in value["{"]}


class Kept:
    """What parts leave for the result besides the student: images, and the generator that made them. Live."""

    def __init__(self) -> None:
        self.images: Images | None = None
        self.generator: Mapping[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        images = {} if self.images is None else {"images": self.images.state_dict()}
        return {"generator": dict(self.generator), **images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator = state["generator"]
        self.images = Images(**state["images"]) if "images" in state else None

    def save_generator(self, folder: Path, note: Mapping[str, Any] | None = None) -> None:
        """Write `folder/generator.safetensors` atomically, with a note beside the tensors; nothing where there is none."""
        if self.generator:
            write_tensors(folder / GENERATOR, self.generator, {"note": json.dumps(dict(note or {}))})

    def load_generator(self, folder: Path) -> None:
        """Read what `save_generator` wrote, if it did."""
        if (folder / GENERATOR).exists():
            self.generator, _ = read_tensors(folder / GENERATOR)


class Run:
    """One job. Stateful: it knows which loops it is in, and what they showed."""

    def __init__(
        self,
        seed: int = 0,
        folder: str | Path | None = None,
        device: str | torch.device = "cpu",
        save_every: float = 20.0,
        progress: Progress | None = None,
        images_cache: str | Path | None = None,
    ) -> None:
        self.seed, self.device, self.save_every = seed, torch.device(device), save_every
        self.folder = Path(folder) if folder else None
        self.images_cache = Path(images_cache) if images_cache else None
        self.progress: Progress = progress or _Silent()
        self.path: list[str] = []
        self.loops: list[Loop] = []
        self.curves: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.fronts: dict[str, dict[str, Any]] = {}  # what allocations of bits weighed up, for the report
        self.kept = Kept()
        self.seconds: dict[str, float] = {"synthesis": 0.0, "quantize": 0.0}
        self.started: dict[str, float] = {}  # when each clock that runs now began
        self.notes: list[str] = []

    def number(self, *more: object) -> int:
        """A seed for this place in the job: the same in every run, and after any resume."""
        text = repr((self.seed, *self.path, *more)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")

    def loop(self, name: str, total: int, **live: Stateful) -> Loop:
        """Iterate `total` times under this name; `live` things are restored first and saved by the clock."""
        return Loop(self, name, total, live)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Wall seconds inside go to `seconds[phase]`; of an interrupted run, those up to its last checkpoint."""
        self.started[phase] = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - self.started.pop(phase)

    def told(self) -> dict[str, Any]:
        """What the run has to tell so far, for a checkpoint: its notes, its curves, its seconds with those of clocks that run."""
        now = time.monotonic()
        seconds = {phase: past + now - self.started.get(phase, now) for phase, past in self.seconds.items()}
        return {"notes": self.notes, "curves": self.curves, "seconds": seconds}

    def go_on(self, told: Mapping[str, Any]) -> None:
        """Tell what an interrupted run had to tell, too. Checkpoints are met in the order they were written: the last one has it all."""
        for text in told.get("notes", ()):  # older checkpoints tell less
            self.note(text)
        self.curves = {name: [(number, values) for number, values in points] for name, points in told.get("curves", {}).items()}
        self.seconds.update(told.get("seconds", {}))

    def note(self, text: str) -> None:
        """Something the user must know: shown at the end, and in the report."""
        if text not in self.notes:
            self.notes.append(text)


class Loop:
    """Made by `Run.loop`; iterate over it once."""

    def __init__(self, run: Run, name: str, total: int, live: Mapping[str, Stateful]) -> None:
        self.run, self.name, self.total, self.live = run, name, total, live
        self.stopped, self.nested = False, False
        self.values: dict[str, float] = {}

    def stop(self) -> None:
        """The loop ends after this iteration, as finished."""
        self.stopped = True

    def show(self, **values: Tensor | float) -> None:
        """Values for the bar and the curves; a value that is not finite stops the run and names the term."""
        self.values = {key: float(value) for key, value in values.items()}
        bad = [key for key, value in self.values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"loss term {', '.join(bad)} is not finite in {'/'.join(self.run.path)}; lower the learning rate")

    @property
    def file(self) -> Path | None:
        return self.run.folder.joinpath(*self.run.path, self.name + ".safetensors") if self.run.folder else None

    def restore(self) -> int:
        """Put live things where they stood; the number of the iteration to go on with."""
        file = self.file
        if not file or not file.exists():
            return 0
        try:
            tensors, about = read_tensors(file)
        except ValueError as error:
            raise ValueError(f"{error}; delete it and run again") from None
        note = json.loads(about["note"])
        for key, state in unpack(note["live"], tensors).items():
            self.live[key].load_state_dict(state)
        self.stopped = note["stopped"]
        self.run.go_on(note)
        return int(note["next"])

    def save(self, following: int) -> None:
        """Write live things atomically."""
        file = self.file
        if not file:
            return
        tensors: dict[str, Tensor] = {}
        live = pack({key: value.state_dict() for key, value in self.live.items()}, tensors)
        note = {"next": following, "stopped": self.stopped, "live": live, **self.run.told()}
        write_tensors(file, tensors, {"note": json.dumps(note)})

    def _record(self, number: int, handle: Handle) -> None:
        if self.values and (number % max(1, self.total // 50) == 0 or number == self.total - 1):
            self.run.curves.setdefault("/".join([*self.run.path[:-1], self.name]), []).append((number, self.values))
        handle.advance(number + 1, self.values)

    def __iter__(self) -> Iterator[int]:
        run, start, saved = self.run, self.restore(), time.monotonic()
        for parent in run.loops:
            parent.nested = True
        run.loops.append(self)
        handle = run.progress.phase(self.name, self.total)
        handle.advance(start, {})
        try:
            for number in range(start, self.total):
                if self.stopped:
                    break
                run.path.append(f"{self.name}.{number}")
                try:
                    torch.manual_seed(run.number())
                    yield number
                    self._record(number, handle)
                finally:
                    run.path.pop()
                if self.nested or time.monotonic() - saved >= run.save_every:
                    self.save(number + 1)
                    saved = time.monotonic()
                    if self.nested and run.folder:
                        shutil.rmtree(run.folder.joinpath(*run.path, f"{self.name}.{number}"), ignore_errors=True)
            self.save(self.total)
        finally:
            handle.close()
            run.loops.pop()
