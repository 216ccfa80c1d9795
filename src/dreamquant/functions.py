"""Functions that are called with stored weights become modules, so that layers are found in one way."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}


def become_modules(net: fx.GraphModule) -> None:
    """conv2d, linear and batch_norm called with stored weights become modules, named after the owner of the weight.

    Calls that differ in their input alone are calls of one module, where it takes the owner's place.
    """
    alike: dict[str, list[fx.Node]] = {}
    for node in net.graph.nodes:
        if node.op == "call_function" and node.target in SIGNATURES:
            settings = {name: value for name, value in _given(node).items() if name != "input"}
            by_place = fx.map_arg(settings, lambda n: str(n.target) if n.op == "get_attr" else n.name)
            alike.setdefault(f"{node.target} {by_place}", []).append(node)
    for nodes in alike.values():
        given, function = _given(nodes[0]), nodes[0].target
        try:
            module = _batch_norm(net, given) if function is F.batch_norm else _layer(net, given, function is not F.linear)
        except LookupError:
            continue  # weights computed on the way: stays a function, in float
        if module is None:
            continue
        key = "running_mean" if function is F.batch_norm else "weight"
        owner = str(given[key].target).rpartition(".")[0]
        instead = bool(owner) and not _in_use(net, owner, nodes)
        for node in nodes:
            name = owner if instead else _below(net, owner, node.name)
            _put(net, name, module if instead else copy.deepcopy(module))
            with net.graph.inserting_before(node):
                new = net.graph.call_module(name, (_given(node)["input"],))
            node.replace_all_uses_with(new)
            net.graph.erase_node(node)
        for stored in [n for n in net.graph.nodes if n.op == "get_attr" and not n.users]:
            net.graph.erase_node(stored)  # what it names may have given its place to the module


def _stored(net: fx.GraphModule, value: Any) -> Tensor | None:
    """The tensor a get_attr node stands for; None for None."""
    if not isinstance(value, fx.Node):
        return None
    if value.op != "get_attr":
        raise LookupError(value.name)
    owner, _, name = str(value.target).rpartition(".")
    return getattr(net.get_submodule(owner) if owner else net, name)


def _given(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(SIGNATURES[node.target], node.args, strict=False)), **node.kwargs}


def _in_use(net: fx.GraphModule, owner: str, nodes: list[fx.Node]) -> bool:
    """Whether the graph uses `owner` or something below it in other nodes than these."""
    return any(
        f"{node.target}.".startswith(owner + ".")
        for node in net.graph.nodes
        if node.op == "call_module" or (node.op == "get_attr" and not set(node.users) <= set(nodes))
    )


def _below(net: fx.GraphModule, owner: str, name: str) -> str:
    """A name below `owner` that nothing has."""
    while hasattr(net.get_submodule(owner), name):
        name += "_"
    return f"{owner}.{name}" if owner else name


def _put(net: fx.GraphModule, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(net.get_submodule(owner) if owner else net, last, module.eval().requires_grad_(False))


def _layer(net: fx.GraphModule, given: dict[str, Any], convolution: bool) -> nn.Module | None:
    weight, bias = _stored(net, given["weight"]), _stored(net, given.get("bias"))
    if weight is None or (convolution and not isinstance(given.get("padding", 0), (int, tuple, str))):
        return None
    module: nn.Module
    if convolution:
        groups = given.get("groups", 1)
        settings = {k: given[k] for k in ("stride", "padding", "dilation") if k in given}
        height, width = weight.shape[2:]
        channels = weight.shape[1] * groups
        module = nn.Conv2d(channels, weight.shape[0], (height, width), groups=groups, bias=bias is not None, **settings)
    else:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    module.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return module


def _batch_norm(net: fx.GraphModule, given: dict[str, Any]) -> nn.Module | None:
    mean, var = _stored(net, given.get("running_mean")), _stored(net, given.get("running_var"))
    if mean is None or var is None or given.get("training"):
        return None
    weight, bias = _stored(net, given.get("weight")), _stored(net, given.get("bias"))
    module = nn.BatchNorm2d(len(mean), eps=given.get("eps", 1e-5))
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    state = {
        "running_mean": mean,
        "running_var": var,
        "weight": ones if weight is None else weight,
        "bias": zeros if bias is None else bias,
    }
    module.load_state_dict(state, strict=False)
    return module
