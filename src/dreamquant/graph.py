"""Questions the methods ask of a traced network: what a node is, where the residual blocks lie, what a part of it computes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import fx

# Module class or function or method name -> kind. A node of no listed kind is "other": it runs in float and is left alone.
MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    (nn.BatchNorm2d, "bn"),
    (nn.BatchNorm1d, "bn"),
    (nn.ReLU, "act"),
    (nn.ReLU6, "act"),
    (nn.LeakyReLU, "act"),
    (nn.GELU, "act"),
    (nn.SiLU, "act"),
    (nn.Hardswish, "act"),
    (nn.Hardtanh, "act"),
    (nn.Sigmoid, "gate"),
    (nn.Hardsigmoid, "gate"),
    (nn.Softmax, "gate"),
    (nn.AdaptiveAvgPool2d, "mean"),
    (nn.AvgPool2d, "mean"),
    (nn.MaxPool2d, "move"),
    (nn.AdaptiveMaxPool2d, "move"),
    (nn.Flatten, "move"),
    (nn.Unflatten, "move"),
    (nn.ZeroPad2d, "move"),
    (nn.ChannelShuffle, "move"),
    (nn.PixelShuffle, "move"),
    (nn.Upsample, "move"),
)
CALLS: dict[Any, str] = {
    **dict.fromkeys((operator.add, torch.add, "add"), "add"),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), "mul"),
    **dict.fromkeys((torch.cat, torch.concat), "cat"),
    **dict.fromkeys((F.relu, torch.relu, "relu", F.relu6, F.leaky_relu, F.gelu, F.silu, F.hardswish, F.hardtanh), "act"),
    **dict.fromkeys((torch.clamp, "clamp"), "act"),
    **dict.fromkeys((torch.sigmoid, "sigmoid", F.sigmoid, F.hardsigmoid, F.softmax, torch.softmax, "softmax"), "gate"),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, "mean"), "mean"),
    **dict.fromkeys((F.max_pool2d, F.adaptive_max_pool2d, torch.flatten, "flatten", F.pad, operator.getitem), "move"),
    **dict.fromkeys(("view", "reshape", torch.reshape, "permute", torch.permute, "transpose", torch.transpose), "move"),
    **dict.fromkeys(("contiguous", "chunk", torch.chunk, "split", torch.split, "squeeze", torch.squeeze), "move"),
    **dict.fromkeys(("unsqueeze", torch.unsqueeze, "expand", "roll", torch.roll, "unbind", F.interpolate), "move"),
    **dict.fromkeys((F.channel_shuffle, torch.channel_shuffle, F.pixel_shuffle, torch.pixel_shuffle), "move"),
}
LAYERS = ("conv", "linear")
NORMALISES = (operator.sub, torch.sub, "sub", operator.truediv, torch.div, "div", operator.neg, torch.neg, "neg")
RESHAPES = ("view", "reshape", torch.reshape)


def kind(graph: fx.GraphModule, node: fx.Node) -> str:
    """What a node is: conv, linear, bn, act, gate, add, mul, cat, mean, move, placeholder, get_attr, output or other."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        found = next((name for cls, name in MODULES if isinstance(module, cls)), "other")
        return "other" if found == "bn" and module.running_mean is None else found
    return CALLS.get(node.target, "other") if node.op.startswith("call") else node.op


