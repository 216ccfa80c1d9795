from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamquant.quant.packing import pack, packed_bytes, unpack


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_what_is_packed_comes_back(bits: int, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator).to(torch.int8)
    packed = pack(codes, bits)
    assert len(packed) == packed_bytes(codes.numel(), bits)
    assert torch.equal(unpack(packed, bits, tuple(shape)), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_take_their_true_width(bits: int) -> None:
    assert len(pack(torch.zeros(16, 3, 3, 3, dtype=torch.int8), bits)) == 432 * bits // 8


def test_the_layout_of_three_bits_is_fixed() -> None:
    codes = torch.tensor([-4, -3, -2, -1, 0, 1, 2, 3], dtype=torch.int8)  # 0 .. 7 unsigned, the first in the lowest bits
    word = sum(value << (3 * place) for place, value in enumerate(range(8)))
    assert bytes(pack(codes, 3).tolist()) == word.to_bytes(3, "little")


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 4 bits"):
        pack(torch.tensor([8]), 4)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        pack(torch.tensor([0]), 9)


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="is not 4 bytes"):
        unpack(torch.zeros(5, dtype=torch.uint8), 4, (8,))
