"""The command line's process keeps the memory that tensors leave."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from dreamquant.cli.memory import keep_memory
print(keep_memory() if {keep} else True)
torch.ones(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    can, count = done.stdout.split()
    return can == "True", int(count)


def test_a_large_tensor_takes_the_pages_of_the_one_before() -> None:
    can, kept = faults(keep=True)
    if not can:
        pytest.skip("another C library than glibc")
    _, fresh = faults(keep=False)
    assert fresh > 50 and kept < fresh / 10, "128 MiB anew are 32,768 pages of 4 KiB, or 64 of 2 MiB"
