"""The float functions a program may call, by name: a closed table, so that a file can be run without being trusted.

Each is a plain function of tensors and numbers. What PyTorch programs call them is in `names`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def add(x: Any, other: Any, alpha: float = 1) -> Any:
    return x + other if alpha == 1 else torch.add(x, other, alpha=alpha)


def sub(x: Any, other: Any, alpha: float = 1) -> Any:
    return x - other if alpha == 1 else torch.sub(x, other, alpha=alpha)


def mul(x: Any, other: Any) -> Any:
    return x * other


def div(x: Any, other: Any, rounding_mode: str | None = None) -> Any:
    return x / other if rounding_mode is None else torch.div(x, other, rounding_mode=rounding_mode)


def floordiv(x: Any, other: Any) -> Any:
    return x // other


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    return torch.clamp(x, min, max)


def hardtanh(x: Tensor, min: float = -1.0, max: float = 1.0) -> Tensor:
    return F.hardtanh(x, min, max)


def getitem(x: Any, index: Any) -> Any:
    return x[index]


def size(x: Tensor, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


def mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return x.mean() if dim is None else x.mean(dim, keepdim)


def sum_(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return x.sum() if dim is None else x.sum(dim, keepdim)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape(tuple(shape))


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(tuple(shape))


def repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    return x.repeat(tuple(repeats))


def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    return x.permute(tuple(dims))


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    return torch.flatten(x, start_dim, end_dim)


def unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    return x.unflatten(dim, tuple(sizes))


def squeeze(x: Tensor, dim: Any = None) -> Tensor:
    return x.squeeze() if dim is None else x.squeeze(dim)


def split(x: Tensor, split_size_or_sections: Any, dim: int = 0) -> Any:
    return torch.split(x, split_size_or_sections, dim)


def roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    return torch.roll(x, shifts, dims)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x, dim)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(x, dim)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)


def avg_pool2d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> Tensor:
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor:
    return F.adaptive_avg_pool2d(x, output_size)


def adaptive_max_pool2d(x: Tensor, output_size: Any) -> Any:
    return F.adaptive_max_pool2d(x, output_size)


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    return F.pad(x, list(pad), mode, value)


def interpolate(x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None) -> Tensor:
    return F.interpolate(x, size, scale_factor, mode, align_corners)


def layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return F.layer_norm(x, tuple(normalized_shape), weight, bias, eps)


def group_norm(x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, eps)


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)


def embedding(x: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    return F.embedding(x, weight, padding_idx)


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def relu6(x: Tensor) -> Tensor:
    return F.relu6(x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return F.leaky_relu(x, negative_slope)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    return F.prelu(x, weight)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return F.softplus(x, beta, threshold)


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def mish(x: Tensor) -> Tensor:
    return F.mish(x)


def hardswish(x: Tensor) -> Tensor:
    return F.hardswish(x)


def hardsigmoid(x: Tensor) -> Tensor:
    return F.hardsigmoid(x)


def float_(x: Tensor) -> Tensor:
    return x.float()


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    return x.transpose(dim0, dim1)


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    return x.unsqueeze(dim)


def unbind(x: Tensor, dim: int = 0) -> Any:
    return x.unbind(dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> Any:
    return x.chunk(chunks, dim)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(list(tensors), dim)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return torch.stack(list(tensors), dim)


def matmul(x: Tensor, other: Tensor) -> Tensor:
    return x @ other


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def power(x: Tensor, exponent: Any) -> Tensor:
    return x**exponent


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    return F.normalize(x, p, dim, eps)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    return F.channel_shuffle(x, groups)


def identity(x: Any) -> Any:
    return x


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": sum_,
    "float": float_,
    "pow": power,
    **{
        f.__name__: f
        for f in (add, sub, mul, div, floordiv, clamp, hardtanh, getitem, size, mean, reshape, expand, repeat, permute, flatten, unflatten)
    },
    **{f.__name__: f for f in (squeeze, unsqueeze, split, chunk, unbind, roll, transpose, cat, stack, pad, interpolate, identity)},
    **{f.__name__: f for f in (avg_pool2d, max_pool2d, adaptive_avg_pool2d, adaptive_max_pool2d, pixel_shuffle, channel_shuffle)},
    **{f.__name__: f for f in (softmax, log_softmax, attention, layer_norm, group_norm, normalize)},
    **{f.__name__: f for f in (conv1d, conv_transpose2d, embedding, matmul, linear)},
    **{f.__name__: f for f in (relu, relu6, leaky_relu, elu, prelu, gelu, softplus, silu, mish, hardswish, hardsigmoid)},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "neg")},
}
# Functions whose last argument may be written as several
VARIADIC = {"reshape": "shape", "expand": "shape", "repeat": "repeats", "permute": "dims"}
