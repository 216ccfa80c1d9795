"""Integer codes as bytes at their true width: eight codes of b bits take b bytes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that `count` codes of `bits` bits take, rounded up to whole groups of eight codes below 8 bits.

    >>> packed_bytes(800, 4), packed_bytes(800, 3)
    (400, 300)
    """
    return count if bits == 8 else -(-count // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Signed codes of any shape, each in -2^(bits-1) .. 2^(bits-1) - 1, as a flat tensor of bytes. ValueError outside 2 to 8 bits."""
    _check(bits)
    unsigned = codes.detach().cpu().numpy().astype(np.int64).ravel() + 2 ** (bits - 1)
    if unsigned.size and not 0 <= unsigned.min() <= unsigned.max() < 2**bits:
        raise ValueError(f"codes from {unsigned.min() - 2 ** (bits - 1)} to {unsigned.max() - 2 ** (bits - 1)} do not fit in {bits} bits")
    if bits == 8:
        return torch.from_numpy(unsigned.astype(np.uint8))
    groups = np.zeros(-(-unsigned.size // 8) * 8, np.uint64)
    groups[: unsigned.size] = unsigned.astype(np.uint64)
    words = np.zeros(len(groups) // 8, "<u8")
    for place in range(8):  # the first code takes the lowest bits
        words |= groups[place::8] << np.uint64(bits * place)
    return torch.from_numpy(np.ascontiguousarray(words.view(np.uint8).reshape(-1, 8)[:, :bits]).ravel().copy())


def unpack(data: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The int8 codes of this shape that `pack` made into bytes; ValueError when the number of bytes does not fit the shape."""
    _check(bits)
    count = math.prod(shape)
    if data.dtype != torch.uint8 or data.ndim != 1 or len(data) != packed_bytes(count, bits):
        expected = packed_bytes(count, bits)
        raise ValueError(f"{tuple(data.shape)} {data.dtype} is not {expected} bytes, which {count} codes of {bits} bits take")
    raw = data.cpu().numpy()
    if bits == 8:
        unsigned = raw.astype(np.int16)
    else:
        words = np.zeros((len(raw) // bits, 8), np.uint8)
        words[:, :bits] = raw.reshape(-1, bits)
        whole = words.view("<u8").ravel()
        mask = np.uint64(2**bits - 1)
        unsigned = np.stack([(whole >> np.uint64(bits * place)) & mask for place in range(8)], 1).ravel()[:count].astype(np.int16)
    return torch.from_numpy((unsigned - 2 ** (bits - 1)).astype(np.int8)).view(shape)


def _check(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits: codes have 2 to 8 bits")