def of_image(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the image, or the image moved and normalised: with constants alone, channel by channel, or by a BatchNorm."""
    sources, mine = [source for source in node.all_input_nodes if source.op != "get_attr"], kind(graph, node)
    normalises = len(sources) == 1 and (mine in ("bn", "move", "add", "mul") or node.target in NORMALISES)
    alike = bool(sources) and (normalises or mine == "cat")
    return node.op == "placeholder" or (alike and all(of_image(graph, source) for source in sources))


def clip_of(graph: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """The ends between which an activation clips its input; None for one that does not only clip."""
    match graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target:
        case nn.ReLU() | F.relu | torch.relu | "relu":
            return 0.0, math.inf
        case nn.ReLU6() | F.relu6:
            return 0.0, 6.0
        case nn.Hardtanh(min_val=low, max_val=high):
            return low, high
        case F.hardtanh:
            return _ends(node, {"min_val": -1.0, "max_val": 1.0})
        case torch.clamp | "clamp":
            return _ends(node, {"min": -math.inf, "max": math.inf})
    return None


def _ends(node: fx.Node, usual: dict[str, float]) -> tuple[float, float] | None:
    """The two arguments of a call that limit its first; None where they are not known before it runs."""
    given = dict(zip(usual, node.args[1:], strict=False)) | dict(node.kwargs)
    low, high = (usual[name] if given.get(name) is None else given[name] for name in usual)
    return (float(low), float(high)) if isinstance(low, int | float) and isinstance(high, int | float) else None


def of_kind(graph: fx.GraphModule, *kinds: str) -> list[fx.Node]:
    """Nodes of these kinds, in execution order."""
    return [node for node in graph.graph.nodes if kind(graph, node) in kinds]


def named(graph: fx.GraphModule, name: str) -> fx.Node:
    """A node by its own name, or by the name of the module it calls. KeyError-free: ValueError names what is missing."""
    for node in graph.graph.nodes:
        if name in (node.name, node.target):
            return node
    raise ValueError(f"the network has no node or module {name!r}")


def output_of(graph: fx.GraphModule) -> fx.Node:
    """The node whose value the network returns."""
    return next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[0]


def readers(graph: fx.GraphModule, node: fx.Node, through: Iterable[str] = ("move",)) -> list[fx.Node]:
    """Who computes with this tensor, seen through nodes of the kinds `through`, which only move or average values."""
    found = []
    for user in node.users:
        found += readers(graph, user, through) if kind(graph, user) in through else [user]
    return found


def chain(graph: fx.GraphModule, node: fx.Node, through: Iterable[str]) -> tuple[tuple[fx.Node, ...], fx.Node | None]:
    """The nodes of the kinds `through` that alone read this tensor, one after the other, and the layer that ends them, if one does."""
    path: list[fx.Node] = []
    while len(node.users) == 1:
        (node,) = node.users
        if kind(graph, node) in LAYERS:
            return tuple(path), node
        if kind(graph, node) not in through:
            break
        path.append(node)
    return tuple(path), None


def cuts(graph: fx.GraphModule) -> list[fx.Node]:
    """Tensors that every path passes: what lies between two of them is a unit that can be rebuilt alone."""
    nodes = [n for n in graph.graph.nodes if n.op not in ("get_attr", "output")]
    waiting = {node: len(node.users) for node in graph.graph.nodes}
    live: set[fx.Node] = set()
    found = []
    for node in nodes:
        for source in node.all_input_nodes:
            waiting[source] -= 1
            if not waiting[source]:
                live.discard(source)
        live.add(node)
        if live == {node} and "shape" in node.meta:  # pieces of a chunk together are no tensor
            found.append(node)
    return found


def units(graph: fx.GraphModule) -> tuple[tuple[str, str], ...]:
    """(from, to) names of the pieces in execution order: a residual block, or one layer with what follows it."""
    nodes = list(graph.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    found = cuts(graph)

    def layered(first: fx.Node, last: fx.Node) -> bool:
        return any(kind(graph, n) in LAYERS for n in nodes[place[first] + 1 : place[last] + 1])

    result = []
    start, end = found[0], found[0]
    for before, after in zip(found, found[1:], strict=False):
        new_piece = place[after] - place[before] > 1 or kind(graph, after) in (*LAYERS, "mean")
        if new_piece and layered(start, end):
            result.append((start.name, end.name))
            start = end
        end = after
    return (*result, (start.name, end.name))


def chain_end(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The end of the BatchNorm and activation that follow a node and that nothing else reads."""
    while len(node.users) == 1 and kind(graph, user := next(iter(node.users))) in ("bn", "act"):
        node = user
    return node


def cut_out(graph: fx.GraphModule, inputs: Sequence[str], output: str) -> fx.GraphModule:
    """The part of the graph from the nodes `inputs` to the node `output`, sharing the modules. Tensors in, tensor out."""
    new = fx.Graph()
    have: dict[fx.Node, fx.Node] = {named(graph, name): new.placeholder(name.replace(".", "_")) for name in inputs}
    need: set[fx.Node] = set()
    waiting = [named(graph, output)]
    while waiting:
        node = waiting.pop()
        if node not in need and node not in have:
            need.add(node)
            waiting.extend(node.all_input_nodes)
    for node in graph.graph.nodes:
        if node in need:
            have[node] = new.node_copy(node, have.__getitem__)
    new.output(have[named(graph, output)])
    return fx.GraphModule(graph, new)


def frontier(graph: fx.GraphModule, name: str) -> tuple[str, ...]:
    """Tensors that must be known, beside `name`, to compute the output from `name` on (a skip connection, say)."""
    target = named(graph, name)
    after = {target}
    for node in graph.graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    beside = [
        node.name
        for node in graph.graph.nodes
        if node not in after and node.op != "get_attr" and any(user in after and user is not target for user in node.users)
    ]
    return (target.name, *beside)


def last_convolution(graph: fx.GraphModule) -> fx.Node | None:
    """The last convolution that still sees places: a 1x1 classifier written as a convolution does not count."""
    spatial = [n for n in of_kind(graph, "conv") if len(shape := n.meta.get("shape", ())) == 4 and shape[2] * shape[3] > 1]
    return spatial[-1] if spatial else None


def last_map(graph: fx.GraphModule) -> fx.Node | None:
    """The last tensor with places that every path passes: what the head pools."""
    spatial = [n for n in cuts(graph) if len(shape := n.meta.get("shape", ())) == 4 and shape[2] * shape[3] > 1 and n.op != "placeholder"]
    return spatial[-1] if spatial else None


def points(graph: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Named places a loss may ask for: bn, blocks, activations, passed (what activations pass on: in a student, behind
    their quantizers), features (what the last layer reads), saliency (the last convolution's output, and what must be known
    beside it), map (the last feature map)."""
    layers = of_kind(graph, *LAYERS)
    conv = last_convolution(graph)
    blocks = tuple(end for _, end in units(graph))
    activations = tuple(node.name for node in of_kind(graph, "act"))
    return {
        "bn": tuple(node.name for node in of_kind(graph, "bn")),
        "blocks": blocks[1:-1] or blocks[:-1],
        "features": tuple(node.all_input_nodes[0].name for node in layers[-1:]),
        "activations": activations,
        "passed": activations,
        "saliency": frontier(graph, conv.name) if conv else (),
        "map": (end.name,) if (end := last_map(graph)) else (),
    }


def _keeps_batch(two: torch.Tensor, three: torch.Tensor) -> bool:
    """Whether a tensor's first size is the batch's, and no other is: its values at batches of two and of three."""
    return (len(two), len(three)) == (2, 3) and two.shape[1:] == three.shape[1:]


def fold_constants(graph: fx.GraphModule, run: Callable[[fx.GraphModule, int], dict[str, Any]]) -> None:
    """Sizes that do not depend on the batch become constants; shapes of tensors go into `node.meta["shape"]`.

    `run(graph, batch)` returns every node's value at one batch size; integers equal at two sizes are constants. A reshape
    that keeps the batch first asks for -1 there, so that it needs no size read elsewhere: one read from the network's input
    would bind every piece of it to that input.
    """
    two, three = run(graph, 2), run(graph, 3)
    constants: dict[fx.Node, Any] = {}
    for node in list(graph.graph.nodes):
        value = two.get(node.name)
        if isinstance(value, torch.Tensor):
            node.meta["shape"] = tuple(value.shape)
        elif node.op.startswith("call") and isinstance(value, (int, float, bool)) and three[node.name] == value:
            constants[node] = value
    for user in graph.graph.nodes:
        if any(node in constants for node in user.all_input_nodes):
            user.args = fx.map_arg(user.args, lambda n: constants.get(n, n))
            user.kwargs = fx.map_arg(user.kwargs, lambda n: constants.get(n, n))
        reshapes = user.op in ("call_method", "call_function") and user.target in RESHAPES
        if reshapes and len(user.all_input_nodes) > 1 and _keeps_batch(two[user.name], three[user.name]):
            rest = user.meta["shape"][1:]
            user.args, user.kwargs = (user.all_input_nodes[0], (-1, *rest)), {}
    graph.graph.eliminate_dead_code()
    graph.recompile()
