"""Faults that tests inject."""

from __future__ import annotations

from collections.abc import Callable

from dreamquant.run import Loop


class Killed(Exception):
    """Stands for a kill: nothing in the package may catch it."""


def killing_after(count: int) -> Callable[[Loop, int], None]:
    """A replacement for Loop.save that dies after `count` saves, as an interrupted process would."""
    real, left = Loop.save, [count]

    def save(self: Loop, following: int) -> None:
        real(self, following)
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return save
