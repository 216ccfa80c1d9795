"""Gradients: those of one loss, thousands of times, on inputs of the same shapes. A GPU records the work once and replays it.

An update of a small network is a thousand kernels of microseconds each, and Python starts them more slowly than a GPU ends them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
T = TypeVar("T")
Work = Callable[[Tensors], tuple[Tensor, T]]


class Gradients(Generic[T]):
    """Puts the gradients of a loss into `grad` of what is learned. Live, and without state that would have to be saved.

    The loss is a function of named tensors and of what is learned that also gives what else it found, detached, such as the
    values of its terms; it keeps nothing that its next call reads, and leaves its inputs as they are. On a GPU the first call
    with tensors of some names and shapes is rehearsed and recorded, later ones are replayed, and what was found lasts until
    the next; a loss that waits for the GPU or draws from the CPU's generator cannot be recorded, and is computed anew every time.
    """

    def __init__(self, loss: Work[T], learned: Sequence[Tensor]) -> None:
        self.loss, self.learned = loss, learned
        self.records: dict[tuple[tuple[str, torch.Size], ...], Record[T] | None] = {}

    def __call__(self, inputs: Tensors) -> T:
        """What the loss found for these inputs."""
        kind = tuple((name, x.shape) for name, x in inputs.items())
        if self.learned[0].is_cuda and kind not in self.records:
            possible = recordable(self.anew, inputs, self.learned[0].device)
            self.records[kind] = Record(self.anew, inputs, self.learned) if possible else None
        record = self.records.get(kind)
        return record(inputs) if record else self.anew(inputs)

    def anew(self, inputs: Tensors) -> T:
        """The same, never replayed: for a loss that keeps something this time."""
        loss, found = self.loss(inputs)
        differentiate(loss, self.learned)
        return found


def differentiate(loss: Tensor, learned: Sequence[Tensor]) -> None:
    """Put the gradients of a loss into `grad` of what is learned, instead of what is there."""
    for p in learned:
        p.grad = None
    loss.backward(inputs=learned)


class Record(Generic[T]):
    """Work that leaves gradients, as a CUDA graph: it reads tensors of its own, and its results lie in the same place every time."""

    def __init__(self, work: Callable[[Tensors], T], inputs: Tensors, learned: Sequence[Tensor]) -> None:
        self.inputs = {name: x.detach().clone() for name, x in inputs.items()}
        self.learned, self.graph = learned, torch.cuda.CUDAGraph()
        gc.collect()  # what is left of a rehearsal would tie the record to its stream
        device = learned[0].device
        with torch.cuda.device(device), torch.cuda.graph(self.graph, stream=aside(device)):
            self.found = work(self.inputs)
        self.gradients = [p.grad for p in learned]

    def __call__(self, inputs: Tensors) -> T:
        for name, x in inputs.items():
            self.inputs[name].copy_(x)
        self.graph.replay()
        for p, gradient in zip(self.learned, self.gradients, strict=True):
            p.grad = gradient
        return self.found


@cache
def aside(device: torch.device) -> torch.cuda.Stream:
    """Where work is rehearsed and recorded: one stream of each GPU, because libraries keep memory for every stream they have seen."""
    return torch.cuda.Stream(device)


def recordable(work: Callable[[Tensors], object], inputs: Tensors, device: torch.device) -> bool:
    """Whether work can be replayed: a rehearsal neither waits for the GPU nor draws from the CPU's generator.

    Generators are afterwards as before. An error of the work itself is left to its next call.
    """
    here, there, told = torch.cuda.current_stream(device), aside(device), torch.cuda.get_sync_debug_mode()
    with torch.random.fork_rng([device]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its mode for finding waits a prototype
        before = torch.get_rng_state()
        there.wait_stream(here)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(there):
                work(inputs)
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode(told)
            here.wait_stream(there)
        return torch.equal(before, torch.get_rng_state())
