"""What the user sees while a job runs: bars on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


def shown(values: Mapping[str, float]) -> str:
    """The first three loss terms, as `name 0.123`."""
    return "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:3])


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `1 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Rate(ProgressColumn):
    """Iterations per second, measured over the last half minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="dim")


class Bar:
    """One phase on a terminal; `advance` takes the iterations done so far, not the step."""

    def __init__(self, rich: RichProgress, name: str, total: int) -> None:
        self.rich = rich
        self.total = total
        self.task = rich.add_task(name, total=total, values="", visible=total > 1)
        self.fresh = True

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        if self.fresh:  # a resumed phase starts in the middle: what it had done before must not count as speed
            self.rich.reset(self.task, completed=done, total=self.total)
            self.fresh = False
        self.rich.update(self.task, completed=done, values=shown(values))

    def close(self) -> None:
        self.rich.stop_task(self.task)


class Bars:
    """Progress on a terminal."""

    def __init__(self, rich: RichProgress) -> None:
        self.rich = rich

    def phase(self, name: str, total: int) -> Bar:
        return Bar(self.rich, name, total)


class Line:
    """One phase in a log: a line when it begins, every ten seconds, and when it is over."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.console = console
        self.name = name
        self.total = total
        self.done = 0
        self.first: int | None = None
        self.begun = self.told = time.monotonic()

    def say(self, text: str) -> None:
        if self.total < 2:
            return
        words = f"{time.strftime('%H:%M:%S')} {self.name} {self.done}/{self.total} {text}"
        self.console.print(words.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        self.done = done
        if self.first is None:  # a resumed phase starts in the middle
            self.first = done
            self.say("begins")
        now = time.monotonic()
        if now - self.told >= SECONDS_BETWEEN_LINES and done < self.total:
            rate = (done - self.first) / (now - self.begun)
            left = f"{duration((self.total - done) / rate)} left" if rate else ""
            self.say(f"{rate:.3g}/s  {left}  {shown(values)}")
            self.told = now

    def close(self) -> None:
        self.say(f"took {duration(time.monotonic() - self.begun)}")


class Lines:
    """Progress where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def phase(self, name: str, total: int) -> Line:
        return Line(self.console, name, total)


@contextmanager
def progress_on(console: Console) -> Iterator[Bars | Lines]:
    """The kind of progress that suits `console`."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[values]}"),
    )
    with RichProgress(*columns, console=console) as rich:
        yield Bars(rich)
