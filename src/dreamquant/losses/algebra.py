"""Losses add and scale as in the papers: `20 * SoftLabel(20.0) + HardLabel()` is a value that prints as this equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.trace import Trace, Watch

S = TypeVar("S", bound=Trace, contravariant=True)  # a Loss[Trace] is a Loss[Pair]
R = TypeVar("R", bound=Trace)


class Loss(Generic[S]):
    """A frozen description of what should be small. `needs` names what it reads; see `graph.points`."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, seen: S) -> Tensor:
        raise NotImplementedError

    def on(self, model: Model) -> Loss[S]:
        """The live form: an nn.Module where the loss has a memory, else itself."""
        return self

    def wants(self) -> frozenset[str]:
        """What this loss and the losses in it need."""
        return self.needs

    def remember(self, seen: S) -> None:
        """Take in a finished batch: only the live form of a loss with a memory has anything to do."""
        return

    def __add__(self: Loss[R], other: Loss[R]) -> Sum[R]:
        return Sum(((1.0, self),)) + other if isinstance(other, Loss) else NotImplemented

    def __rmul__(self: Loss[R], weight: float) -> Sum[R]:
        return Sum(((float(weight), self),))


@dataclass(frozen=True, repr=False)
class Sum(Loss[S]):
    """Terms with weights."""

    terms: tuple[tuple[float, Loss[S]], ...]

    def __call__(self, seen: S) -> Tensor:
        return sum((weight * term(seen) for weight, term in self.terms), torch.zeros((), device=seen.logits.device))

    def wants(self) -> frozenset[str]:
        return frozenset[str]().union(*(term.wants() for _, term in self.terms))

    def on(self, model: Model) -> Loss[S]:
        return Sum(tuple((weight, term.on(model)) for weight, term in self.terms))

    def __add__(self: Sum[R], other: Loss[R]) -> Sum[R]:
        if not isinstance(other, Loss):
            return NotImplemented
        return Sum(self.terms + (other.terms if isinstance(other, Sum) else ((1.0, other),)))

    def __rmul__(self: Sum[R], weight: float) -> Sum[R]:
        return Sum(tuple((weight * w, term) for w, term in self.terms))

    def __repr__(self) -> str:
        return " + ".join(repr(term) if weight == 1 else f"{weight!r} * {term!r}" for weight, term in self.terms) or "Sum(())"


class Objective(nn.Module, Generic[R]):
    """A loss at work on one model: its memories, and the last value of every term, for the log and the NaN guard."""

    def __init__(self, loss: Loss[R], model: Model) -> None:
        super().__init__()
        self.needs = loss.wants()
        terms = loss.terms if isinstance(loss, Sum) else ((1.0, loss),)
        self.terms = [(weight, term.on(model)) for weight, term in terms]
        kinds = [type(term).__name__ for _, term in terms]
        self.names = [kind + (str(n) if (n := kinds[:i].count(kind) + 1) > 1 else "") for i, kind in enumerate(kinds)]
        self.memories = nn.ModuleList(term for _, term in self.terms if isinstance(term, nn.Module))
        self.values: Mapping[str, Tensor] = {}

    def forward(self, seen: R) -> Tensor:
        values = [weight * term(seen) for weight, term in self.terms]
        self.values = {name: value.detach() for name, value in zip(self.names, values, strict=True)}
        return sum(values, torch.zeros((), device=seen.logits.device))

    def remember(self: Objective[Trace], watch: Watch, images: Images) -> None:
        """Losses with a memory take in a finished batch, as the network sees it without any transform."""
        if self.memories:
            with torch.no_grad():
                self.take_in(watch(images))

    def take_in(self: Objective[Trace], seen: Trace) -> None:
        """Losses with a memory take in a batch that was seen."""
        for _, term in self.terms:
            term.remember(seen)
