"""Swing convolution: while images are dreamed, strided convolutions read their input from a random phase.

A strided convolution looks at the same pixels of every image, and the gradient leaves a grid in the others. The graph's
copy that the dream watches is rewritten; the model stays as it is, and so does every node's name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, fx

from dreamquant import graph


class Rewrite(Protocol):
    """A network's graph -> the one that is watched while dreaming. It shares the modules, and keeps the names of nodes."""

    def __call__(self, net: fx.GraphModule) -> fx.GraphModule: ...


@dataclass(frozen=True)
class Unchanged:
    """The network itself."""

    def __call__(self, net: fx.GraphModule) -> fx.GraphModule:
        return net


@dataclass(frozen=True)
class Swing:
    """Every convolution with a stride above one reads its input moved by up to half a stride, anew in every call (Genie).

    Each has a shift of its own, the same for the whole batch; what leaves on one side comes in mirrored at the other.
    Genie's convolutions have stride 2, and move by up to one pixel; half of larger strides is ours.
    """

    def __call__(self, net: fx.GraphModule) -> fx.GraphModule:
        swung = fx.GraphModule(net, copy.deepcopy(net.graph))
        for node in graph.of_kind(swung, "conv"):
            conv = swung.get_submodule(str(node.target))
            assert isinstance(conv, nn.Conv2d)
            if max(conv.stride) > 1:
                swung.add_submodule("swing." + node.name, Moved((conv.stride[0] // 2, conv.stride[1] // 2)))
                with swung.graph.inserting_before(node):
                    moved = swung.graph.call_module("swing." + node.name, (node.all_input_nodes[0],))
                node.replace_input_with(node.all_input_nodes[0], moved)
        swung.recompile()
        return swung


class Moved(nn.Module):
    """Images moved by a random number of places, up to `reach` in each direction. (N, C, H, W) both."""

    def __init__(self, reach: tuple[int, int]) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = min(self.reach[0], height - 1), min(self.reach[1], width - 1)  # reflection cannot reach further
        top, left = (int(torch.randint(2 * reach + 1, ())) for reach in (down, right))
        big = F.pad(x, (right, right, down, down), mode="reflect")
        return big[..., top : top + height, left : left + width]
