"""Pareto fronts: of choices that add up, those that no other beats in both cost and loss.

The multiple-choice knapsack problem by dynamic programming over fronts (Nemhauser and Ullmann 1969): one pass solves it
for every budget. Ours and not SciPy's integer programme, which solves one budget at a time, misses limits by its
tolerance, and (1.17) prints to standard output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

KEPT = 1 << 16  # points of a front; more are thinned, which costs at most this share of the budget at each step
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Front:
    """Points by rising cost and falling loss. `chosen`: (points, places), the number of the candidate that each place takes."""

    cost: Floats
    loss: Floats
    chosen: NDArray[np.uint8]

    def within(self, limit: float) -> int:
        """The number of the best point whose cost is `limit` at most; -1 where every one costs more."""
        return int(np.searchsorted(self.cost, limit, "right")) - 1


def choice(losses: Sequence[float], costs: Sequence[float], numbers: Sequence[int] | None = None) -> Front:
    """The front of one place: its candidates, all of them or those of these numbers."""
    numbers = range(len(losses)) if numbers is None else numbers
    return _front(np.array(costs, float), np.array(losses, float), np.array(numbers, np.uint8)[:, None])


def together(fronts: Sequence[Front]) -> Front:
    """A point of each, all costs and losses added."""
    return reduce(_both, fronts)


def either(fronts: Sequence[Front]) -> Front:
    """A point of any one of them, over the same places."""
    return _front(*(np.concatenate(parts) for parts in zip(*((f.cost, f.loss, f.chosen) for f in fronts), strict=True)))


def _both(a: Front, b: Front) -> Front:
    cost, loss = np.add.outer(a.cost, b.cost).ravel(), np.add.outer(a.loss, b.loss).ravel()
    kept = _undominated(cost, loss)
    chosen = np.concatenate([a.chosen[kept // len(b.cost)], b.chosen[kept % len(b.cost)]], axis=1)
    return Front(cost[kept], loss[kept], chosen)


def _front(cost: Floats, loss: Floats, chosen: NDArray[np.uint8]) -> Front:
    kept = _undominated(cost, loss)
    return Front(cost[kept], loss[kept], chosen[kept])


def _undominated(cost: Floats, loss: Floats) -> NDArray[np.int64]:
    """Numbers of the points that lose less than all that cost no more, by cost; at most about KEPT of them."""
    order = np.lexsort((loss, cost))
    before = np.minimum.accumulate(loss[order])
    order = order[np.append(True, before[1:] < before[:-1])]
    if len(order) > KEPT:  # the cheapest, and of those in one cell the one that costs most and loses least
        cell = np.floor((cost[order] - cost[order[0]]) * (KEPT / (cost[order[-1]] - cost[order[0]])))
        last = np.append(cell[1:] > cell[:-1], True)
        last[0] = True
        order = order[last]
    return order
