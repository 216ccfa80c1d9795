"""dreamquant: low-bit networks without data.

>>> import torch
>>> import dreamquant as dq
>>> model = dq.load_model("zoo:resnet-digits")
>>> quantized = dq.recipes.rtn(bits="w8a8")(model, seed=0)
>>> quantized(model.normalise(torch.zeros(2, 1, 8, 8))).shape
torch.Size([2, 10])
"""

__version__ = "0.1.0"

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamquant import recipes
    from dreamquant.evaluate import LabelledImages, Scores, evaluate
    from dreamquant.export import export
    from dreamquant.images import Images
    from dreamquant.intake import load_model
    from dreamquant.model import Model
    from dreamquant.quant.quantized import QuantizedModel
    from dreamquant.quant.scheme import Int, Scheme
    from dreamquant.recipe import Recipe
    from dreamquant.run import Run

__all__ = [
    "Images",
    "Int",
    "LabelledImages",
    "Model",
    "QuantizedModel",
    "Recipe",
    "Run",
    "Scheme",
    "Scores",
    "evaluate",
    "export",
    "load_model",
    "recipes",
]
# Where the public words stand; they are imported when they are used, so that `dreamquant --help` answers at once
WORDS = {
    "Images": "images",
    "Int": "quant.scheme",
    "LabelledImages": "evaluate",
    "Model": "model",
    "QuantizedModel": "quant.quantized",
    "Recipe": "recipe",
    "Run": "run",
    "Scheme": "quant.scheme",
    "Scores": "evaluate",
    "evaluate": "evaluate",
    "export": "export",
    "load_model": "intake",
}


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return importlib.import_module("dreamquant.recipes")
    if name not in WORDS:
        raise AttributeError(f"module 'dreamquant' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"dreamquant.{WORDS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`dq.evaluate` and `dq.export` are functions, also once the modules of these names were imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in WORDS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
