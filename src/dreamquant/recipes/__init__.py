"""Every method: file name = function name = name on the command line. Files here are discovered; nothing is registered."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamquant.recipe import Recipe


def names() -> list[str]:
    """All recipes, sorted; modules that start with an underscore are parts shared by several."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def find(name: str) -> Callable[..., Recipe]:
    """The function that makes the recipe `name`. Raises ValueError for an unknown one, and offers the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 3, 0.4)
        raise ValueError(
            f"unknown recipe {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ".") + f" All: {', '.join(names())}"
        )
    made: Callable[..., Recipe] = globals()[name]
    return made


def __getattr__(name: str) -> Any:
    """Modifiers too: `recipes.synq_on(recipes.distill())`."""
    if not name.startswith("_"):
        from dreamquant.choose import modifiers  # which looks for them in the modules here

        if name in (known := modifiers()):
            return known[name]
    raise AttributeError(f"no recipe {name!r}; there are {', '.join(names())}")


def _checked(make: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The same function, which takes no other effort for `paper`."""

    @functools.wraps(make)
    def checked(*args: Any, **settings: Any) -> Recipe:
        effort = settings["effort"] if "effort" in settings else args[1] if len(args) > 1 else "fast"
        if effort not in ("fast", "paper"):
            raise ValueError(f"{make.__name__}: effort {effort!r}; choose 'fast' or 'paper'")
        return make(*args, **settings)

    return checked


for _name in names():  # importing a module binds its name here; the function of that name takes its place
    _module = importlib.import_module(f"{__name__}.{_name}")
    setattr(_module, _name, _checked(getattr(_module, _name)))
    globals()[_name] = getattr(_module, _name)
