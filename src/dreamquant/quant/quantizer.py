"""Quantizer: one grid on one tensor, and the rules by which it acts.

A quantizer is placed once, at conversion, and never exchanged or wrapped, because instrumented copies of the graph hold
it. What changes is its rule, inside a `with acting(...)` block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor

from dreamquant.quant.ranges import MinMax, Observer, RunningMinMax, over, to_grid
from dreamquant.quant.scheme import Int


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, form: Int) -> Tensor:
    """Values on the grid, without gradients; the bits of PyTorch's own kernels. A CPU runs them 25 times slower, and the one
    for grids of channels makes a GPU wait.
    """
    if x.is_cuda and not scale.ndim:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), form.low, form.high)
    low, high = form.low - zero, form.high - zero
    return snapped(x, scale, low, high) if scale.ndim else snapped(x, scale, low.item(), high.item())


def snapped(x: Tensor, scale: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The nearest multiples of `scale` between `low` and `high` times it, without gradients. Bounds that are numbers are fast."""
    return (x * scale.reciprocal()).round_().clamp_(low, high).mul_(scale)  # type: ignore[arg-type]  # two overloads, one union


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, form: Int) -> Tensor:
        return fake_quantize(x, scale, zero, form)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


class Stepped(torch.autograd.Function):
    """Values on the grid, those where `dropped` is one unchanged; gradients to the value inside the range, and to the step.

    Ours and not torch's learnable kernel, which truncates negative zero points (2.13: int(zero + 0.5)). Masks are floats,
    and what can be is done in place: a CPU does not vectorise booleans and `where`, and is slow to hand out memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, form: Int, dropped: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, scale, zero, dropped)
        ctx.form = form
        y = fake_quantize(x, scale, zero, form)
        return y if dropped is None else y.lerp_(x, dropped)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale, zero, dropped), form, (gradient,) = ctx.saved_tensors, ctx.form, gradients
        low, high = form.low - zero, form.high - zero
        v = x * scale.reciprocal()
        code = v.clamp(low, high) if scale.ndim or v.is_cuda else v.clamp(low.item(), high.item())  # a GPU would wait for the numbers
        inside = v.sub_(code).eq_(0)
        mine = gradient if dropped is None else gradient.addcmul(gradient, dropped, value=-1)
        to_scale = None
        if ctx.needs_input_grad[1]:
            # d output / d scale = round(v) - v inside, the code at the end outside
            step = code.round().addcmul_(code, inside, value=-1).mul_(mine)
            factor = (scale.numel() / (x.numel() * form.high)) ** 0.5
            to_scale = step.sum(over(x, form)).view(scale.shape) * factor
        to_x = inside.mul_(mine)
        return to_x if dropped is None else to_x.addcmul_(gradient, dropped), to_scale, None, None, None


class Rule(nn.Module):
    """Quantize; the gradient passes unchanged, clipped elements included (the min-max family of the papers)."""

    learns: bool = False
    everywhere: bool = False  # acts on quantizers that are not live, too

    def grid(self, q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        return q.scale, q.zero

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        scale, zero = self.grid(q, x)
        return _Straight.apply(x, scale, zero, q.format)


class Inside(Rule):
    """Quantize; the gradient passes only where the value is inside the range."""

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        scale, zero = self.grid(q, x)
        return Stepped.apply(x, scale.detach(), zero, q.format)


class Following(Rule):
    """The grid spans the tensor, wherever it goes: weights in training."""

    def grid(self, q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        return to_grid(*MinMax()(x.detach(), q.format), q.format)


class LearnedStep(Rule):
    """LSQ (Esser et al. 2020): gradients to the value inside the range, and to the step everywhere.

    The step's gradient is scaled by 1 / sqrt(values per grid * highest code).
    """

    learns = True

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        return Stepped.apply(x, q.scale, q.zero, q.format)


class LearnedClip(Rule):
    """PACT (Choi et al. 2018): gradient to the upper clip value where the value is beyond it.

    The clip value is the scale times the number of steps to it. The scale's gradient is divided by that number, not
    multiplied, so that gradient descent moves the clip value as if it were the parameter itself, whatever the bits.
    """

    learns = True

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        steps = (q.format.high - q.zero).clamp_min(1)  # a range without a positive value has none
        clip = (steps * q.scale).detach() + (q.scale - q.scale.detach()) / steps
        clipped = torch.minimum(x, clip)
        return _Straight.apply(clipped, q.scale.detach(), q.zero, q.format)


class Watching(Rule):
    """Values pass unchanged and are observed; the grid is set when the block ends."""

    everywhere = True

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        self.observer.see(x.detach())
        return x


class Tracking(Rule):
    """Values are quantized by a grid that spans the mean of the batches' extremes so far."""

    everywhere = True
    seen: Tensor

    def __init__(self, mean: RunningMinMax, device: torch.device) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("seen", torch.zeros(3, device=device))  # low, high, weight: saved with the network

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        q.set(*to_grid(*self.mean.follow(self.seen, x.detach()), q.format))
        return super().forward(q, x) if q.live else x


