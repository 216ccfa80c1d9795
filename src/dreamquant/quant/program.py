"""Op: one line of a program. The vocabulary is closed: image, constant, conv, linear, bn, grid, call, opaque.

Arguments of a call are JSON; a tensor among them is {"input": number}, its place in `Op.inputs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamquant.quant.quantizer import fake_quantize  # noqa: F401  (the grid's kernel is the student's; see `_grid`)
from dreamquant.quant.vocabulary import FUNCTIONS, VARIADIC
