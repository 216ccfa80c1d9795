"""What a network says of its own tensors, with no data: mean and variance of every element, from BatchNorm's records.

BatchNorm's affine is the mean and deviation of its output over the training data (DFQ, Nagel et al. 2019). From there the
moments go through activations in closed form, through sums, pools and concatenations as of independent values, and
through layers without a record as of inputs half correlated over a kernel's taps (ours).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.normal import clipped, through

if TYPE_CHECKING:
    from dreamquant.model import Model

PIXEL_MEAN, PIXEL_STD = 0.45, 0.26  # of natural images, in pixels of [0, 1]
CORRELATION = 0.5  # of neighbouring positions
UNKNOWN = object()  # a tensor of which no moments are known: attention's scores, say


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """Mean and deviation of each channel of a tensor over the training data, (C,) each: what BatchNorm knew before it was folded."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean and variance of every element of a tensor over unseen images, (1, ...) each. Its channels lie along `axis`.

    `guessed` counts the layers without a record since the last one: 0 and 1 are sound, more is a guess upon guesses.
    """

    mean: Tensor
    var: Tensor
    axis: int
    guessed: int = 0

    def channels(self, axis: int | None = None) -> ChannelStats:
        """The same over all positions of a channel, along an axis that a layer reads, if not along its own."""
        axis = (self.axis if axis is None else axis) % self.mean.ndim
        over = [a for a in range(self.mean.ndim) if a != axis]
        mean = self.mean.mean(over)
        second = (self.var + self.mean.square()).mean(over)
        return ChannelStats(mean, (second - mean.square()).clamp_min(0).sqrt())

    @property
    def numbers(self) -> Tensor:
        """The number of each element's channel, laid out as the mean, so that views of one are views of the other."""
        wide = [-1 if a == self.axis else 1 for a in range(self.mean.ndim)]
        return torch.zeros_like(self.mean) + torch.arange(1.0, self.mean.shape[self.axis] + 1, device=self.mean.device).view(wide)


def moments(model: Model) -> Mapping[str, Spread]:
    """The spread of every tensor that has one, by node name. One pass over the graph, on the device of the model."""
    going = _Propagation(model)
    with torch.no_grad():
        going.run(going.image())
    return going.spreads


