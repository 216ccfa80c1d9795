"""What is done to the float network before it is quantized: BatchNorm folded, channels equalized, high biases absorbed.

From DFQ (Nagel et al., ICCV 2019, arXiv 1906.04721, sections 4.1 and 4.1.3). Each part returns a new Model that computes
the same; what its docstring names is the only exception.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.model import Model
from dreamquant.moments import ChannelStats, batch_norm_stats, scaled_stats

Layer = nn.Conv2d | nn.Linear
POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.ZeroPad2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d)
POOLING = (F.max_pool2d, F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.avg_pool2d, torch.flatten, "flatten", "contiguous")


@dataclass(frozen=True)
class FoldBatchNorm:
    """Every BatchNorm goes into the layer before it, where that layer feeds nothing else; its statistics are kept.

    Scales of weights change per channel, so that per-tensor ranges do too. BatchNorms elsewhere stay.
    """

    def __call__(self, model: Model) -> Model:
        net, stats = copy.deepcopy(model.net), dict(model.channel_stats)
        calls = _calls(net)
        for node in graph.of_kind(net, "bn"):
            source = node.all_input_nodes[0]
            alone = graph.kind(net, source) in graph.LAYERS and len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
            if not alone or _axis(net, source, source) != 1:  # of tokens, BatchNorm's channels are not the layer's outputs
                continue
            bn = net.get_submodule(str(node.target))
            assert isinstance(bn, nn.BatchNorm2d | nn.BatchNorm1d)
            _fold(_layer(net, source), bn)
            stats[source.name] = batch_norm_stats(bn)
            node.replace_all_uses_with(source)
            net.graph.erase_node(node)
        net.delete_all_unused_submodules()
        net.recompile()
        return replace(model, net=net, channel_stats=stats)


def _fold(layer: Layer, bn: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
    assert bn.running_mean is not None and bn.running_var is not None
    factor = (bn.running_var + bn.eps).rsqrt() * (1 if bn.weight is None else bn.weight.detach())
    bias = torch.zeros_like(bn.running_mean) if layer.bias is None else layer.bias.detach()
    shift = 0 if bn.bias is None else bn.bias.detach()
    layer.weight.data *= _wide(factor, layer.weight)
    layer.bias = nn.Parameter((bias - bn.running_mean) * factor + shift, requires_grad=False)


@dataclass(frozen=True)
class WidenReLU6:
    """ReLU6 becomes ReLU, as DFQ does, for channels can be rescaled only through the latter. Changes what values above 6 become."""

    def __call__(self, model: Model) -> Model:
        net = copy.deepcopy(model.net)
        for node in net.graph.nodes:
            if node.op == "call_module" and isinstance(net.get_submodule(str(node.target)), nn.ReLU6):
                net.set_submodule(str(node.target), nn.ReLU())
            elif node.target is F.relu6:
                node.target = F.relu
        net.recompile()
        return replace(model, net=net)


@dataclass(frozen=True)
class Equalize:
    """Cross-layer equalization: channel by channel, the layers that write a tensor are divided, those that read it multiplied.

    The factor makes the largest weights equal on both sides, s = sqrt(r1 / r2) (DFQ, Eq. 9 to 11). It acts on tensors that
    only pass ReLUs and pools on their way, so fold BatchNorm first. With `across_adds` a residual stream is one such tensor,
    with several writers and readers, whose largest weights count (ours; the paper leaves streams alone). Sweeps end when no
    factor is further than `tolerance` from one.
    """

    sweeps: int = 20
    tolerance: float = 1e-4
    across_adds: bool = False

    def __call__(self, model: Model) -> Model:
        net, stats = copy.deepcopy(model.net), dict(model.channel_stats)
        found = streams(net, self.across_adds)
        for _ in range(self.sweeps):
            furthest = 0.0
            for writers, readers in found:
                factor = self._factor([_layer(net, w) for w in writers], [_layer(net, r) for r in readers])
                furthest = max(furthest, float((factor - 1).abs().max()))
                for node in writers:
                    layer = _layer(net, node)
                    layer.weight.data /= _wide(factor, layer.weight)
                    if layer.bias is not None:
                        layer.bias.data /= factor
                    if node.name in stats:
                        stats[node.name] = scaled_stats(stats[node.name], 1 / factor)
                for node in readers:
                    scale_columns(_layer(net, node), factor)
            if furthest < self.tolerance:
                break
        return replace(model, net=net, channel_stats=stats)

    def _factor(self, writers: list[Layer], readers: list[Layer]) -> Tensor:
        written = torch.stack([layer.weight.detach().abs().flatten(1).amax(1) for layer in writers]).amax(0)
        read = torch.stack([columns(layer, len(written)).abs().amax((1, 3)).flatten() for layer in readers]).amax(0)
        dead = (written <= 1e-9) | (read <= 1e-9)  # such a channel has nothing to equalize
        return torch.where(dead, 1.0, (written / read.clamp_min(1e-9)).sqrt())


@dataclass(frozen=True)
class AbsorbHighBias:
    """What a channel never falls below, mean less `deviations` deviations, moves into the next layer's bias (DFQ, section 4.1.3).

    Exact where the value before the ReLU is above that, 99.87 % of the time for a normal one and 3 deviations, and away
    from padded borders. Channels whose statistics are not known stay.
    """

    deviations: float = 3.0

    def __call__(self, model: Model) -> Model:
        net, stats = copy.deepcopy(model.net), dict(model.channel_stats)
        calls = _calls(net)
        for node in graph.of_kind(net, *graph.LAYERS):
            path, reader = graph.chain(net, node, ("act", "move", "mean"))
            if reader is None or node.name not in stats or not any(graph.kind(net, n) == "act" for n in path):
                continue
            axes = {_axis(net, node, node), *(_axis(net, n, n) for n in path), _axis(net, reader, reader.all_input_nodes[0])} - {None}
            once = calls[reader.target] == calls[node.target] == 1
            if not once or len(axes) > 1 or not all(_homogeneous(net, n) for n in path):
                continue
            record, layer, following = stats[node.name], _layer(net, node), _layer(net, reader)
            surplus = (record.mean - self.deviations * record.std).clamp_min(0).to(layer.weight.device)
            if layer.bias is None or following.bias is None:
                continue
            layer.bias.data -= surplus
            grouped = columns(following, len(surplus)).sum(3)  # (groups, rows, columns)
            following.bias.data += (grouped * surplus.view(len(grouped), 1, -1)).sum(2).flatten()
            stats[node.name] = ChannelStats(record.mean - surplus.to(record.mean.device), record.std)
        return replace(model, net=net, channel_stats=stats)


def streams(net: fx.GraphModule, across_adds: bool) -> list[tuple[list[fx.Node], list[fx.Node]]]:
    """(writers, readers) of every tensor whose channels can be rescaled freely, in execution order.

    Tensors joined by ReLUs, pools (and sums) share their factors; any other reader or writer forbids them, and so does one
    that has their channels on another axis.
    """
    root: dict[fx.Node, fx.Node] = {node: node for node in net.graph.nodes}

    def find(node: fx.Node) -> fx.Node:
        while root[node] is not node:
            node = root[node]
        return node

    calls, forbidden, layers = _calls(net), set[fx.Node](), list[fx.Node]()
    axes: list[tuple[fx.Node, int | None]] = []
    for node in net.graph.nodes:
        kind = graph.kind(net, node)
        if kind in graph.LAYERS and calls[node.target] == 1:
            layers.append(node)
            axes += [(tensor, _axis(net, node, tensor)) for tensor in (node, node.all_input_nodes[0])]
        elif _homogeneous(net, node) or (across_adds and kind == "add" and len(node.all_input_nodes) == 2):
            for source in node.all_input_nodes:
                root[find(source)] = find(node)
            axes.append((node, _axis(net, node, node)))
        else:
            forbidden |= {node, *node.all_input_nodes}
    first, last = ({find(tensor) for tensor, axis in axes if axis == where} for where in (1, -1))
    closed = {find(node) for node in forbidden} | (first & last)
    found: dict[fx.Node, tuple[list[fx.Node], list[fx.Node]]] = {}
    for node in layers:
        for side, tensor in ((0, node), (1, node.all_input_nodes[0])):
            if find(tensor) not in closed:
                found.setdefault(find(tensor), ([], []))[side].append(node)
    if not across_adds:  # the paper's pairs: one layer writes, one reads
        return [(writers, readers) for writers, readers in found.values() if len(writers) == len(readers) == 1]
    return [(writers, readers) for writers, readers in found.values() if writers and readers]


def _axis(net: fx.GraphModule, node: fx.Node, tensor: fx.Node) -> int | None:
    """Which axis of a tensor is channels to a node: the last to a linear that has tokens or places, None to one that does not care."""
    kind = graph.kind(net, node)
    if kind in ("act", "add"):
        return None
    return -1 if kind == "linear" and len(tensor.meta["shape"]) > 2 else 1


def _homogeneous(net: fx.GraphModule, node: fx.Node) -> bool:
    """Whether f(s x) = s f(x) for s > 0, channel by channel, and images stay apart."""
    if any(source.meta.get("shape", ())[:1] != node.meta.get("shape", ())[:1] for source in node.all_input_nodes):
        return False
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), (nn.ReLU, nn.LeakyReLU, *POOLS))
    if node.op in ("call_function", "call_method"):
        spatial_mean = graph.kind(net, node) == "mean" and node.args[1:2] in (([2, 3],), ((2, 3),), ([-1, -2],), ((-1, -2),), ([-2, -1],))
        return node.target in (F.relu, torch.relu, "relu", F.leaky_relu, *POOLING) or spatial_mean
    return False


def columns(layer: Layer, channels: int) -> Tensor:
    """The weight by input channel: a view (groups, rows, channels per group, taps), what flattening made of a channel being taps."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach().view(1, len(layer.weight), channels, -1)
    return layer.weight.detach().view(layer.groups, len(layer.weight) // layer.groups, channels // layer.groups, -1)


def scale_columns(layer: Layer, factor: Tensor) -> None:
    """Multiply what the layer reads of each input channel by `factor` (C,)."""
    weight = columns(layer, len(factor))
    weight *= factor.to(weight.device).view(len(weight), 1, -1, 1)


def _calls(net: fx.GraphModule) -> Counter[object]:
    return Counter(node.target for node in net.graph.nodes if node.op == "call_module")


def _layer(net: fx.GraphModule, node: fx.Node) -> Layer:
    layer = net.get_submodule(str(node.target))
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _wide(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (like.ndim - 1))
