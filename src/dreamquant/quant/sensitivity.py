"""Sensitivity: what each number of bits for one tensor costs at the network's output, everything else in float.

Both measures are in one unit, so that weights and activations may be weighed against each other: T^2 times the
Kullback-Leibler divergence of the logits softened by T, mean over images. T = 1 is ZeroQ's measure (Cai et al. 2020);
for large T it becomes the squared error of the centred logits over twice the number of classes, which also counts on
images of which the teacher is certain, as dreamed ones are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant.model import Model
from dreamquant.quant.quantizer import Quantizer, Rule, acting
from dreamquant.quant.ranges import LpSearch, Ranges, to_grid
from dreamquant.quant.scheme import Int, Scheme
from dreamquant.quant.student import QuantConv2d, QuantLinear, Student, convert
from dreamquant.run import Run

Losses = Mapping[str, Sequence[float]]  # by place, one for each candidate


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor whose bits are to be chosen. `name`: its layer's for weights, "q." and its node's for activations."""

    name: str
    node: fx.Node  # of the student's graph: the first that uses the quantizer
    quantizer: Quantizer
    weight: Tensor | None  # None: an activation
    size: int  # numbers in it; of one image, for an activation


class Sensitivity(Protocol):
    """What each place loses with each number of bits, on normalised pixels (N, C, H, W)."""

    def __call__(self, student: Student, places: Sequence[Place], bits: Sequence[int], pixels: Tensor, run: Run) -> Losses: ...


def trial(model: Model, base: Scheme) -> tuple[Student, list[Place]]:
    """A student, and its places in execution order: where formats follow the scheme's, so neither ends nor exceptions."""

    def shifted(form: Int) -> Int:
        return replace(form, bits=form.bits - 1 if form.bits > 2 else 3)

    made = convert(model, base)
    other = convert(model, replace(base, weights=shifted(base.weights), activations=base.activations and shifted(base.activations)))
    formats = {name: module.format for name, module in other.net.named_modules() if isinstance(module, Quantizer)}
    places: dict[str, Place] = {}
    for node in made.net.graph.nodes:
        name = str(node.target)
        module = made.net.get_submodule(name) if node.op == "call_module" else None
        if name in places:
            continue
        if isinstance(module, QuantConv2d | QuantLinear) and module.quantizer.format != formats[name + ".quantizer"]:
            places[name] = Place(name, node, module.quantizer, module.weight, module.weight.numel())
        if isinstance(module, Quantizer) and module.live and module.format != formats.get(name, module.format):
            places[name] = Place(name, node, module, None, math.prod(node.meta["shape"][1:]))
    return made, list(places.values())


class Pass(Rule):
    """Values pass as they are."""

    def forward(self, q: Quantizer, x: Tensor) -> Tensor:
        return x


class Walk(fx.Interpreter):
    """A network on one batch, node by node: what lies before a place is computed once for all that is tried there."""

    def __init__(self, net: fx.GraphModule, pixels: Tensor) -> None:
        super().__init__(net)
        self.pixels, self.args_iter, self.ahead = pixels, iter([pixels]), list(net.graph.nodes)

    def to(self, node: fx.Node) -> Tensor:
        """Compute everything before `node`; what the node reads. Values that nobody reads any more are freed."""
        while self.ahead[0] is not node:
            at = self.ahead.pop(0)
            self.env[at] = self.run_node(at)
            for done in self.user_to_last_uses.get(at, []):
                self.env[done] = None
        x: Tensor = self.env[node.all_input_nodes[0]]
        return x

    def rest(self) -> Tensor:
        """The output (N, K), with the quantizers as they act now from here on."""
        logits: Tensor = fx.Interpreter(self.module).run(self.pixels, initial_env=dict(self.env))
        return logits


