"""Pictures of a report: the sheet of dreamed images, and charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

INK, BLUE, GREY, RED = "#1f2933", "#2f6fde", "#9aa5b1", "#c8452d"
GOOD_DB = 20.0  # the noise is a hundredth of the signal's power: layers above it are rarely what hurts
BETWEEN = 226  # the grey between images: neither black nor white, which images are
CURVES = 6  # loss terms drawn for one phase


def sheet(pixels: Tensor, classes: Tensor, path: Path, count: int = 64, columns: int = 16) -> None:
    """Write up to `count` images, (N, C, H, W) in [0, 1], in rows sorted by class; small ones are enlarged."""
    pick = classes.argsort(stable=True)
    pick = pick[np.linspace(0, len(pick) - 1, min(count, len(pick))).round().astype(int)]
    tiles = (pixels[pick].detach().float().cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (n, H, W, C)
    if tiles.shape[3] not in (1, 3):
        tiles = tiles[..., :1]
    factor = max(1, round(56 / tiles.shape[1]))
    tiles = np.repeat(tiles, 3 // tiles.shape[3], axis=3).repeat(factor, axis=1).repeat(factor, axis=2)
    _, height, width, _ = tiles.shape
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    gap = max(2, height // 12)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), BETWEEN, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        whole[top : top + height, left : left + width] = tile
    Image.fromarray(whole).save(path, format="PNG", optimize=True)


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches, and its axes in our style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _plain(name: object) -> str:
    """A name with its dollars escaped: what stands between two would be drawn as mathematics."""
    return str(name).replace("$", r"\$")


def svg_of(figure: Figure, name: str) -> str:
    """The figure as an SVG element without an XML header; ids are made from `name`, so equal data gives equal files."""
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def noise_chart(layers: Sequence[Mapping[str, object]]) -> str:
    """A bar for each layer's signal-to-noise ratio in decibels, in the network's order; "" when none was measured."""
    measured = [(str(layer["name"]), float(str(layer["sqnr_db"]))) for layer in layers if layer.get("sqnr_db") is not None]
    if not measured:
        return ""
    names, values = zip(*measured, strict=True)
    figure, axes = axes_of(9, 0.6 + 0.19 * len(names))
    colours = [BLUE if value >= GOOD_DB else RED if value < GOOD_DB / 2 else GREY for value in values]
    axes.barh(range(len(names)), values, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), list(map(_plain, names)))
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(GOOD_DB, color=INK, linewidth=0.6, linestyle=":")
    axes.set_xlabel("signal to quantization noise of the layer's output, dB (more is better)", fontsize=8)
    return svg_of(figure, "noise")


def curve_chart(name: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> str:
    """The loss terms of one phase over its iterations, or over what its name counts, as `sensitivity: tensors`.

    Logarithmic where all are positive; "" for fewer than two points.
    """
    if len(points) < 2:
        return ""
    figure, axes = axes_of(4.4, 2.4)
    terms = list(dict.fromkeys(term for _, values in points for term in values))[:CURVES]
    lowest = float("inf")
    for term in terms:
        xs, ys = zip(*[(at, values[term]) for at, values in points if values.get(term) is not None], strict=True)
        axes.plot(xs, ys, linewidth=1.2, label=term)
        lowest = min(lowest, *ys)
    if lowest > 0:
        axes.set_yscale("log")
    axes.set_title(name, fontsize=9, color=INK)
    axes.set_xlabel(name.rpartition("/")[2].partition(": ")[2] or "iterations", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return svg_of(figure, name)


def front_chart(title: str, front: Mapping[str, Any]) -> str:
    """Predicted loss against cost: the best mixtures of bits, the same bits everywhere, and the mixture that was taken.

    `front` is what `run.fronts` holds: pairs (cost, loss) as "points" and "uniform", one as "taken", and the "unit" of cost.
    """
    figure, axes = axes_of(4.4, 2.8)
    axes.plot(*zip(*front["points"], strict=True), color=BLUE, linewidth=1.4, drawstyle="steps-post", label="best mixture")
    axes.plot(*zip(*front["uniform"], strict=True), color=GREY, marker="o", markersize=4, linestyle="", label="same bits everywhere")
    axes.plot(*front["taken"], color=RED, marker="D", markersize=6, linestyle="", label="taken")
    if min(loss for _, loss in [*front["points"], *front["uniform"]]) > 0:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(front["unit"], fontsize=8)
    axes.set_ylabel("predicted loss", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return svg_of(figure, f"front {title}")


def bits_chart(layers: Sequence[Mapping[str, Any]]) -> str:
    """Two bars for each layer, bits of its weights and of what it reads (none where that is in float), in the network's order."""
    if not layers:
        return ""
    figure, axes = axes_of(9, 0.6 + 0.19 * len(layers))
    for name, key, colour, place in (("weights", "weight_bits", BLUE, -0.2), ("what the layer reads", "activation_bits", GREY, 0.2)):
        values = [layer[key] or 0 for layer in layers]
        axes.barh([number + place for number in range(len(layers))], values, color=colour, height=0.36, label=name)
    axes.set_yticks(range(len(layers)), [_plain(layer["name"]) for layer in layers])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 8)
    axes.set_xlabel("bits", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return svg_of(figure, "bits")


def similarity_chart(title: str, matrix: Sequence[Sequence[float]]) -> str:
    """Cosine of every two images as a square of shades, and the mean of those that are not on the diagonal; "" for one image."""
    values = np.asarray(matrix, dtype=float)
    count = len(values)
    if count < 2:
        return ""
    mean = (values.sum() - np.trace(values)) / (count * (count - 1))
    figure, axes = axes_of(4.0, 3.4)
    shades = axes.imshow(values, cmap="Blues", vmin=min(0.0, values.min()), vmax=1.0, interpolation="nearest")
    bar = figure.colorbar(shades, ax=axes, fraction=0.046)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(f"image; cosine of two images' features, mean {mean:.2f}", fontsize=8)
    axes.set_ylabel("image", fontsize=8)
    return svg_of(figure, f"similarity {title}")


def plane_chart(title: str, groups: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Points of a plane, a colour for each group; "" where there are none."""
    shown = {name: np.asarray(points, dtype=float) for name, points in groups.items() if len(points)}
    if not shown:
        return ""
    figure, axes = axes_of(4.4, 3.4)
    colours = matplotlib.colormaps["tab10"]
    for number, (name, points) in enumerate(shown.items()):
        axes.scatter(points[:, 0], points[:, 1], s=14, alpha=0.75, linewidths=0, color=colours(number % 10), label=name)
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel("first principal component of the features", fontsize=8)
    axes.set_ylabel("second", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.1)
    return svg_of(figure, f"plane {title}")


def spectrum_chart(title: str, sets: Mapping[str, Sequence[float]]) -> str:
    """Amplitude by frequency, of 1, 2, ... cycles per image, of each set of images, and 1/f beside the first; "" where there are none."""
    shown = {name: values for name, values in sets.items() if len(values) > 1 and min(values) > 0}
    if not shown:
        return ""
    figure, axes = axes_of(4.4, 2.8)
    for name, values in shown.items():
        axes.loglog(range(1, len(values) + 1), values, linewidth=1.4, label=name)
    first = next(iter(shown.values()))
    axes.loglog([1, len(first)], [first[0], first[0] / len(first)], color=GREY, linestyle=":", linewidth=1.2, label="1/f")
    doubled = [2**power for power in range(max(map(len, shown.values())).bit_length())]
    axes.set_xticks(doubled, [str(cycles) for cycles in doubled])
    axes.minorticks_off()
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel("cycles per image", fontsize=8)
    axes.set_ylabel("mean amplitude", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return svg_of(figure, f"spectrum {title}")
