"""SearchCells: which cells make a generator that suits a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dreamquant.losses.algebra import Loss, Objective
from dreamquant.model import Model
from dreamquant.run import Run
from dreamquant.synthesis.cells import ANY, CROSSES, NODES, UPS, Cells, CellTrunk, Genotype, edge_of
from dreamquant.synthesis.conditions import Condition, Conditioner, Uniform
from dreamquant.synthesis.generator import shown
from dreamquant.trace import Trace, Watch

KINDS = {word: kinds for kinds, word in ANY.items()}
OPEN = Genotype((" ".join(["up?"] * 2),) * 3, (" ".join(["node?"] * 5),) * 3, (" ".join(["cross?"] * 6),) * 2)


class Choice(nn.Module):
    """All candidates of one edge, mixed by a sample of the Gumbel softmax of their scores."""

    def __init__(self, kinds: tuple[str, ...], width: int, classes: int) -> None:
        super().__init__()
        self.kinds, self.temperature = kinds, 1.0
        self.edges = nn.ModuleDict({kind: edge for kind in kinds if (edge := edge_of(kind, width, classes)) is not None})
        self.scores = nn.Parameter(torch.zeros(len(kinds)))

    def forward(self, x: Tensor, condition: Condition, size: tuple[int, int]) -> Tensor:
        weights = F.gumbel_softmax(self.scores, self.temperature, dim=0)
        terms = [weights[self.kinds.index(kind)] * edge(x, condition, size) for kind, edge in self.edges.items()]
        return sum(terms[1:], terms[0])

    @property
    def best(self) -> str:
        return self.kinds[int(self.scores.argmax())]


@dataclass(frozen=True)
class SearchCells:
    """A genotype for a teacher: a network of all candidates learns `loss`, weights and scores of edges in turns.

    Ours throughout, in the spirit of AutoReCon (Zhu et al., IJCAI 2021), whose procedure is not public: the temperature
    of the Gumbel softmax falls from 5 to 0.5; Adam at 1e-3 for weights, at `scores_lr` with weight decay 1e-3 for
    scores; the best candidate of every edge is kept.
    """

    loss: Loss[Trace]
    iterations: int = 10_000
    batch: int = 64
    cells: Cells = Cells()
    conditioner: Conditioner = Uniform()
    scores_lr: float = 3e-4
    pixels: tuple[float, float] | None = None

    def __call__(self, model: Model, run: Run) -> Genotype:
        torch.manual_seed(run.number("cells"))
        searching = _Searching(self, model)
        for number in (loop := run.loop("searching cells", self.iterations, searching=searching)):
            searching.step(number)
            loop.show(**searching.objective.values)
        return searching.genotype()


class _Searching:
    """Stateful: the network of all candidates and its two optimizers."""

    def __init__(self, part: SearchCells, model: Model) -> None:
        self.part, self.model = part, model
        self.net = CellTrunk(part.cells, OPEN, model, lambda word: Choice(KINDS[word], part.cells.width, model.classes)).to(model.device)
        self.choices = [m for m in self.net.modules() if isinstance(m, Choice)]
        scores = [choice.scores for choice in self.choices]
        weights = [p for p in self.net.parameters() if all(p is not s for s in scores)]
        self.turns = (weights, scores)
        betas = (0.5, 0.999)
        self.optimizers = (torch.optim.Adam(weights, 1e-3, betas), torch.optim.Adam(scores, part.scores_lr, betas, weight_decay=1e-3))
        self.objective, self.teacher = Objective(part.loss, model), Watch(model, part.loss.wants())

    def step(self, number: int) -> None:
        for choice in self.choices:
            choice.temperature = 5 * 0.1 ** (number / self.part.iterations)
        condition = self.part.conditioner(self.model, self.part.batch).to(self.model.device)
        images = condition.images(shown(self.model, self.net(condition), self.part.pixels))
        loss, turn = self.objective(self.teacher(images)), number % 2
        self.optimizers[turn].zero_grad()
        loss.backward(inputs=self.turns[turn])
        self.optimizers[turn].step()

    def genotype(self) -> Genotype:
        """The best of every edge."""

        def words(places: Iterator[str]) -> str:
            return " ".join(places)

        best = [
            {kinds: words(c.best for c in cell.modules() if isinstance(c, Choice) and c.kinds == kinds) for kinds in (UPS, NODES, CROSSES)}
            for cell in self.net.cells
        ]
        ups, nodes = (tuple(cell[kinds] for cell in best) for kinds in (UPS, NODES))
        return Genotype((ups[0], ups[1], ups[2]), (nodes[0], nodes[1], nodes[2]), (best[1][CROSSES], best[2][CROSSES]))

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "weights": self.optimizers[0].state_dict(), "scores": self.optimizers[1].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        for optimizer, name in zip(self.optimizers, ("weights", "scores"), strict=True):
            optimizer.load_state_dict(state[name])
