"""Pieces of a network that are rebuilt one after the other, and the tensors that enter them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from dreamquant import graph

Piece = tuple[str, str, str]  # names of nodes: the cut it comes after, its input, its output
CHUNK = 64  # images in one pass without gradients


class Pieces(Protocol):
    """What is rebuilt at once, in execution order."""

    def __call__(self, net: fx.GraphModule) -> tuple[Piece, ...]: ...


@dataclass(frozen=True)
class Blocks:
    """Residual blocks; elsewhere one layer with what follows it (BRECQ)."""

    def __call__(self, net: fx.GraphModule) -> tuple[Piece, ...]:
        return tuple((start, start, end) for start, end in graph.units(net))


@dataclass(frozen=True)
class Layers:
    """Every layer alone, with the BatchNorm and the activation behind it (AdaRound)."""

    def __call__(self, net: fx.GraphModule) -> tuple[Piece, ...]:
        place = {node.name: number for number, node in enumerate(net.graph.nodes)}
        layers = graph.of_kind(net, *graph.LAYERS)
        inside = [(start, layer) for start, end in graph.units(net) for layer in layers if place[start] < place[layer.name] <= place[end]]
        return tuple((start, layer.all_input_nodes[0].name, graph.chain_end(net, layer).name) for start, layer in inside)


class Inputs:
    """What enters a piece in the teacher and in the student, for all images; carried from cut to cut, so that no prefix is
    computed twice. The student's is right while the pieces before the cut no longer change.
    """

    def __init__(self, teacher: fx.GraphModule, student: fx.GraphModule, pixels: Tensor) -> None:
        self.nets, self.waiting, self.device = (teacher, student), list(graph.units(teacher)), pixels.device
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # convolutions of few channels take half the time
        self.here, self.values = self.waiting[0][0], [pixels, pixels]

    def go_to(self, cut: str) -> None:
        """Carry both on to a cut, one unit at a time: the same bits whether or not a run stopped in between."""
        while self.here != cut:
            self.values = self.at(self.waiting.pop(0)[1])
            self.here = self.waiting[0][0]

    def at(self, name: str) -> list[Tensor]:
        """The tensors at a node behind the cut, in the teacher and in the student."""
        if name == self.here:
            return self.values
        parts = (graph.cut_out(net, (self.here,), name) for net in self.nets)
        return [through(part, x, self.device) for part, x in zip(parts, self.values, strict=True)]


def through(part: fx.GraphModule, x: Tensor, device: torch.device) -> Tensor:
    """What a part of a network on `device` makes of all images, without gradients, a chunk at a time.

    It is kept beside the network where it takes little of the memory there, else in main memory.
    """
    made: list[Tensor] = []
    with torch.no_grad():
        for chunk in x.split(CHUNK):
            y = part(chunk.to(device))
            made.append(y.to(made[0].device if made else home(y, len(x))))
    return torch.cat(made)


def home(like: Tensor, count: int) -> torch.device:
    """Where `count` images' tensors like the rows of this one are kept."""
    room = like.is_cuda and 10 * count * like[0].nbytes < torch.cuda.mem_get_info(like.device)[0]
    return like.device if room else torch.device("cpu")


def some(x: Tensor, pick: Tensor, device: torch.device) -> Tensor:
    """Images number `pick` of tensors (N, ...), on `device`. Rows that lie together in memory are copied five times as fast."""
    pick = pick.to(x.device)
    rows = x.permute(0, 2, 3, 1).index_select(0, pick).permute(0, 3, 1, 2) if x.ndim == 4 else x.index_select(0, pick)
    return rows.to(device)
