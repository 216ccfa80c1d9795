"""Model: the frozen network we are given, and its facts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn as nn
from torch import Tensor, fx

from dreamquant import graph, plain, tracing
from dreamquant.moments import ChannelStats


@dataclass(frozen=True, eq=False)
class Model:
    """A pre-trained network, traced and frozen, and what is known about its input.

    The network takes `(pixels - mean) / std` with pixels in [0, 1], of shape (N, *shape), and returns (N, classes).
    `channel_stats`: by node name, what a BatchNorm knew of a tensor before it was folded away.
    """

    net: fx.GraphModule
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    name: str = ""
    left_in_float: Mapping[str, str] = field(default_factory=dict)
    channel_stats: Mapping[str, ChannelStats] = field(default_factory=dict)

    @classmethod
    def from_module(
        cls, net: nn.Module, shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...], name: str = ""
    ) -> Model:
        """A Model of a copy of `net`, which is never changed.

        Raises ValueError for weights, mean or std that are not finite, a network that cannot be traced, or that computes something else
        then, an input shape it does not take, or an output that is not (N, classes).
        """
        name = name or type(net).__name__
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name}: {key} holds NaN or infinite values; check the weights file")
        if not len(mean) == len(std) == shape[0]:
            raise ValueError(f"{name}: mean {mean} and std {std} need one value for each of the {shape[0]} channels")
        if not all(map(math.isfinite, mean)):
            raise ValueError(f"{name}: mean {tuple(mean)} is not finite; give --mean in pixels of [0, 1]")
        if not all(0 < deviation < math.inf for deviation in std):
            raise ValueError(f"{name}: std {tuple(std)} is not positive and finite; give --std in pixels of [0, 1]")
        traced, left = tracing.trace(net)
        try:
            with torch.no_grad():
                out = traced(torch.zeros(2, *shape))
        except Exception as error:
            raise ValueError(
                f"{name} does not take inputs of shape {tuple(shape)}: {str(error).splitlines()[0]}; give --shape C,H,W"
            ) from None
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2 or out.shape[1] < 2:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{name} returns {got} for a batch of 2, not (2, classes); wrap it so that it returns logits")
        tracing.fold_sizes(traced, shape)
        channels, height, width = shape
        model = cls(traced, (channels, height, width), tuple(mean), tuple(std), out.shape[1], name, left)
        model._check(plain.copied(net))
        return model

    def _check(self, net: nn.Module) -> None:
        """Raises ValueError where the traced network does not compute what the network does."""
        noise = self.normalise(torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(0)))
        with torch.no_grad():
            expected, again, found = net(noise.clone()), net(noise.clone()), self.net(noise.clone())
        near = 1e-3 * float(expected[expected.isfinite()].abs().amax()) if expected.isfinite().any() else 0.0
        if not torch.allclose(again, expected, rtol=0, atol=near, equal_nan=True):
            raise ValueError(
                f"{self.name} gives other logits each time: it draws random numbers in eval mode; write dropout(x, p, self.training)"
            )
        if not torch.allclose(found, expected, rtol=0, atol=near, equal_nan=True):
            raise ValueError(
                f"{self.name} computes something else when it is traced: it changes a tensor in place, as relu_(y) or y += x, and reads it "
                "under another name; write y = relu(y), y = y + x"
            )

    @cached_property
    def points(self) -> dict[str, tuple[str, ...]]:
        """Named places in the graph; see `graph.points`."""
        return graph.points(self.net)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Model:
        """The same model on a device (the weights are moved, not copied)."""
        self.net.to(device)
        return self

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """(1, C, 1, 1), filled where they are: a copy from the CPU would make a GPU wait, and could not be recorded."""
        return torch.stack([like.new_full((1, 1, 1), value) for value in values], 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] -> what the network takes. (N, C, H, W) both."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def pixels(self, x: Tensor) -> Tensor:
        """What the network takes -> pixels, clamped to [0, 1]. (N, C, H, W) both."""
        return (x * self._channels(self.std, x) + self._channels(self.mean, x)).clamp(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, classes), without gradients."""
        with torch.no_grad():
            return self.net(x)

    @cached_property
    def _digest(self) -> str:
        value = hashlib.sha256(repr((self.shape, self.mean, self.std, self.net.code, settings(self.net))).encode())
        for key, tensor in self.net.state_dict().items():
            value.update(key.encode())
            value.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return value.hexdigest()[:16]

    def digest(self) -> str:
        """A hash of graph, settings of modules, weights and facts: equal models, equal digests."""
        return self._digest

    def has_batch_norm(self) -> bool:
        """Whether statistics of the training data are stored in the network."""
        return bool(self.points["bn"])


def settings(net: nn.Module) -> list[tuple[str, str, list[tuple[str, object]]]]:
    """Every module and how it is set, in full: the `repr` of a pool does not tell whether it counts padding."""
    plain = (bool, int, float, str, tuple, list, type(None))

    def of(module: nn.Module) -> list[tuple[str, object]]:
        return sorted((key, value) for key, value in vars(module).items() if key[0] != "_" and isinstance(value, plain))

    return [(name, type(module).__name__, of(module)) for name, module in net.named_modules() if name]
