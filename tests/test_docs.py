"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import dreamquant

MODULES = [
    "dreamquant",
    *(module.name for module in pkgutil.walk_packages(dreamquant.__path__, "dreamquant.") if "__main__" not in module.name),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_words_are_there_whatever_was_imported_before() -> None:
    for module in ("dreamquant.evaluate", "dreamquant.export"):
        importlib.import_module(module)
    assert inspect.isfunction(dreamquant.evaluate) and inspect.isfunction(dreamquant.export)
    assert set(dreamquant.__all__) <= set(dir(dreamquant)) and all(hasattr(dreamquant, name) for name in dreamquant.__all__)
    assert not hasattr(dreamquant, "nothing")


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5