class _Found:
    """Losses measured so far: live, saved by the loop."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.losses)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = dict(state)


def divergence(logits: Tensor, target: Tensor, temperature: float) -> float:
    """T^2 KL(target || logits), both (N, K) and softened by T; mean over images."""
    mine, wanted = (F.log_softmax(x.double() / temperature, 1) for x in (logits, target))
    return float(F.kl_div(mine, wanted, reduction="batchmean", log_target=True)) * temperature**2


@contextlib.contextmanager
def _float(student: Student) -> Iterator[None]:
    """Inside, every quantizer lets values pass."""
    with acting({q: Pass() for q in student.net.modules() if isinstance(q, Quantizer)}):
        yield


def _grids(place: Place, x: Tensor, ranges: Ranges, bits: Sequence[int]) -> Iterator[int]:
    """Puts the place's quantizer on the best grid of each number of bits in turn; `x` is what the place's node reads."""
    observer = ranges.observer()
    if place.weight is None:
        observer.see(x)
    for number in bits:
        form: Int = replace(place.quantizer.format, bits=number)
        low, high = observer.range(form) if place.weight is None else ranges(place.weight.detach(), form)
        place.quantizer.format = form
        place.quantizer.set(*to_grid(low, high, form))
        with acting({place.quantizer: Rule()}):
            yield number


@dataclass(frozen=True)
class SwapOneLayer:
    """Exact: one tensor at a time is quantized and the rest of the network run, on `count` images, for every number of bits.

    As ZeroQ measures it (section 3.3), there at T = 1 and for weights. Ours: the temperature, activations, and that what
    lies before the tensor is not computed again, which halves the work: places x numbers of bits / 2 forward passes.
    """

    count: int = 64
    temperature: float = 4.0
    ranges: Ranges = LpSearch()

    def __call__(self, student: Student, places: Sequence[Place], bits: Sequence[int], pixels: Tensor, run: Run) -> Losses:
        found, pixels = _Found(), pixels[: self.count]
        with _float(student), torch.no_grad():
            target, walk = student.net(pixels), Walk(student.net, pixels)
            for number in (loop := run.loop("sensitivity: tensors", len(places), found=found)):
                place = places[number]
                tried = _grids(place, walk.to(place.node), self.ranges, bits)
                losses = found.losses[place.name] = [divergence(walk.rest(), target, self.temperature) for _ in tried]
                loop.show(**{f"{b} bits": loss for b, loss in zip(bits, losses, strict=True)})
        return found.losses


@dataclass(frozen=True)
class FollowGradient:
    """Fast: each tensor's error is carried to the logits by the gradient, not by the rest of the network.

    To second order in the error e of one tensor the divergence is E[(e . g)^2] / 2, where g is the gradient of v . logits
    and v is random with the covariance of one draw from the softened probabilities. One backward pass for all places,
    then one forward pass for each number of bits. Ours, near HAWQ (Dong et al. 2019), which takes the Hessian's trace
    and the size of the weights' error, without its direction. It is good where errors are small: not at 2 bits. Of a layer
    called several times it sees the first call alone, and says so in a note.
    """

    count: int = 64
    temperature: float = 4.0
    ranges: Ranges = LpSearch()

    def __call__(self, student: Student, places: Sequence[Place], bits: Sequence[int], pixels: Tensor, run: Run) -> Losses:
        found, pixels = _Found(), pixels[: self.count]
        targets = [node.target for node in student.net.graph.nodes]
        if several := [place.name for place in places if targets.count(place.node.target) > 1]:
            run.note(f"the gradient saw only the first call of {', '.join(several)}; SwapOneLayer measures all calls")
        with _float(student):
            gradients = self._gradients(student.net, places, pixels, run)
            with torch.no_grad():
                walk = Walk(student.net, pixels)
                for number in (loop := run.loop("sensitivity: tensors", len(places), found=found)):
                    place = places[number]
                    x = walk.to(place.node)
                    right, g = walk.run_node(place.node), gradients[place.name]
                    errors = ((walk.run_node(place.node) - right) * g for _ in _grids(place, x, self.ranges, bits))
                    losses = [float(e.flatten(1).double().sum(1).square().mean()) / 2 for e in errors]
                    found.losses[place.name] = losses
                    loop.show(**{f"{b} bits": loss for b, loss in zip(bits, losses, strict=True)})
        return found.losses

    def _gradients(self, net: fx.GraphModule, places: Sequence[Place], pixels: Tensor, run: Run) -> dict[str, Tensor]:
        torch.manual_seed(run.number("gradient"))
        outputs = _Outputs(net, {place.node for place in places})
        with torch.enable_grad():
            logits = outputs.run(pixels.detach().requires_grad_())
            p = (logits.detach() / self.temperature).softmax(1)
            draw = p.sqrt() * (torch.randint(0, 2, p.shape, device=p.device) * 2 - 1)
            v = draw - p * draw.sum(1, keepdim=True)  # covariance diag(p) - p p^T
            found = torch.autograd.grad((v * logits).sum(), list(outputs.kept.values()))
        return {place.name: g for place, g in zip(places, found, strict=True)}


class _Outputs(fx.Interpreter):
    """Keeps the outputs of some nodes."""

    def __init__(self, net: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(net)
        self.nodes, self.kept = nodes, dict[fx.Node, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.kept[n] = value
        return value
