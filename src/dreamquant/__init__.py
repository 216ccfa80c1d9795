"""dreamquant: low-bit networks without data."""

__version__ = "0.1.0"

from dreamquant import recipes
from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.recipe import Recipe
from dreamquant.run import Run

__all__ = ["Images", "Int", "Model", "Recipe", "Run", "Scheme", "recipes"]
