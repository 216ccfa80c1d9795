"""Python files of the user's: loaded, and their functions called; what fails inside is told with the file's name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_file(path: Path) -> Any:
    """A Python file as a module; it may import files that lie beside it. An error inside is a ValueError that names the file."""
    spec = importlib.util.spec_from_file_location(str(path.resolve()), path)  # a name that hides no other module
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in their annotations
    with _told(f"{path} failed when it was loaded:"), _beside(path):
        spec.loader.exec_module(module)
    return module


def result_of(function: Callable[..., Any], path: Path, name: str, **arguments: Any) -> Any:
    """What a function of the file `path` returns, called by `name`; an error inside is a ValueError that says so."""
    with _told(f"{name} raised"), _beside(path):
        return function(**arguments)


def reason(error: BaseException) -> str:
    """The kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Inside, files of the folder of `path` can be imported; last of all, so that one called like a library hides nothing.

    After it they are as if they never had been: another folder may hold others of the same names. What libraries below that
    folder, as in a virtual environment, brought stays.
    """
    folder, before = str(path.resolve().parent), set(sys.modules)
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
            new = set(sys.modules) - before - {str(path.resolve())}
            found = {name for name in new if "." not in name and _lies_in(sys.modules[name], Path(folder))}
            for name in new:
                if name.partition(".")[0] in found:
                    del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    """Whether a module is a file of this folder, or a package that lies in it."""
    file = Path(getattr(module, "__file__", None) or "/")
    return folder == (file.parent.parent if file.name == "__init__.py" else file.parent)


@contextmanager
def _told(words: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        raise ValueError(f"{words} {reason(error)}; keep what ends the program under `if __name__ == '__main__':`") from error
    except Exception as error:
        raise ValueError(f"{words} {reason(error)}") from error