class Quantizer(nn.Module):
    """value = scale * (code - zero), code between format.low and format.high.

    The scale is NaN until a range is known, so that nothing runs on a guess. A quantizer that is not `live` lets values
    pass: integer kernels will need its grid, the simulation does not use it.
    """

    def __init__(self, form: Int, shape: tuple[int, ...] = (), live: bool = True, rule: Rule | None = None) -> None:
        super().__init__()
        self.format, self.live = form, live
        self.rule = rule or Rule()
        self.scale = nn.Parameter(torch.full(shape, torch.nan), requires_grad=False)
        self.zero = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero) that would be used for `x` now."""
        return self.rule.grid(self, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x) if self.live or self.rule.everywhere else x

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of `x`, as a float tensor."""
        scale, zero = self.grid(x)
        # PyTorch's kernel multiplies by the reciprocal, which rounds other ties than a division does
        return (torch.round(x * scale.reciprocal()) + zero).clamp(self.format.low, self.format.high)

    def set(self, scale: Tensor, zero: Tensor) -> None:
        """Put the grid here."""
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero.copy_(zero)

    def fix(self, scale: Tensor, zero: Tensor) -> None:
        """Put the grid here, and let it stand still from now on."""
        self.set(scale, zero)
        self.rule = Rule()

    def get_extra_state(self) -> dict[str, Any]:
        return {"bits": self.format.bits, "follows": isinstance(self.rule, Following)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.format = replace(self.format, bits=state["bits"])
        if not state["follows"] and isinstance(self.rule, Following):
            self.rule = Rule()


class Acting(Protocol):
    """A part that names a rule: a value, so that a recipe's repr can be read back."""

    def on(self, q: Quantizer) -> Rule: ...


@dataclass(frozen=True)
class PassAll:
    """Straight-through everywhere; see `Rule`."""

    def on(self, q: Quantizer) -> Rule:
        return Rule()


@dataclass(frozen=True)
class PassInside:
    """Straight-through inside the range only; see `Inside`."""

    def on(self, q: Quantizer) -> Rule:
        return Inside()


@dataclass(frozen=True)
class LearnSteps:
    """Steps are learned; see `LearnedStep`."""

    def on(self, q: Quantizer) -> Rule:
        return LearnedStep()


@dataclass(frozen=True)
class LearnClips:
    """Upper clip values are learned; see `LearnedClip`."""

    def on(self, q: Quantizer) -> Rule:
        return LearnedClip()


class Floor:
    """Learned steps of grids stay above a quarter of what they were at the first update (ours). Live; `with` an optimizer's update.

    A rate is absolute, and steps of 8 bits are small: it would take some below zero, where a grid is mirrored, and
    integer kernels have no form for that.
    """

    def __init__(self, steps: Sequence[Tensor]) -> None:
        self.steps = steps
        self.least: list[Tensor] = []

    def __enter__(self) -> None:
        self.least = self.least or [step.detach() / 4 for step in self.steps]

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for step, least in zip(self.steps, self.least, strict=True):
                step.clamp_(min=least)

    def state_dict(self) -> dict[str, Any]:
        return {"least": self.least}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.least = [least.to(step.device) for least, step in zip(state["least"], self.steps, strict=False)]


@contextlib.contextmanager
def acting(rules: Mapping[Quantizer, Rule]) -> Iterator[None]:
    """These quantizers act by these rules inside the block, and as before after it."""
    before = {q: q.rule for q in rules}
    for q, rule in rules.items():
        q.rule = rule
    try:
        yield
    finally:
        for q, rule in before.items():
            q.rule = rule
