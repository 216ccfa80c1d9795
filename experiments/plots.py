"""Pictures of result files.

    python experiments/plots.py bars experiments/results/ablations --grid experiments/ablations.py:ideas --out ideas.svg
    python experiments/plots.py sweep experiments/results/ablations --grid experiments/ablations.py:counts --out counts.svg
    python experiments/plots.py spectra real=DATA dreamed=FOLDER/images --out spectra.svg

Bars: one for each recipe and setting. Sweep: over the value of the jobs' last setting, a line for each recipe. Both show the
mean over seeds and every seed as a dot, of the jobs of one grid where one is named. Spectra: mean amplitude by frequency of
sets of images: dreamed folders, and real data of the same size.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from dreamquant.evaluate import LabelledImages
from dreamquant.folder import write_text
from dreamquant.images import Images
from dreamquant.inspection import spectrum
from dreamquant.loading import load_file
from dreamquant.report.pictures import BLUE, axes_of, spectrum_chart, svg_of

TABLE = load_file(Path(__file__).with_name("table.py"))
COLUMNS = TABLE.COLUMNS
Result = dict[str, Any]
MANY = 512  # images of which a spectrum is taken


def read(sources: list[str]) -> list[Result]:
    """The result files named, and those of folders."""
    files = [file for path in map(Path, sources) for file in ([path] if path.is_file() else sorted(path.glob("*.json")))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def known(results: list[Result], column: str) -> list[Result]:
    """The results that have a value in a column, as without evaluation most have not; ValueError where none has."""
    found = [result for result in results if COLUMNS[column](result) is not None]
    if not found:
        raise ValueError(f"no result has a value in the column {column!r}")
    return found


def bars(results: list[Result], column: str) -> str:
    """One bar for each recipe and setting, the largest on top."""
    groups: dict[str, list[float]] = defaultdict(list)
    for result in known(results, column):
        groups[TABLE.named(result["recipe"] + TABLE.ends(result), result["job"]["set"])].append(COLUMNS[column](result))
    names = sorted(groups, key=lambda name: mean(groups[name]))
    figure, axes = axes_of(6, 0.8 + 0.28 * len(names))
    axes.barh(names, [mean(groups[name]) for name in names], color=BLUE, height=0.6, alpha=0.5)
    for place, name in enumerate(names):
        axes.plot(groups[name], [place] * len(groups[name]), "o", color=BLUE, markersize=3)
    low, high = (bound(value for values in groups.values() for value in values) for bound in (min, max))
    axes.set_xlim(low - (high - low or 1), high + (high - low or 1) / 5)  # differences are what is looked for: bars do not begin at 0
    axes.set_xlabel(column, fontsize=8)
    return svg_of(figure, "bars")


def sweep(results: list[Result], column: str) -> str:
    """The column, from zero, over the value of the last setting, logarithmic where the values are multiples of each other."""
    lines: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in (r for r in known(results, column) if r["job"]["set"]):
        path, _, value = result["job"]["set"][-1].partition("=")
        lines[f"{result['recipe']}{TABLE.ends(result)}: {path.rpartition('.')[2]}"][float(value)].append(COLUMNS[column](result))
    figure, axes = axes_of(5, 3)
    for name, points in lines.items():
        xs = sorted(points)
        (line,) = axes.plot(xs, [mean(points[x]) for x in xs], linewidth=1.4, label=name)
        axes.plot([x for x in xs for _ in points[x]], [y for x in xs for y in points[x]], "o", color=line.get_color(), markersize=3)
        if xs[0] > 0 and xs[-1] / xs[0] > 8:
            axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_ylim(bottom=0)
    axes.set_ylabel(column, fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return svg_of(figure, "sweep")


def spectra(named: list[str]) -> str:
    """Each NAME=PATH is a folder of dreamed images or labelled data; amplitudes are of pixels in units of their deviation."""
    sets = {}
    for name, _, path in (word.partition("=") for word in named):
        pixels = dreamed(path) if (Path(path) / "images.safetensors").exists() else real(path)
        sets[name] = spectrum(pixels / pixels.std()).tolist()
    return spectrum_chart("spectrum", sets)


def dreamed(folder: str) -> torch.Tensor:
    """Pixels as the network sees them, up to a scale of each channel."""
    return Images.load(folder).pixels[:MANY].cpu()


def real(path: str) -> torch.Tensor:
    """Pixels of the first images of some data."""
    data = LabelledImages.open(path)
    chosen = [np.atleast_3d(np.array(data.read(number))) for number in torch.linspace(0, len(data) - 1, MANY).int().tolist()]
    return torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["bars", "sweep", "spectra"])
    parser.add_argument("sources", nargs="+", help="result files or folders of them; for spectra NAME=PATH")
    parser.add_argument("--grid", help="FILE.py:function; leaves out what is not of it")
    parser.add_argument("--column", default="kept", choices=list(COLUMNS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    made = {"bars": bars, "sweep": sweep}
    if args.kind == "spectra":
        svg = spectra(args.sources)
    else:
        results = read(args.sources)
        svg = made[args.kind](TABLE.of_grid(results, args.grid) if args.grid else results, args.column)
    write_text(args.out, svg.replace("<svg ", '<svg style="background:#fff" ', 1))


if __name__ == "__main__":
    main()