def activation(net: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """The function of one tensor that an activation or gate computes."""

    def function(x: Tensor) -> Tensor:
        args, kwargs = (x, *node.args[1:]), dict(node.kwargs)
        if node.op == "call_module":
            value = net.get_submodule(str(node.target))(*args, **kwargs)
        else:
            value = getattr(x, node.target)(*args[1:], **kwargs) if isinstance(node.target, str) else node.target(*args, **kwargs)
        assert isinstance(value, Tensor)
        return value

    return function


def floor(net: fx.GraphModule, node: fx.Node) -> float:
    """A value that no element of this tensor is below; -inf where none is known."""
    kind = graph.kind(net, node)
    if kind == "act":
        return (graph.clip_of(net, node) or (-math.inf,))[0]
    if kind not in ("move", "mean", "add", "cat"):
        return -math.inf
    if kind == "add":
        a, b, scale = _summands(node.args, node.kwargs)
        ends = [floor(net, part) if isinstance(part, fx.Node) else part for part in (a, b)]
        numbers = all(isinstance(v, int | float) for v in (*ends, scale))
        return ends[0] + scale * ends[1] if numbers and scale > 0 else -math.inf
    return min((floor(net, source) for source in node.all_input_nodes), default=-math.inf)


class _Propagation(fx.Interpreter):
    """Carries Spreads through the graph. What reads an UNKNOWN is UNKNOWN, until a record says more."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.net, garbage_collect_values=False)
        self.model, self.net = model, model.net
        self.spreads: dict[str, Spread] = {}

    def image(self) -> Spread:
        """Natural images, as the network takes them."""
        plain = torch.full((1, *self.model.shape), PIXEL_MEAN, device=self.model.device)
        std = torch.tensor(self.model.std, device=plain.device).view(1, -1, 1, 1)
        return Spread(self.model.normalise(plain), (PIXEL_STD / std).square().expand_as(plain), 1)

    def run_node(self, n: fx.Node) -> Any:
        value = self._value(n)
        if isinstance(value, Spread):
            self.spreads[n.name] = value
        return value

    def _value(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = _parts((args, kwargs))
        sources = [part for part in given if isinstance(part, Spread)]
        record = self._record(n)
        if record is not None:
            return record
        if n.op.startswith("call") and any(part is UNKNOWN for part in given):
            return UNKNOWN
        if n.op.startswith("call") and sources:
            return self._through(n, args, kwargs, sources)
        return super().run_node(n)

    def _record(self, n: fx.Node) -> Spread | None:
        """What the network itself says of this tensor."""
        module = self.net.get_submodule(str(n.target)) if n.op == "call_module" else None
        if graph.kind(self.net, n) == "bn":
            assert module is not None
            return self._like(n, batch_norm_stats(module), 1)
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine and module.weight.ndim == 1:
            # each channel in units of its token's deviation: its affine, roughly
            shift = torch.zeros_like(module.weight) if module.bias is None else module.bias
            return self._like(n, ChannelStats(shift, module.weight.abs()), -1)
        folded = self.model.channel_stats.get(n.name)
        return None if folded is None else self._like(n, folded, channel_axis(module))

    def _like(self, n: fx.Node, record: ChannelStats, axis: int) -> Spread:
        shape = (1, *n.meta["shape"][1:])
        wide = [-1 if a == axis % len(shape) else 1 for a in range(len(shape))]
        mean, std = (v.detach().to(self.model.device).view(wide).expand(shape) for v in (record.mean, record.std))
        return Spread(mean, std.square(), axis % len(shape))

    def _through(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], sources: list[Spread]) -> Any:
        def call(values: Any) -> Any:
            return getattr(self, n.op)(n.target, *values)

        x = sources[0]
        match graph.kind(self.net, n):
            case "conv" | "linear":
                return self._product(n, x)
            case "act":
                return self._activated(n, x)
            case "gate" if x.mean.ndim == 4:  # softmax over tokens has no closed form
                mean, var = through(activation(self.net, n), x.mean, x.var)
                return replace(x, mean=mean, var=var)
            case "add":
                return _sum(*_summands(args, kwargs))
            case "mul" if len(sources) == 2:
                a, b = sources
                var = a.mean**2 * b.var + b.mean**2 * a.var + a.var * b.var
                return Spread(a.mean * b.mean, var, _axis(sources), max(a.guessed, b.guessed))
            case "mean":
                mean, var = (call(_replaced((args, kwargs), which)) for which in ("mean", "var"))
                count = x.mean.numel() / mean.numel()
                axis = _moved(x, mean, call(_replaced((args, kwargs), "numbers")))
                return Spread(mean, var * (CORRELATION + (1 - CORRELATION) / count), axis, x.guessed)
            case "move" | "cat":
                guessed = max(s.guessed for s in sources)
                mean, var, numbers = (call(_replaced((args, kwargs), which)) for which in ("mean", "var", "numbers"))
                if isinstance(mean, Tensor):
                    return Spread(mean, var, _moved(x, mean, numbers), guessed)
                parts = zip(mean, var, numbers, strict=True)
                return tuple(Spread(m, v, _moved(x, m, found), guessed) for m, v, found in parts)
        value = call(_replaced((args, kwargs), "mean"))
        return UNKNOWN if isinstance(value, Tensor) else value  # sizes are known

    def _product(self, n: fx.Node, x: Spread) -> Spread:
        layer = self.net.get_submodule(str(n.target))
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight.detach()
        mean, apart = layer(x.mean), applied(layer, weight.square(), x.var)
        axis = channel_axis(layer) % mean.ndim
        if weight[0, 0].numel() == 1:
            return Spread(mean, apart, axis, x.guessed + 1)
        # fully correlated taps act as one: their sum, standing in the middle of the kernel
        summed = torch.zeros_like(weight)
        summed[..., weight.shape[2] // 2, weight.shape[3] // 2] = weight.sum((2, 3)).square()
        together = applied(layer, summed, x.var)
        return Spread(mean, (1 - CORRELATION) * apart + CORRELATION * together, axis, x.guessed + 1)

    def _activated(self, n: fx.Node, x: Spread) -> Spread:
        clip = graph.clip_of(self.net, n)
        mean, var = clipped(x.mean, x.var, *clip) if clip else through(activation(self.net, n), x.mean, x.var)
        return replace(x, mean=mean, var=var)


def _summands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """a, b and s of a + s b, as a sum was called."""
    given = dict(zip(("input", "other"), args, strict=False)) | dict(kwargs)
    return given["input"], given["other"], given.get("alpha", 1)


def _sum(a: Any, b: Any, scale: float) -> Spread:
    """Of a + scale b, as of independent values; a constant shifts the mean."""
    first, second = (part.mean if isinstance(part, Spread) else torch.as_tensor(part) for part in (a, b))
    mean = first + scale * second
    sources = [(part, factor) for part, factor in ((a, 1.0), (b, scale)) if isinstance(part, Spread)]
    var = torch.stack([factor**2 * part.var.expand_as(mean) for part, factor in sources]).sum(0)
    return Spread(mean, var, _axis([part for part, _ in sources]), max(part.guessed for part, _ in sources))


def _axis(sources: Sequence[Spread]) -> int:
    """That of the one with most axes, to which the others are expanded."""
    return max(sources, key=lambda source: source.mean.ndim).axis


def _moved(x: Spread, to: Tensor, numbers: Any) -> int:
    """Where the channels of x went: the axis along which their numbers differ, moved as the values were."""
    if not isinstance(numbers, Tensor):
        return x.axis
    found = [axis for axis in range(1, to.ndim) if (numbers != numbers.narrow(axis, 0, 1)).any()]
    if len(found) != 1 and to.ndim == x.mean.ndim:
        return x.axis  # padding has no number of its own
    return found[-1] if found else to.ndim - 1


def channel_axis(layer: nn.Module | None) -> int:
    """Where the channels of what a layer reads and writes lie."""
    return 1 if isinstance(layer, nn.Conv2d) else -1


def applied(layer: nn.Conv2d | nn.Linear, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer would compute with these weights and no bias."""
    return F.linear(x, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, None)


def batch_norm_stats(module: nn.Module) -> ChannelStats:
    """Mean and deviation of a BatchNorm's output over the training data: its affine."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None
    weight = module.weight if module.weight is not None else torch.ones_like(module.running_mean)
    bias = module.bias if module.bias is not None else torch.zeros_like(module.running_mean)
    return ChannelStats(bias.detach(), weight.detach().abs())


def scaled_stats(stats: ChannelStats, factor: Tensor) -> ChannelStats:
    """The record of the same tensor, its channels multiplied by positive factors (C,)."""
    return replace(stats, mean=stats.mean * factor, std=stats.std * factor)


def _parts(given: Any) -> list[Any]:
    """The leaves of nested arguments."""
    found: list[Any] = []
    fx.node.map_aggregate(given, lambda a: found.append(a))
    return found


def _replaced(given: Any, which: str) -> Any:
    return fx.node.map_aggregate(given, lambda a: getattr(a, which) if isinstance(a, Spread) else a)
