"""From a module to a graph in one normal form: nothing in place, functional layers made modules, sizes constant.

Every module keeps its name. What torch.fx cannot look into stays whole, runs in float, and is listed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import fx

from dreamquant import functions, plain
from dreamquant import graph as graphs

IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Proxy(fx.Proxy):
    """torch.fx's, which takes `x += y` for `x = x + y`: to other names of the same tensor that is not the same."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class Tracer(fx.Tracer):
    """torch.fx, but modules in `whole` are not looked into, and the image is the only input."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole = whole

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """What forward takes beside the image has its default: an input that nobody gives would bind every piece to it."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for place, given in list(enumerate(args))[2:]:
            node = given.node
            if str(node.target).startswith("*"):
                args[place] = {} if str(node.target).startswith("**") else ()
            elif node.args:
                args[place] = node.args[0]
            else:
                continue
            self.graph.erase_node(node)
        return function, args


def _culprit(net: nn.Module, error: BaseException) -> str:
    """Name of the innermost module of `net` in whose forward tracing failed; empty for the network itself."""
    names = {id(module): name for name, module in net.named_modules()}
    found = ""
    trace = error.__traceback__
    while trace:
        owner = trace.tb_frame.f_locals.get("self")
        if trace.tb_frame.f_code.co_name == "forward" and isinstance(owner, nn.Module) and id(owner) in names:
            found = names[id(owner)]
        trace = trace.tb_next
    return found


def trace(net: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """A traced copy of a network in normal form, and the modules left in float with the reason.

    Raises ValueError where the network itself, not one of its modules, cannot be traced, or a name cannot stand in the code of torch.fx.
    """
    plain.check_names(net)
    net = plain.copied(net).requires_grad_(False)
    plain.own_weights(net)
    plain.unfold_attention(net)
    in_place = {name for name, module in net.named_modules() if getattr(module, "inplace", False)}
    for name in in_place:
        setattr(net.get_submodule(name), "inplace", False)  # noqa: B010 (a Module has no such attribute to a type checker)
    left: dict[str, str] = {}
    while True:
        try:
            found = Tracer(set(left)).trace(net)
            break
        except Exception as error:
            name = _culprit(net, error)
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            if not name or name in left:
                raise ValueError(
                    f"{type(net).__name__} cannot be traced by torch.fx ({reason}); move the branch on data into a submodule, "
                    "which may stay in float, or remove it from forward"
                ) from None
            left[name] = reason
    result = fx.GraphModule(net, found)
    _functional(result, in_place)
    _simplify(result)
    functions.become_modules(result)
    result.graph.lint()
    result.recompile()
    return result.eval().requires_grad_(False), left


def _functional(net: fx.GraphModule, in_place: set[str]) -> None:
    """Nothing changes a tensor: who reads later what was changed in place reads the result. `in_place`: modules that did it."""
    for node in net.graph.nodes:
        changes = node.op == "call_module" and node.target in in_place
        if node.op == "call_function" and node.target in IN_PLACE:
            changes, node.target = not _of_sizes(node), IN_PLACE[node.target]
        elif node.op in ("call_function", "call_method") and (twin := _twin(node.target)) is not None:
            changes, node.op, node.target = True, "call_function", twin
        if "inplace" in node.kwargs:
            changes = changes or bool(node.kwargs["inplace"])
            node.kwargs = {**node.kwargs, "inplace": False}
        if changes:
            _read_later(node)


def _twin(target: Any) -> Any:
    """What computes the same as a function or method called `name_`, and changes nothing; None where there is none."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not name.endswith("_") or name.startswith("_"):
        return None
    return getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)


def _of_sizes(node: fx.Node) -> bool:
    """Whether a node computes with the sizes of tensors, which are plain numbers and never change in place."""
    source: fx.Node = node
    while source.op == "call_function" and source.target is not getattr and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return source.target is getattr or (source.op == "call_method" and source.target in ("size", "dim"))


def _read_later(node: fx.Node) -> None:
    """Whoever reads after this node what it changed reads the node."""
    changed, later = node.args[0] if node.args else None, node.next
    while isinstance(changed, fx.Node) and later.op != "root":
        later.replace_input_with(changed, node)
        later = later.next


def _does_nothing(net: fx.GraphModule, node: fx.Node) -> bool:
    """In eval mode: identities, dropout of any kind, and `contiguous` and the like."""
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)) or type(module).__name__ == "DropPath"
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in ("dropout", "stochastic_depth", "drop_path", "dropout2d", "feature_dropout")
    return False


def _simplify(net: fx.GraphModule) -> None:
    for node in list(net.graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert":
            net.graph.erase_node(node)
        elif _does_nothing(net, node) and node.all_input_nodes:
            node.replace_all_uses_with(node.all_input_nodes[0])
            net.graph.erase_node(node)
    net.graph.eliminate_dead_code()


def values_at(net: fx.GraphModule, shape: tuple[int, ...], batch: int) -> dict[str, Any]:
    """Every node's value on a batch of zeros."""
    seen: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Recorder(net).run(torch.zeros(batch, *shape))
    return seen


def fold_sizes(net: fx.GraphModule, shape: tuple[int, ...]) -> None:
    """Sizes become constants, and nodes learn their shapes; see `graph.fold_constants`."""
    graphs.fold_constants(net, lambda graph, batch: values_at(graph, shape, batch))
