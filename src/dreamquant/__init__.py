"""dreamquant: low-bit networks without data.

>>> import torch
>>> import dreamquant as dq
>>> model = dq.load_model("zoo:resnet-digits")
>>> quantized = dq.recipes.rtn(bits="w8a8")(model, seed=0)
>>> quantized(model.normalise(torch.zeros(2, 1, 8, 8))).shape
torch.Size([2, 10])
"""

__version__ = "0.1.0"

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
