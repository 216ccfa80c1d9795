"""The command line's process keeps the memory that tensors leave."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from dreamquant.cli.memory import keep_memory
print(keep_memory() if {keep} else True)
for number in range(12):
    made = [torch.ones(1 << 20, size) for size in (8, 12, 6, 10)]  # let go together, as after an update
    del made
    if number == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    can, count = done.stdout.split()
    return can == "True", int(count)


def test_large_tensors_take_the_pages_of_those_before() -> None:
    can, kept = faults(keep=True)
    if not can:
        pytest.skip("another C library than glibc")
    assert kept < faults(keep=False)[1] / 4
