"""Reconstruct: piece by piece, the student learns to give the outputs of its teacher, by rounding and by steps.

AdaRound, BRECQ, QDrop and GENIE-M are settings of this one step. BatchNorm stays in the piece, in eval mode, which is
the same as folding it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant import graph
from dreamquant.gradients import Gradients, Tensors
from dreamquant.images import Images
from dreamquant.losses.unit import SquaredError, UnitError
from dreamquant.model import Model
from dreamquant.optimizers import Adam, Cosine, Optimizer, pace
from dreamquant.quant.quantizer import Floor, Quantizer, acting
from dreamquant.quant.rounding import Dropping, SoftRounding, drawn
from dreamquant.quant.student import QuantConv2d, QuantLayer, QuantLinear, Student
from dreamquant.run import Run, Stateful
from dreamquant.steps.notice import noticing
from dreamquant.steps.pieces import Blocks, Inputs, Pieces, some, through
from dreamquant.synthesis.transforms import Transform, applied


@dataclass(frozen=True)
class Anneal:
    """AdaRound's regulariser, which drives every rounding to an end: weight * sum(1 - |2h - 1|^b), after a warm-up.

    b falls from `start` to `end` over the rest of the loop. Genie's weight is 1.0, that of BRECQ and QDrop 0.01.
    """

    weight: float = 1.0
    start: float = 20.0
    end: float = 2.0
    warm_up: float = 0.2

    def exponent(self, done: float) -> float | None:
        """b, when this share of the loop is done; None in the warm-up."""
        if done < self.warm_up:
            return None
        return self.end + (self.start - self.end) * (1 - (done - self.warm_up) / (1 - self.warm_up))

    def __call__(self, soft: list[Tensor], exponent: Tensor | None) -> Tensor:
        """`soft`: the h of all weights of a piece."""
        if exponent is None or not soft:
            return torch.zeros(())
        terms = [(1 - (2 * h - 1).abs().pow(exponent)).sum() for h in soft]
        return self.weight * sum(terms[1:], terms[0])


@dataclass(frozen=True)
class Reconstruct:
    """Every piece learns the outputs of its teacher, `iterations` updates each, the pieces before it being done.

    Images are seen in `views` by the `transforms`, all made before the first piece, because its inputs are kept.
    Learned are the rounding of weights, on the grid that they have when the piece is reached, with it the steps of these
    grids where `weight_steps` is given, and the steps of activations. A share `drop` of the elements of the piece's input comes
    from the float network, and as large a share of its activations passes unrounded, drawn anew for every update (QDrop).

    AdaRound: `pieces=Layers(), drop=0.0, anneal=Anneal(0.01), activation_steps=None`; BRECQ: the same with blocks, then
    `Reconstruct(5000, drop=0.0, rounding=None, activation_steps=Adam(4e-4, schedule=Cosine()))` (its error to the power of
    2.4 there); QDrop: `anneal=Anneal(0.01)`; GENIE-M: `weight_steps=Adam(1e-4, schedule=Cosine())`. In all of them
    activations are quantized from the first piece on, where BRECQ and AdaRound round weights against float activations
    first: that is `a32`. The rates are those of 20,000 iterations; raise them as these get fewer, because a rounding that
    cannot reach its end is decided by the regulariser alone. One rate of steps serves 2 bits and 8 where it is `Relative`,
    in units of each step (ours).
    """

    iterations: int = 20_000
    batch: int = 32
    drop: float = 0.5
    error: UnitError = SquaredError()
    anneal: Anneal = Anneal()
    rounding: Optimizer | None = Adam(1e-3)
    weight_steps: Optimizer | None = None
    activation_steps: Optimizer | None = Adam(4e-5, schedule=Cosine())
    pieces: Pieces = Blocks()
    transforms: tuple[Transform, ...] = ()
    views: int = 1

    def __post_init__(self) -> None:
        if self.weight_steps and not self.rounding:
            raise ValueError("Reconstruct learns the steps of weights with their rounding alone; give `rounding` too, or no `weight_steps`")

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        if not len(images):
            raise ValueError("Reconstruct needs images; give the recipe a synthesis that dreams some")
        for name, q in student.activation_quantizers().items():
            if q.live and not q.scale.isfinite():
                raise ValueError(f"{name}: no range was ever measured; add a Calibrate step before Reconstruct")
        with noticing(student, teacher, images, run):
            self._rebuild(student, teacher, images, run)

    def _rebuild(self, student: Student, teacher: Model, images: Images, run: Run) -> None:
        pieces = self.pieces(teacher.net)
        parts = [graph.cut_out(student.net, (start,), end) for _, start, end in pieces]
        torch.manual_seed(run.number("views"))
        pixels = torch.cat([applied(self.transforms, images.pixels) for _ in range(self.views)])
        inputs = Inputs(teacher.net, student.net, pixels)
        for number in run.loop("reconstruction: pieces", len(pieces), student=student):
            cut, start, end = pieces[number]
            inputs.go_to(cut)
            exact, mine = inputs.at(start)
            wanted = through(graph.cut_out(teacher.net, (start,), end), exact, inputs.device)
            earlier = {layer for part in parts[:number] for layer in layers_of(part)}  # a shared layer is rounded once
            rebuilding = Rebuilding(self, parts[number], [layer for layer in layers_of(parts[number]) if layer not in earlier])
            rebuilding(exact, mine, wanted, inputs.device, run)


def layers_of(part: fx.GraphModule) -> list[QuantLayer]:
    """Quantized layers of a piece, in execution order, each once."""
    modules = dict.fromkeys(part.get_submodule(str(node.target)) for node in part.graph.nodes if node.op == "call_module")
    return [module for module in modules if isinstance(module, QuantConv2d | QuantLinear)]


class Rebuilding:
    """One piece of the student at work: `layers` are those whose rounding is learned here."""

    def __init__(self, how: Reconstruct, part: fx.GraphModule, layers: list[QuantLayer]) -> None:
        self.how, self.part, self.layers = how, part, layers if how.rounding else []
        for layer in self.layers:
            layer.quantizer.fix(*layer.quantizer.grid(layer.weight))
        self.soft = {layer.quantizer: SoftRounding(layer.quantizer, layer.weight) for layer in self.layers}
        called = (part.get_submodule(str(node.target)) for node in part.graph.nodes if node.op == "call_module")
        self.activations = [q for q in called if isinstance(q, Quantizer) and q.live]
        groups: list[tuple[Optimizer | None, list[Tensor]]] = [
            (how.rounding, [rule.logit for rule in self.soft.values()]),
            (how.weight_steps, [q.scale for q in self.soft]),
            (how.activation_steps, [q.scale for q in self.activations]),
        ]
        self.groups = [(part, learned) for part, learned in groups if part and learned]
        self.learned = [p for _, learned in self.groups for p in learned]
        self.floor = Floor([q.scale for q in (*self.soft, *self.activations)])

    def __call__(self, exact: Tensor, mine: Tensor, wanted: Tensor, device: torch.device, run: Run) -> None:
        """Learn from inputs of the teacher and of the student, (N, ...) both, and the teacher's outputs; then round for good."""
        if not self.learned:
            return
        how = self.how
        with self._learning():
            optimizers = [part.on(learned) for part, learned in self.groups]
            live: dict[str, Stateful] = {f"optimizer{number}": optimizer for number, optimizer in enumerate(optimizers)}
            gradients = Gradients(self._loss, self.learned)
            live |= {"learned": nn.ParameterList(self.learned), "floor": self.floor}
            for number in (loop := run.loop("reconstruction", how.iterations, **live)):
                pick, b = torch.randperm(len(wanted))[: how.batch], how.anneal.exponent(number / how.iterations)
                x = some(mine, pick, device)
                x = x.lerp_(some(exact, pick, device), drawn(x, how.drop)) if how.drop else x
                annealing = {} if b is None else {"exponent": torch.full((), b, dtype=torch.float64, device=device)}
                values = gradients({"x": x, "wanted": some(wanted, pick, device), **annealing})
                for optimizer, (part, _) in zip(optimizers, self.groups, strict=True):
                    pace(optimizer, part, number / how.iterations)
                with self.floor:
                    for optimizer in optimizers:
                        optimizer.step()
                loop.show(**values)
        self._harden()

    def _loss(self, inputs: Tensors) -> tuple[Tensor, Tensors]:
        """On a batch of the piece's inputs and of what is wanted of them; with its two terms."""
        error = self.how.error(self.part(inputs["x"]), inputs["wanted"])
        pull = self.how.anneal([rule.soft() for rule in self.soft.values()], inputs.get("exponent"))
        return error + pull, {"error": error.detach(), "rounding": pull.detach()}

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        for p in self.learned:
            p.requires_grad_()
        try:
            with acting({**self.soft, **{q: Dropping(self.how.drop) for q in self.activations}}):
                yield
        finally:
            for p in self.learned:
                p.requires_grad_(False)

    def _harden(self) -> None:
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(self.soft[layer.quantizer].hard(layer.quantizer))
