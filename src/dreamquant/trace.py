"""What a network did with a batch. The only file that instruments networks.

It rewrites a copy of the graph so that it RETURNS what the losses need. Hooks cannot see functions (`F.relu`, `+`), and
leave traces behind; here there is nothing to remove. BatchNorm becomes a function that returns its output and the
moments of its normalised input, so that the statistics cost no extra pass over memory.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.images import Images
from dreamquant.model import Model

BY_LOSS = frozenset({"student", "pixels", "bn"})  # needs that are not places in the graph


class _Normalise(torch.autograd.Function):
    """Eval BatchNorm, and the first two moments of its normalised input z per image and channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def wide(v: Tensor) -> Tensor:
            return v.view(1, -1, *[1] * (x.ndim - 2))

        z = torch.addcmul(wide(shift), x, wide(scale))  # (x - mu) / sigma
        ctx.save_for_backward(z, scale, weight)
        places = tuple(range(2, z.ndim))
        first, second = (z.mean(places), (z * z).mean(places)) if places else (z.clone(), z * z)
        return torch.addcmul(wide(bias), z, wide(weight)), first, second

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        output, first, second = gradients
        z, scale, weight = ctx.saved_tensors
        count = z[0, 0].numel()
        ones = [1] * (z.ndim - 2)
        # d mean(z) / dx = scale / n,  d mean(z^2) / dx = 2 z scale / n
        gradient = torch.addcmul(
            (first * scale / count).view(*first.shape, *ones), z, (second * scale * (2 / count)).view(*first.shape, *ones)
        )
        return gradient.addcmul_(output, (weight * scale).view(1, -1, *ones)), None, None, None, None


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one BatchNorm's input in units of its own record: E[z] and E[z^2] per image and channel, z = (x - mu) / sigma."""

    first: Tensor  # (B, C)
    second: Tensor  # (B, C)
    mu: Tensor  # (C,)
    sigma: Tensor  # (C,)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of z over the batch, (C,) each. No cancellation, whatever mu and sigma are."""
        mean = self.first.mean(0)
        return mean, (self.second.mean(0) - mean.square()).clamp_min(0)

    def image(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of z within each image, (B, C) each."""
        return self.first, (self.second - self.first.square()).clamp_min(0)


class BatchNormMoments(nn.Module):
    """Stands for a BatchNorm in the rewritten graph: (B, C, ...) -> output, E[z], E[z^2]."""

    def __init__(self, bn: nn.BatchNorm1d | nn.BatchNorm2d, batch_statistics: bool) -> None:
        super().__init__()
        assert bn.running_mean is not None and bn.running_var is not None
        self.batch_statistics, self.eps = batch_statistics, bn.eps
        self.mu, self.sigma = bn.running_mean, (bn.running_var + bn.eps).sqrt()
        self.affine = [bn.weight, bn.bias] if bn.affine else [torch.ones_like(self.mu), torch.zeros_like(self.mu)]  # borrowed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self.affine
        output, first, second = _Normalise.apply(x, 1 / self.sigma, -self.mu / self.sigma, weight, bias)
        if self.batch_statistics:  # as in train mode, buffers untouched
            output = F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        return output, first, second


class Watch:
    """One network made to return what `needs` names: a point of the model (see `graph.points`), or a node or module."""

    def __init__(self, model: Model, needs: frozenset[str], net: fx.GraphModule | None = None) -> None:
        self.model, self.source, self.needs = model, net or model.net, needs
        self.made: dict[bool, nn.Module] = {}
        self.tails: dict[str, fx.GraphModule] = {}
        self.places = {need: model.points.get(need, (need,)) for need in sorted(needs - BY_LOSS)}
        for need, nodes in self.places.items():
            if not nodes:
                raise ValueError(f"{model.name} has no place for {need!r}, which a loss of the recipe needs")
        if "bn" in needs and not model.has_batch_norm():
            raise ValueError(f"{model.name} has no BatchNorm, whose statistics a loss of the recipe matches")
        self.moments = "bn" in needs

    def node(self, need: str, name: str) -> fx.Node:
        """The node whose tensor a needed place gives."""
        quantizer = "q." + name
        behind = need == "passed" and any(node.target == quantizer for node in self.source.graph.nodes)
        return graph.named(self.source, quantizer if behind else name)

    def places_in(self, bn: str) -> int:
        """How many places per image the input of a BatchNorm node has."""
        return math.prod(graph.named(self.source, bn).meta["shape"][2:])

    @cached_property
    def tail(self) -> fx.GraphModule:
        """From the tensors of "saliency" to the logits."""
        return self.tail_from("saliency")

    def tail_from(self, need: str) -> fx.GraphModule:
        """From the tensors of a needed place to the logits."""
        if need not in self.tails:
            self.tails[need] = graph.cut_out(self.source, self.places[need], graph.output_of(self.source).name)
        return self.tails[need]

    def _build(self, batch_statistics: bool) -> nn.Module:
        new, have, moments = fx.Graph(), dict[str, fx.Node](), dict[str, Any]()
        host = nn.Module()
        host._modules = dict(self.source._modules)
        host._buffers, host._parameters = self.source._buffers, self.source._parameters
        host.moments = nn.Module()
        for node in self.source.graph.nodes:
            if node.op == "output":
                break
            copy = have[node.name] = new.node_copy(node, lambda n: have[n.name])
            if (self.moments or batch_statistics) and graph.kind(self.source, node) == "bn":
                bn = self.source.get_submodule(str(node.target))
                assert isinstance(bn, nn.BatchNorm2d | nn.BatchNorm1d)
                host.moments.add_module(node.name, BatchNormMoments(bn, batch_statistics))
                copy.target = "moments." + node.name
                have[node.name], *pair = (new.call_function(operator.getitem, (copy, i)) for i in range(3))
                moments[node.name] = tuple(pair)
        at = {need: tuple(have[self.node(need, n).name] for n in nodes) for need, nodes in self.places.items()}
        new.output({"logits": have[graph.output_of(self.source).name], "moments": moments, "at": at})
        return fx.GraphModule(host, new)

    def __call__(self, images: Images, batch_statistics: bool = False) -> Trace:
        if batch_statistics not in self.made:
            self.made[batch_statistics] = self._build(batch_statistics)
        made = self.made[batch_statistics]
        seen = made(images.pixels.contiguous(memory_format=torch.channels_last))  # a third faster on a CPU
        moments = {}
        for name, (first, second) in seen["moments"].items():
            bn = made.get_submodule("moments." + name)
            assert isinstance(bn, BatchNormMoments)
            moments[name] = Moments(first, second, bn.mu, bn.sigma)

        def again(pixels: Tensor | None = None, batch_statistics: bool = batch_statistics) -> Trace:
            return self(images if pixels is None else replace(images, pixels=pixels), batch_statistics)

        return Trace(images, seen["logits"], moments, seen["at"], self, again)


@dataclass(frozen=True, eq=False)
class Trace:
    """What the teacher did with one batch."""

    images: Images
    logits: Tensor  # (B, K)
    moments: Mapping[str, Moments]  # by BatchNorm node, where "bn" was needed
    at: Mapping[str, tuple[Tensor, ...]]  # by need
    watch: Watch
    again: Callable[..., Any]  # (pixels=None, batch_statistics=False) -> the same, on something else
    done: float | Tensor = field(default=0.0, kw_only=True)  # share of the training before this batch

    def detached(self) -> Trace:
        """The same without its graph, for another reader."""
        moments = {name: replace(m, first=m.first.detach(), second=m.second.detach()) for name, m in self.moments.items()}
        at = {need: tuple(tensor.detach() for tensor in tensors) for need, tensors in self.at.items()}
        images = replace(self.images, pixels=self.images.pixels.detach())
        return Trace(images, self.logits.detach(), moments, at, self.watch, self.again, done=self.done)


@dataclass(frozen=True, eq=False)
class Pair(Trace):
    """A Trace of the teacher that also knows what the student did: every loss on a Trace is a loss on a Pair."""

    student: Trace = field(kw_only=True)
    origin: Pair | None = field(default=None, kw_only=True)  # the pair this one was perturbed from

    def teacher_apart(self) -> Pair:
        """The same, where no gradient passes through the teacher."""
        teacher = self.detached()
        return replace(self, logits=teacher.logits, moments=teacher.moments, at=teacher.at)


def pair(teacher: Trace, student: Trace, origin: Pair | None = None, done: float | Tensor = 0.0) -> Pair:
    """Teacher and student on the same batch."""

    def again(pixels: Tensor | None = None, batch_statistics: bool = False) -> Pair:
        with torch.no_grad():
            fresh = teacher.again(pixels, batch_statistics=batch_statistics)
        return pair(fresh, student.again(pixels), origin or made, done)

    mine = (teacher.images, teacher.logits, teacher.moments, teacher.at, teacher.watch, again)
    made = Pair(*mine, student=student, origin=origin, done=done)
    return made
