"""Int and Scheme: what the hardware can represent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from dreamquant.images import Images
    from dreamquant.model import Model
    from dreamquant.run import Run


@dataclass(frozen=True)
class Int:
    """An integer format: 2 to 8 bits, one grid for the tensor or one for each output channel.

    >>> Int(4).low, Int(4).high, Int(4, symmetric=True).low
    (-8, 7, -7)
    """

    bits: int
    per: Literal["tensor", "channel"] = "tensor"
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{self.bits} bits: integer formats have 2 to 8 bits")
        if self.per not in ("tensor", "channel"):
            raise ValueError(f"per={self.per!r}: choose 'tensor' or 'channel'")

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) + self.symmetric

    @property
    def high(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1


@dataclass(frozen=True, repr=False)
class Scheme:
    """Formats of weights and activations, and where quantizers stand.

    `paper`: weights, outputs of activation functions and inputs of convolutions and linears, as the literature compares
    (the image, normalised inside or not, and averages of quantized tensors stay in float; BatchNorm is not folded). `deploy`:
    every tensor an integer kernel reads or writes. `ends`: bits of the first and last layer's weights and of what the second and the
    last layer read. `spare`: the format of tensors that only an integer kernel quantizes. `layers`: exceptions for weights,
    by the layer's name. `tensors`: exceptions for activations, by the name of the node that makes them. `residual`: the
    least bits of a tensor that a sum reads, be it through a pool or a slice; layers that read it too have it rounded once
    more, to their own bits. What only an integer kernel quantizes keeps `spare`. Without it, sums read what layers read.
    """

    weights: Int
    activations: Int | None
    ends: int | None = None
    placement: Literal["paper", "deploy"] = "paper"
    spare: Int = Int(8)
    layers: tuple[tuple[str, Int], ...] = ()
    tensors: tuple[tuple[str, Int], ...] = ()
    residual: int | None = None

    def __post_init__(self) -> None:
        if self.placement not in ("paper", "deploy"):
            raise ValueError(f"placement {self.placement!r}: choose 'paper' or 'deploy'")
        if self.ends is not None and not 2 <= self.ends <= 8:
            raise ValueError(f"ends of {self.ends} bits: the first and the last layer take 2 to 8")
        if self.residual is not None and not 2 <= self.residual <= 8:
            raise ValueError(f"residual of {self.residual} bits: what sums read takes 2 to 8")
        for form in (self.activations, self.spare, *dict(self.tensors).values()):
            if form is not None and form.per != "tensor":
                raise ValueError(f"activations as {form!r}: a tensor of activations has one grid; choose per='tensor'")

    def __repr__(self) -> str:
        """Evaluates back; `tensors` and `residual` are left out where empty, so that records from before they existed stay equal."""
        shown = [field.name for field in fields(self) if field.name not in ("tensors", "residual") or getattr(self, field.name)]
        return f"Scheme({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def on(self, model: Model, images: Images, run: Run) -> Scheme:
        """Itself: a scheme is the simplest allocation of bits."""
        return self

    def exceptions(self) -> Mapping[str, Int]:
        """Formats of the weights of layers that differ."""
        return dict(self.layers)

    def weight_format(self, name: str, number: int, count: int) -> Int:
        """The format of the weights of layer `name`, `number` of `count` in execution order."""
        end = self.ends is not None and number in (0, count - 1)
        usual = replace(self.weights, bits=self.ends) if end and self.ends else self.weights
        return self.exceptions().get(name, usual)

    def tensor_format(self, name: str, usual: Int) -> Int:
        """The format of the activation that node `name` makes; `usual` where it is no exception."""
        return dict(self.tensors).get(name, usual)


class Allocation(Protocol):
    """Chooses the scheme once images exist. A Scheme is one; so is a search over trial students."""

    def on(self, model: Model, images: Images, run: Run) -> Scheme: ...


def parse_bits(text: str) -> tuple[int, int | None]:
    """Bits of weights and activations; activations in float are None.

    >>> parse_bits("w4a8"), parse_bits("W3A32")
    ((4, 8), (3, None))
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
    if not match:
        raise ValueError(
            f"bits {text!r} do not parse; write them as w4a4, w8a8 or w4a32 (weights, then activations; a32 is float), "
            "or as mixed:4.0 for a recipe that can mix them"
        )
    weights, activations = int(match[1]), int(match[2])
    if not 2 <= weights <= 8 or not (2 <= activations <= 8 or activations == 32):
        raise ValueError(f"bits {text!r}: weights take 2 to 8 bits, activations 2 to 8 or 32 (float)")
    return weights, None if activations == 32 else activations


def uniform(bits: str, ends: int | None = None) -> Scheme:
    """The scheme of the literature: weights per channel, activations per tensor, both asymmetric, all of the same bits."""
    weights, activations = parse_bits(bits)
    return Scheme(Int(weights, "channel"), activations and Int(activations) or None, ends)


def scheme_of(bits: str, ends: int | None = None) -> Allocation:
    """What --bits asks for: one number of bits for all, or, of `mixed:4.0`, the choice of each layer's; see `parse_mixed`."""
    from dreamquant.quant.allocate import mixed_of  # it makes trial students, which are made by schemes

    return mixed_of(bits, ends) if bits.strip().lower().startswith("mixed") else uniform(bits, ends)
