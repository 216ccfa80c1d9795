"""What traced PyTorch programs call the functions of the vocabulary: functions, methods, and modules without an integer form."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from dreamquant.quant.vocabulary import FUNCTIONS

# What the name of a function or method is, where it is not the name of the table
ALIASES = {
    "iadd": "add",
    "imul": "mul",
    "truediv": "div",
    "true_divide": "div",
    "concat": "cat",
    "view": "reshape",
    "contiguous": "identity",
    "clone": "identity",
    "detach": "identity",
    "scaled_dot_product_attention": "attention",
    "clip": "clamp",
    "rmatmul": "matmul",
    "bmm": "matmul",
    "native_channel_shuffle": "channel_shuffle",
}
PUBLIC = (operator, torch, F)
IGNORED = ("inplace", "training", "memory_format", "_stacklevel")
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def name_of(target: Any) -> str | None:
    """The name in the table of a function or a method's name that a traced graph calls; None where there is none."""
    if isinstance(target, str):
        name = target
    else:
        name = getattr(target, "__name__", "")
        if not any(getattr(owner, name, None) is target for owner in PUBLIC):
            return None  # a function of the user's that only shares the name
    name = ALIASES.get(name, name)
    return name if name in FUNCTIONS else None


# Modules without parameters: the function, and the attributes that are its keywords.
MODULES: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    nn.Identity: ("identity", {}),
    nn.ReLU: ("relu", {}),
    nn.ReLU6: ("relu6", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": "negative_slope"}),
    nn.ELU: ("elu", {"alpha": "alpha"}),
    nn.GELU: ("gelu", {"approximate": "approximate"}),
    nn.Softplus: ("softplus", {"beta": "beta", "threshold": "threshold"}),
    nn.SiLU: ("silu", {}),
    nn.Mish: ("mish", {}),
    nn.Hardswish: ("hardswish", {}),
    nn.Hardsigmoid: ("hardsigmoid", {}),
    nn.Hardtanh: ("clamp", {"min": "min_val", "max": "max_val"}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Tanh: ("tanh", {}),
    nn.Softmax: ("softmax", {"dim": "dim"}),
    nn.LogSoftmax: ("log_softmax", {"dim": "dim"}),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", {"output_size": "output_size"}),
    nn.AdaptiveMaxPool2d: ("adaptive_max_pool2d", {"output_size": "output_size"}),
    nn.AvgPool2d: ("avg_pool2d", {k: k for k in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")}),
    nn.MaxPool2d: ("max_pool2d", {k: k for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}),
    nn.Flatten: ("flatten", {"start_dim": "start_dim", "end_dim": "end_dim"}),
    nn.Unflatten: ("unflatten", {"dim": "dim", "sizes": "unflattened_size"}),
    nn.ZeroPad2d: ("pad", {"pad": "padding"}),
    nn.ConstantPad2d: ("pad", {"pad": "padding", "value": "value"}),
    nn.PixelShuffle: ("pixel_shuffle", {"upscale_factor": "upscale_factor"}),
    nn.ChannelShuffle: ("channel_shuffle", {"groups": "groups"}),
    nn.Upsample: ("interpolate", {k: k for k in ("size", "scale_factor", "mode", "align_corners")}),
    nn.LayerNorm: ("layer_norm", {"normalized_shape": "normalized_shape", "weight": "weight", "bias": "bias", "eps": "eps"}),
    nn.GroupNorm: ("group_norm", {"num_groups": "num_groups", "weight": "weight", "bias": "bias", "eps": "eps"}),
    nn.PReLU: ("prelu", {"weight": "weight"}),
    nn.Embedding: ("embedding", {"weight": "weight", "padding_idx": "padding_idx"}),
    nn.Conv1d: ("conv1d", {k: k for k in ("weight", "bias", "stride", "padding", "dilation", "groups")}),
    nn.ConvTranspose2d: (
        "conv_transpose2d",
        {k: k for k in ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")},
    ),
    **{kind: ("identity", {}) for kind in DROPOUT},
}
# Attributes that change what a module computes and are no keyword above, with the values that change nothing
PLAIN = {"divisor_override": None, "return_indices": False}
# Modules that the table runs but that a network would have quantized, if there were an integer form
FLOAT_LAYERS = (nn.Conv1d, nn.ConvTranspose2d, nn.Embedding)
