"""Tables on the terminal."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import dreamquant.recipes as methods
from dreamquant.choose import modifiers
from dreamquant.export import ExportReport
from dreamquant.inspection import Inspection
from dreamquant.report.page import export_rows, headline, image_rows, left_out, percent, tested


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def result(found: dict[str, Any], folder: Path) -> None:
    """The outcome of one job, its warnings, and where its files are."""
    console = Console()
    table = Table(title=escape(f"{found['model']}  {found['recipe']}  {found['bits']}"), title_justify="left", show_header=False)
    for what, value, remark in headline(found):
        table.add_row(what, f"[bold]{escape(value)}[/bold]", f"[dim]{escape(remark)}[/dim]")
    console.print(table)
    for note in found["notes"]:
        _print(console, f"note: {note}")
    for name, why in found["left_in_float"].items():
        _print(console, f"left in floating point: {name} ({why})")
    if found["unreadable"]:
        _print(console, f"note: {left_out(found['unreadable'])}")
    _print(console, f"model:  {folder / 'model.safetensors'}")
    _print(console, f"report: {folder / 'report.html'}")


def scores(found: dict[str, Any], note: str = "") -> None:
    """What an evaluation measured, one line a number; with a note where some could not be."""
    deployed = found.get("deployed") or {}
    rows = [
        ("accuracy, float", (found["fp"] or {}).get("top1")),
        ("accuracy, quantized", (found["quantized"] or {}).get("top1")),
        ("accuracy, deployed", deployed.get("top1")),
        ("kept", found.get("kept")),
        ("agreement", found.get("agreement")),
    ]
    table = Table(show_header=False)
    for what, value in rows:
        if value is not None:
            table.add_row(what, f"[bold]{percent(value)}[/bold]")
    if counted := tested(found):
        table.add_row("test images", " ".join(counted))
    console = Console()
    console.print(table)
    for told in filter(None, (note, left_out(found["unreadable"]) if found["unreadable"] else "")):
        _print(console, f"note: {told}")


def dreamed(found: Inspection, count: int, folder: Path) -> None:
    """What a generator made, and where it is."""
    console = Console()
    table = Table(title=f"{count} images", title_justify="left", show_header=False)
    for what, value, remark in image_rows(asdict(found)):
        table.add_row(what, f"[bold]{escape(value)}[/bold]", f"[dim]{escape(remark)}[/dim]")
    console.print(table)
    _print(console, f"images: {folder / 'images.safetensors'}")
    _print(console, f"look:   {folder / 'preview.png'}")


def exported(written: ExportReport) -> None:
    """What was written, and how it ran where that was checked."""
    console, table = Console(), Table(show_header=False)
    for what, value in export_rows(written.as_dict()):
        table.add_row(what, escape(value))
    console.print(table)
    _print(console, "note: below 8 bits a CPU gains size, not time")


def first_line(function: Any) -> str:
    """What a recipe says of itself in its first line."""
    return (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")


def _all() -> dict[str, Callable[..., Any]]:
    return {name: methods.find(name) for name in methods.names()}


def recipes() -> None:
    """All recipes and modifiers with their first lines."""
    console = Console()
    table = Table("recipe", "what it is", box=None)
    for name, function in _all().items():
        table.add_row(name, escape(first_line(function)))
    for name, modifier in sorted(modifiers().items()):
        table.add_row(f"{name}:RECIPE", escape(first_line(modifier)))
    console.print(table)


def recipe(name: str) -> None:
    """The docstring of one recipe and the value that it makes."""
    known: Callable[..., Any] = modifiers().get(name) or methods.find(name)
    console = Console()
    _print(console, inspect.getdoc(inspect.getmodule(known)) or "")
    _print(console, "\n" + (inspect.getdoc(known) or ""))
    if name in methods.names():
        _print(console, f"\n{known()!r}")


def markdown() -> str:
    """The table of recipes in the README."""
    lines = ["| recipe | what it is |", "|---|---|"]
    lines += [f"| `{name}` | {first_line(function)} |" for name, function in _all().items()]
    lines += [f"| `{name}:RECIPE` | {first_line(function)} |" for name, function in sorted(modifiers().items())]
    return "\n".join(lines)
