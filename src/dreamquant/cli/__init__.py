"""The command line. Heavy imports stand inside the commands, so that --help answers at once."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from rich.console import Console

from dreamquant.cli.commands import app
from dreamquant.cli.memory import keep_memory

__all__ = ["app", "main"]

DONE, MISTAKE, INTERRUPTED = 0, 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 2 a mistake told in a line or two, 130 interrupted. Anything else is our bug and shows a traceback."""
    keep_memory()
    try:
        status = app(args=list(sys.argv[1:] if argv is None else argv), prog_name="dreamquant", standalone_mode=False)
    except Exception as error:
        lines = told(error)
        if lines is None:
            raise
        err = Console(stderr=True)
        for line in lines:
            err.print(line, highlight=False, markup=False, soft_wrap=True)
        return MISTAKE
    if status == INTERRUPTED:
        Console(stderr=True).print("interrupted; the same command resumes", highlight=False)
    return status if isinstance(status, int) else DONE


def told(error: Exception) -> list[str] | None:
    """The lines that tell a user's mistake or a full machine; None for an error that is ours."""
    if type(error).__name__ == "NoArgsIsHelpError":  # of typer's private click
        return [str(error.format_message()).rstrip()]  # type: ignore[attr-defined]
    if getattr(error, "errno", None) in FULL or "No space left on device" in str(error):  # safetensors has errors of its own
        file = getattr(error, "filename", None)
        words = f"no space left on the disk{f' for {file}' if file else ''}; free some, and the same command resumes"
    elif isinstance(error, OSError) and error.strerror:
        words = f"{error.filename}: {error.strerror.lower()}" if error.filename else str(error)
    elif isinstance(error, FloatingPointError):
        words = f"{error}; the work before it is kept"
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        words = "out of memory; the same command resumes. Try --device cpu, or a smaller batch with --set"
    elif hasattr(error, "format_message"):  # a usage error of typer, which keeps its copy of click private
        words = f"{error.format_message()} Try --help."
    elif isinstance(error, ValueError | FileNotFoundError | PermissionError):  # those of a library may have words alone
        words = str(error)
    else:
        return None
    return [f"error: {words}", *(f"  in {note}" for note in getattr(error, "__notes__", ()))]
