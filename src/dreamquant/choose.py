"""From what a user writes after --recipe to a Recipe: NAME, file.py:function, or modifier:NAME."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, cast

from dreamquant import recipes
from dreamquant.loading import load_file, result_of
from dreamquant.recipe import Recipe, changed

Maker = Callable[..., Recipe]


def modifiers() -> dict[str, Callable[[Recipe], Recipe]]:
    """The functions Recipe -> Recipe that stand in dreamquant/recipes/*.py, by name."""
    found: dict[str, Callable[[Recipe], Recipe]] = {}
    for info in pkgutil.iter_modules(recipes.__path__):
        module = importlib.import_module(f"{recipes.__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_") and _modifies(value):
                found[name] = value
    return found


def chosen(name: str, bits: str, effort: str, ends: int | None, settings: Iterable[str] = ()) -> Recipe:
    """The recipe that the command line names, with its `--set` applied; ValueError offers what exists."""
    recipe = _made(name, bits, effort, ends)
    for setting in settings:
        recipe = changed(recipe, setting)
    return recipe


def _made(name: str, bits: str, effort: str, ends: int | None) -> Recipe:
    before, colon, after = name.partition(":")
    if before.endswith(".py"):
        return _called(_from_file(Path(before), after), name, bits, effort, ends)
    if colon:
        known = modifiers()
        if before not in known:
            raise ValueError(_unknown(before, known))
        return known[before](_made(after, bits, effort, ends))
    return _called(recipes.find(name), name, bits, effort, ends)


def _called(make: Maker, name: str, bits: str, effort: str, ends: int | None) -> Recipe:
    """`make` called with those of the three choices that it takes; a choice that it does not take must be the usual one."""
    takes = inspect.signature(make).parameters
    choices: dict[str, Any] = {"bits": bits, "effort": effort, "ends": ends}
    usual = {"effort": "fast", "ends": None}
    for key, value in choices.items():
        if key not in takes and value != usual.get(key):
            raise ValueError(f"{name} takes no {key}; give its function an argument `{key}`")
    recipe = make(**{key: value for key, value in choices.items() if key in takes})
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{name} returned {type(recipe).__name__}, not a Recipe")
    return recipe


def _from_file(path: Path, function: str) -> Maker:
    """The function of a Python file, which is run to get it; what the function raises is told with its name."""
    if not path.is_file():
        raise ValueError(f"no file {path}; --recipe takes NAME, file.py:function or modifier:NAME")
    module = load_file(path)
    made = getattr(module, function or path.stem, None)
    if not callable(made):
        there = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(f"{path} has no function {function or path.stem!r}; it has {', '.join(there) or 'none'}")

    @wraps(made)
    def make(**choices: Any) -> Recipe:
        return cast(Recipe, result_of(made, path, f"{path}:{function or path.stem}", **choices))

    return make


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown recipe modifier {name!r}{guess} All: {', '.join(names) or 'none'}"


def _modifies(function: Callable[..., Any]) -> bool:
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is not None and first.default is first.empty and first.annotation in (Recipe, "Recipe")
