"""Parts read back from their repr, which is the record. Nothing in it is run: it is parsed, and made of known parts."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping
from typing import Any

PLACES = ("dream", "losses", "optimizers", "recipes", "synthesis")  # what images are dreamed with stands there, or is imported there
NUMBERS = {"inf": math.inf, "nan": math.nan}


def parts() -> dict[str, type]:
    """Parts of the package by name."""
    modules = [importlib.import_module(f"dreamquant.{place}") for place in PLACES]
    for package in [module for module in modules if hasattr(module, "__path__")]:
        modules += [importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)]
    return parts_in(*map(vars, modules))


def parts_in(*spaces: Mapping[str, Any]) -> dict[str, type]:
    """The frozen dataclasses among the names of modules."""
    found = {name: value for space in spaces for name, value in space.items() if isinstance(value, type)}
    return {n: v for n, v in found.items() if dataclasses.is_dataclass(v) and v.__dataclass_params__.frozen}  # type: ignore[attr-defined]


def read(text: str, known: Mapping[str, type]) -> Any:
    """The value whose repr is `text`: parts of these names, numbers, words, tuples, lists, sums and multiples of losses.

    Raises ValueError for anything else.
    """
    try:
        return _value(ast.parse(text, mode="eval").body, known)
    except (SyntaxError, TypeError) as error:
        raise ValueError(f"{text!r} is not the record of a part ({error})") from None


def _value(node: ast.expr, known: Mapping[str, type]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in NUMBERS:
            return NUMBERS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known)
        case ast.Tuple(elts=items):
            return tuple(_value(item, known) for item in items)
        case ast.List(elts=items):
            return [_value(item, known) for item in items]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, known) + _value(right, known)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, known) * _value(right, known)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=words):
            if name not in known:
                raise ValueError(f"there is no part {name!r} here")
            values = {str(word.arg): _value(word.value, known) for word in words}
            return known[name](*(_value(arg, known) for arg in args), **values)
    raise ValueError(f"{ast.unparse(node)!r} is not the record of a part")
