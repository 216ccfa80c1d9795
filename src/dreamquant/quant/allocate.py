"""MixedBits: an allocation that gives every tensor the bits with which the output loses least, within a budget."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from dreamquant.images import Images
from dreamquant.model import Model
from dreamquant.quant.budget import Budget
from dreamquant.quant.scheme import Int, Scheme, parse_bits
from dreamquant.quant.sensitivity import Sensitivity, SwapOneLayer, trial
from dreamquant.quant.student import Student
from dreamquant.run import Run


@dataclass(frozen=True)
class MixedBits:
    """Chooses each layer's bits, and each activation's where the budget names them: least predicted loss within `budget`.

    The prediction is the sum of what `sensitivity` finds for each tensor alone, on the recipe's images, or on noise where
    it has none. `base` is the scheme of all that is not chosen: ends, exceptions, placement, activations without a budget.
    Raises ValueError for a budget below the smallest candidate, for bit operations with activations in float, and for a
    budget of activations where sums have bits of their own: its trials would round the sums as well.
    """

    base: Scheme
    budget: Budget
    sensitivity: Sensitivity = SwapOneLayer()
    candidates: tuple[int, ...] = (2, 3, 4, 5, 6, 8)

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("MixedBits needs candidates, as (2, 4, 8)")
        for bits in self.candidates:
            Int(bits)  # tells what is no format
        if self.budget.unit == "bitops" and self.base.activations is None:
            raise ValueError("a budget of bit operations needs activations with bits; the scheme leaves them in float")
        if self.base.residual is not None and self.budget.activations is not None:
            raise ValueError("sums have bits of their own only where activations have a fixed number, as in mixed:4.0a4")
        for what, average in (("weights", self.budget.weights), ("activations", self.budget.activations)):
            if average is not None and average < min(self.candidates):
                raise ValueError(f"{average} bits on average for {what} are below the smallest candidate, {min(self.candidates)}")

    def on(self, model: Model, images: Images, run: Run) -> Scheme:
        """The scheme for this model; how losses fall as budgets grow goes to `run.fronts`."""
        student, places = trial(model, self.base)
        if self.budget.activations is None:
            places = [place for place in places if place.weight is not None]
        losses = self.sensitivity(student, places, self.candidates, self._pixels(model, images, run), run)
        bits: dict[str, int] = {}
        for share in self.budget.shares(student, places, losses, self.candidates):
            bits |= (mine := share.chosen(self.candidates))
            run.fronts[share.title] = share.drawn()
            counts = ", ".join(f"{b} bits in {count}" for b, count in sorted(Counter(mine.values()).items()))
            run.note(f"mixed {share.title}: {share.front.cost[share.taken] / share.whole:.2f} {share.unit} ({counts})")
        if any(name not in bits for name in student.layers()):
            run.note(f"mixed weights: {_average(student, bits):.2f} bits with the layers whose bits were not chosen, such as ends")
        base, layers, tensors = self.base, self.base.layers, self.base.tensors
        for place in places:
            if place.weight is not None:
                layers += ((place.name, replace(base.weights, bits=bits[place.name])),)
            elif base.activations is not None:
                tensors += ((place.name.removeprefix("q."), replace(base.activations, bits=bits[place.name])),)
        return replace(base, layers=layers, tensors=tensors)

    def _pixels(self, model: Model, images: Images, run: Run) -> torch.Tensor:
        if len(images):
            return images.pixels
        run.note("the recipe dreams no images, so bits were chosen by what is lost on noise")
        noise = torch.rand(64, *model.shape, generator=torch.Generator().manual_seed(run.number("noise")))
        return model.normalise(noise).to(model.device)


def _average(student: Student, bits: Mapping[str, int]) -> float:
    """Bits of a weight over all layers: those chosen, by name, and elsewhere those that the student has."""
    layers = student.layers().items()
    spent = sum(layer.weight.numel() * bits.get(name, layer.quantizer.format.bits) for name, layer in layers)
    return spent / sum(layer.weight.numel() for _, layer in layers)


def mixed_of(bits: str, ends: int | None = None) -> MixedBits:
    """The allocation that `mixed:4.0` asks for, in the formats of the literature; `w4a4` asks for these averages.

    >>> mixed_of("mixed:4.0").base.activations, mixed_of("mixed:4.0a4.5").budget
    (Int(bits=8, per='tensor', symmetric=False), Budget(weights=4.0, activations=4.5, unit='bits'))
    """
    weights, activations, uniform = parse_mixed(bits)
    form = None if uniform is None and activations is None else Int(uniform or 8)
    return MixedBits(Scheme(Int(8, "channel"), form, ends), Budget(weights, activations))


def parse_mixed(text: str) -> tuple[float, float | None, int | None]:
    """(average bits of weights, average bits of activations, bits of all activations); in float, neither of the latter.

    A whole number of bits for activations is that of each, as in w4a4; one with a point is an average. Without any: 8.

    >>> parse_mixed("mixed:4.0"), parse_mixed("mixed:3.5a4"), parse_mixed("mixed:4a4.0"), parse_mixed("mixed:4.0a32")
    ((4.0, None, 8), (3.5, None, 4), (4.0, 4.0, None), (4.0, None, None))
    """
    plain = text.strip().lower()
    if not plain.startswith("mixed"):
        weights, activations = parse_bits(text)
        return float(weights), activations and float(activations), None
    match = re.fullmatch(r"mixed:(\d+(?:\.\d+)?)(?:a(\d+(\.\d+)?))?", plain)
    if not match:
        raise ValueError(
            f"bits {text!r} do not parse; write them as mixed:4.0 (weights on average, activations 8), mixed:4.0a4 (each activation 4), "
            "mixed:4.0a4.0 (activations on average) or mixed:4.0a32 (activations in float)"
        )
    average, other = float(match[1]), match[2] or "8"
    if not 2 <= average <= 8 or not (2 <= float(other) <= 8 or other == "32"):
        raise ValueError(f"bits {text!r}: weights take 2 to 8 bits on average, activations 2 to 8 or 32 (float)")
    if match[3]:
        return average, float(other), None
    return average, None, None if other == "32" else int(other)
