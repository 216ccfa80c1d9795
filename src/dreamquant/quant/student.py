"""Student: the only thing that changes, a copy of the network with a quantizer on every weight and every placed tensor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.model import Model
from dreamquant.quant.quantizer import Acting, Following, PassAll, Quantizer, Tracking, Watching, acting
from dreamquant.quant.ranges import Ranges, RunningMinMax, to_grid
from dreamquant.quant.scheme import Int, Scheme


class QuantConv2d(nn.Conv2d):
    """A convolution whose weight passes a quantizer."""

    quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """A linear layer whose weight passes a quantizer."""

    quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quantizer(self.weight), self.bias)


QuantLayer = QuantConv2d | QuantLinear
STARTS = ("placeholder", "conv", "linear", "add", "mul", "cat", "mean", "act")
CHAIN = ("bn", "act")


def written(net: fx.GraphModule) -> list[fx.Node]:
    """Every tensor an integer kernel writes: the end of a fused conv-bn-act or add-act chain, pools, the image.

    Before an activation that does more than clip (Hardswish, SiLU) also what the convolution gives it: no integer kernel
    computes both. Of other nodes (attention, LayerNorm), those that a layer reads. Integer-valued nodes do not count.
    """
    found: list[fx.Node] = []
    for node in net.graph.nodes:
        kind = graph.kind(net, node)
        convolved = kind == "conv"
        reads = any(graph.kind(net, r) in graph.LAYERS for r in graph.readers(net, node))
        if "shape" not in node.meta or (kind not in STARTS and not (kind in ("other", "gate", "bn") and reads)):
            continue
        while len(node.users) == 1 and (follows := graph.kind(net, user := next(iter(node.users)))) in CHAIN:
            if convolved and follows == "act" and graph.clip_of(net, user) is None:
                found.append(node)
            node = user
        if node not in found and not any(u.op == "output" for u in node.users):
            found.append(node)
    return found


def convert(model: Model, scheme: Scheme) -> Student:
    """A student of `model`: quantizers placed for good, as the scheme says. Their ranges are not known yet.

    Raises ValueError where the network has no layer that can be quantized, or none of a name that the scheme excepts.
    """
    net = copy.deepcopy(model.net)
    layers = graph.of_kind(net, *graph.LAYERS)
    if not layers:
        raise ValueError(f"{model.name} has no convolution or linear layer that could be quantized")
    tensors = written(net)
    unknown = dict(scheme.layers).keys() - {str(node.target) for node in layers} | dict(scheme.tensors).keys() - {n.name for n in tensors}
    if unknown:
        raise ValueError(f"{model.name} has no {', '.join(sorted(unknown))} to quantize, for which the scheme names a format")
    order = {node: number for number, node in enumerate(layers)}
    kinds = {node: graph.kind(net, node) for node in net.graph.nodes}
    image = {node for node in tensors if graph.of_image(net, node)}
    for node in tensors:
        reads = [r for r in graph.readers(net, node) if r in order]
        averaged = kinds[node] == "mean"
        trained = node not in image and not averaged and (kinds[node] == "act" or bool(reads))
        live = trained or scheme.placement == "deploy"
        form = (scheme.activations if trained or averaged else None) or scheme.spare
        if scheme.ends and any(order[r] in (1, len(layers) - 1) for r in reads):
            form = replace(form, bits=scheme.ends)
        if averaged and scheme.placement == "paper":
            form = scheme.spare  # the classifier reads an average of quantized values, not a low-bit tensor (MM family)
        form = scheme.tensor_format(node.name, form)
        _place(net, node, form, live and scheme.activations is not None, scheme.residual)
    for number, node in enumerate(layers):
        _quantize_weight(net.get_submodule(str(node.target)), scheme, str(node.target), number, len(layers))
    net.recompile()
    return Student(net, model, scheme)


def _place(net: fx.GraphModule, node: fx.Node, form: Int, live: bool, residual: int | None) -> None:
    """A quantizer behind a tensor; where a sum reads it and keeps more bits, one for all readers and more for the layers."""
    name, users = node.name, list(node.users)
    summed = any(_leads_to(net, user, ("add",)) for user in users)
    if not (live and summed and residual is not None and form.bits < residual):
        _quantize(net, node, name, Quantizer(form, (), live), users)
        return
    apart = _of_layers(net, node)
    wide = _quantize(net, node, name + "_residual" * (node in apart), Quantizer(replace(form, bits=residual)), users)
    for read, layers in apart.items():
        _quantize(net, wide if read is node else read, read.name, Quantizer(form), layers)


def _of_layers(net: fx.GraphModule, node: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """The readers of a tensor that lead to layers and to no sum, by what they read: it, or what moves it for both."""
    layers = [user for user in node.users if _leads_to(net, user, graph.LAYERS)]
    # pieces of a chunk have no grid together: only a choice of one is a tensor
    both = [user for user in layers if _leads_to(net, user, ("add",)) or "shape" not in node.meta]
    found = {node: alone} if (alone := [user for user in layers if user not in both]) else {}
    for user in both:
        found |= _of_layers(net, user)
    return found


def _leads_to(net: fx.GraphModule, user: fx.Node, kinds: tuple[str, ...]) -> bool:
    """Whether a reader, or what reads through its moving of values, is of one of these kinds."""
    ends = graph.readers(net, user) if graph.kind(net, user) == "move" else [user]
    return any(graph.kind(net, end) in kinds for end in ends)


def _quantize(net: fx.GraphModule, node: fx.Node, name: str, quantizer: Quantizer, users: list[fx.Node]) -> fx.Node:
    """A quantizer behind `node`, which these users read in its place; its node."""
    net.add_submodule("q." + name, quantizer)
    with net.graph.inserting_after(node):
        q = net.graph.call_module("q." + name, (node,))
    q.meta |= {"shape": node.meta["shape"], "quantizes": node.meta.get("quantizes", node.name)}
    for user in users:
        user.replace_input_with(node, q)
    return q


def _quantize_weight(layer: nn.Module, scheme: Scheme, name: str, number: int, count: int) -> None:
    if isinstance(layer, QuantConv2d | QuantLinear):
        return  # a shared layer, called a second time
    layer.__class__ = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    assert isinstance(layer, QuantConv2d | QuantLinear)
    form = scheme.weight_format(name, number, count)
    shape = (len(layer.weight),) + (1,) * (layer.weight.ndim - 1) if form.per == "channel" else ()
    layer.quantizer = Quantizer(form, shape, rule=Following()).to(layer.weight.device)


class Student:
    """All its state is `net.state_dict()`, quantizers included; the graph never changes again."""

    def __init__(self, net: fx.GraphModule, source: Model, scheme: Scheme) -> None:
        self.net, self.source, self.scheme = net.to(source.device), source, scheme

    def layers(self) -> dict[str, QuantLayer]:
        """Quantized layers by name, in execution order."""
        names = dict.fromkeys(str(node.target) for node in self.net.graph.nodes if node.op == "call_module")
        modules = ((name, self.net.get_submodule(name)) for name in names)
        return {name: module for name, module in modules if isinstance(module, QuantConv2d | QuantLinear)}

    def activation_quantizers(self) -> dict[str, Quantizer]:
        """Quantizers of activations by the name of the node whose tensor they quantize; `_residual` follows it where sums read
        one quantizer's values and layers those of a second."""
        return {name: q for name, q in self.net.get_submodule("q").named_children() if isinstance(q, Quantizer)}

    def quantized_nodes(self) -> dict[str, str]:
        """The node whose tensor each quantizer of activations quantizes, both by name."""
        return {str(node.target).removeprefix("q."): node.meta["quantizes"] for node in self.net.graph.nodes if "quantizes" in node.meta}

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state)

    @contextlib.contextmanager
    def observing(self, ranges: Ranges) -> Iterator[None]:
        """Inside, activations pass unquantized and are observed; after it, the grids span what `ranges` made of them."""
        watching = {q: Watching(ranges.observer()) for q in self.activation_quantizers().values()}
        with acting(watching):
            yield
        for q, rule in watching.items():
            q.set(*to_grid(*rule.observer.range(q.format), q.format))

    @contextlib.contextmanager
    def tracking(self, momentum: float, compounding: bool = False) -> Iterator[None]:
        """Inside, activations are quantized by grids that span a running mean of extremes; after it, the grids stand still.

        What the mean has seen is part of the network's state meanwhile, so a loop inside can be resumed.
        """
        mean = RunningMinMax(momentum, compounding)
        with acting({q: Tracking(mean, q.scale.device) for q in self.activation_quantizers().values()}):
            yield

    @property
    def still(self) -> bool:
        """Whether looking at images changes nothing here: no range is being measured, and none follows what it sees."""
        return not any(q.rule.everywhere for q in self.activation_quantizers().values())

    def unmeasured(self) -> list[str]:
        """The live activation quantizers whose range is neither known nor being measured."""
        mine = self.activation_quantizers().items()
        return [name for name, q in mine if q.live and not q.rule.everywhere and bool(q.scale.isnan().any())]

    @contextlib.contextmanager
    def training(self, activations: Acting | None = None, weights: Acting | None = None) -> Iterator[None]:
        """Inside, weights, biases and BatchNorm's affine receive gradients, and grids where the rules learn them.

        `activations` and `weights` name the rules that act inside; weights keep their own rule where none is named. Raises
        ValueError where a step of weights is to be learned that was never set.
        """
        mine = self.activation_quantizers().values()
        rules = {q: (activations or PassAll()).on(q) for q in mine if q.live}
        if weights is not None:
            for name, layer in self.layers().items():
                rules[layer.quantizer] = rule = weights.on(layer.quantizer)
                if rule.learns and not layer.quantizer.scale.isfinite().all():
                    raise ValueError(
                        f"{name}: the step of its weights is to be learned, but was never set; add a SetWeightRanges step before"
                    )
        grids = {id(p) for m in self.net.modules() if isinstance(m, Quantizer) for p in (m.scale, m.zero)}
        for p in self.net.parameters():
            p.requires_grad_(id(p) not in grids)
        for q, rule in rules.items():
            q.scale.requires_grad_(rule.learns)
        try:
            with acting(rules):
                yield
        finally:
            self.net.requires_grad_(False)
