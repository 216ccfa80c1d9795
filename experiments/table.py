"""The table of a folder of results, as Markdown: `python experiments/table.py experiments/results/methods`.

Mean over seeds, and the spread (largest less smallest) where there are several; of seconds the least on a CPU, because machines
and what else they did differed from day to day: empty where all seeds ran on a GPU. Nothing in it is typed by hand. With
`--pivot COLUMN ...` (after the folders) a table for each model and column: recipes down, bits across, that column in the
cells. `--columns` chooses those of the plain table; `--grid FILE.py:function` leaves out what is not of that grid.
`--compare MODEL,BITS,COLUMN[,MODIFIER] ...` makes one table of several models: recipes down, what is named across.
"drop that counts" is the drop on the further data where a job had some: that of a third-party network on test.tar
flatters it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreamquant.cli.bench import jobs_of, record

Result = dict[str, Any]
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def of_grid(results: Sequence[Result], grid: str) -> list[Result]:
    """The results of the jobs of a grid, wherever its data lay."""
    jobs = [json.loads(json.dumps(record(job, {})["job"])) for job in jobs_of(grid)]
    return [result for result in results if result["job"] in jobs]


def points(value: float | None) -> float | None:
    """A share of 1 in percent."""
    return None if value is None else 100 * value


def top1(scores: Result | None) -> float | None:
    """In percent; None where nothing was evaluated."""
    return points((scores or {}).get("top1"))


def drop(scores: Result | None) -> float | None:
    """Points of accuracy lost against float."""
    return None if not scores or not scores["fp"] else points(scores["fp"]["top1"] - scores["quantized"]["top1"])


COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "float": lambda r: top1(r["fp"]),
    "quantized": lambda r: top1(r["quantized"]),
    "drop": drop,
    "kept": lambda r: points(r["kept"]),
    "agreement": lambda r: points(r["agreement"]),
    "deployed": lambda r: top1(r["deployed"]),
    "cka": lambda r: points(r.get("cka")),
    "alike within class": lambda r: points((r.get("images") or {}).get("similarity_within_class")),
    "centres hit": lambda r: points((r.get("images") or {}).get("centres_hit")),
    "drop that counts": lambda r: next((drop(scores) for scores in r.get("also", {}).values()), drop(r)),
    "images": lambda r: r.get("provenance", {}).get("images_count"),
    "seconds dreaming": lambda r: r["seconds"]["synthesis"],
    "seconds after": lambda r: r["seconds"]["quantize"],
    "seconds": lambda r: r["seconds"]["total"],
}


def cell(column: str, results: Sequence[Result]) -> str:
    """Mean, and the spread in brackets; of seconds the least on a CPU."""
    counted = [r for r in results if not column.startswith("seconds") or r["device"].startswith("cpu")]
    known = [value for result in counted if (value := COLUMNS[column](result)) is not None]
    if not known:
        return ""
    if column.startswith("seconds"):
        return f"{min(known):.1f}"
    if column == "images":
        return ", ".join(f"{count:.0f}" for count in sorted(set(known)))
    spread = f" ({max(known) - min(known):.1f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def ends(result: Result) -> str:
    """Words for ends of other bits: two conventions, whose figures never belong in one column."""
    return "" if result["ends"] is None else f" ends {result['ends']}"


def formats(result: Result) -> str:
    """Bits, and those of the ends where they differ."""
    return str(result["bits"]) + ends(result)


def named(recipe: str, settings: Sequence[str]) -> str:
    """A recipe with its settings, `field=value` each and once, without the way to the field; a weight with the term it is of."""
    pairs = [(setting.partition("=")[0].split("."), setting.partition("=")[2]) for setting in settings]
    words = [f"{'.'.join(path[-2:] if path[-1] == 'weight' else path[-1:])}={value}" for path, value in pairs]
    return " ".join([recipe, *dict.fromkeys(words)])


def settings_of(result: Result) -> tuple[str, ...]:
    """What was set of its recipe: results that differ in it are no seeds of each other."""
    return tuple(result.get("job", {}).get("set", []))


def in_order(settings: tuple[str, ...]) -> list[tuple[str, float, str]]:
    """A key that sorts settings by their values, 64 before 128."""
    pairs = [setting.partition("=") for setting in settings]
    return [(path, float(value) if NUMBER.fullmatch(value) else 0.0, value) for path, _, value in pairs]


def table(results: Sequence[Result], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """Markdown, one row for each model, bits and recipe."""
    groups: dict[tuple[str, str, str, tuple[str, ...], str], list[Result]] = defaultdict(list)
    for result in results:
        groups[(result["model"], formats(result), result["recipe"], settings_of(result), result["effort"])].append(result)
    head = ["model", "bits", "recipe", "effort", "seeds", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    rows = sorted(groups.items(), key=lambda row: (*row[0][:3], in_order(row[0][3]), row[0][4]))
    for (model, bits, recipe, settings, effort), group in rows:
        cells = [cell(column, group) for column in columns]
        lines.append("| " + " | ".join([model, bits, named(recipe, settings), effort, str(len(group)), *cells]) + " |")
    return "\n".join(lines)


def falling(bits: str) -> tuple[bool, int, int]:
    """A key that sorts bits: many before few, mixtures last."""
    number = re.match(r"w(\d+)", bits)
    return number is None, -int(number[1]) if number else 0, len(bits)


def pivot(results: Sequence[Result], column: str) -> str:
    """Markdown, one table for each model: a row for each recipe and effort, a column for each of the bits."""
    tables = []
    for model in sorted({result["model"] for result in results}):
        mine = [result for result in results if result["model"] == model]
        bits = list(dict.fromkeys(sorted(map(formats, mine), key=falling)))
        lines = [f"{model}: {column}", "", "| recipe | effort | " + " | ".join(bits) + " |", "|" + "---|" * (len(bits) + 2)]
        for key in sorted({(r["recipe"], settings_of(r), r["effort"]) for r in mine}, key=lambda k: (k[0], in_order(k[1]), k[2])):
            recipe, settings, effort = key
            rows = [r for r in mine if (r["recipe"], settings_of(r), r["effort"]) == key]
            cells = [cell(column, [r for r in rows if formats(r) == b]) for b in bits]
            lines.append("| " + " | ".join([named(recipe, settings), effort, *cells]) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


Shown = tuple[str, str, str, str]  # a model, bits, a column, and a modifier of the recipe or ""


def shown(words: str) -> Shown:
    """What MODEL,BITS,COLUMN[,MODIFIER] names; ValueError where there is no such column."""
    model, bits, column, modifier = (words if words.count(",") == 3 else words + ",").split(",")
    if column not in COLUMNS:
        raise ValueError(f"no column {column!r}; choose from {', '.join(COLUMNS)}")
    return model, bits, column, modifier


def compared(results: Sequence[Result], across: Sequence[Shown]) -> str:
    """Markdown, one table: recipes at effort `fast` down, those first that keep most in the first of what is shown across."""
    plain = [r for r in results if r["effort"] == "fast" and r["ends"] is None and not settings_of(r)]

    def found(recipe: str, model: str, bits: str, modifier: str) -> list[Result]:
        name = f"{modifier}:{recipe}" if modifier else recipe
        return [r for r in plain if (r["recipe"], r["model"], r["bits"]) == (name, model, bits)]

    def kept(recipe: str) -> float:
        return statistics.mean([r["kept"] for r in found(recipe, *across[0][:2], across[0][3]) if r["kept"] is not None] or [0.0])

    heads = [f"{model.split(':')[-1]} {bits}: {column}" + f" with {modifier}" * bool(modifier) for model, bits, column, modifier in across]
    lines = ["| recipe | " + " | ".join(heads) + " |", "|" + "---|" * (len(across) + 1)]
    for recipe in sorted({r["recipe"] for r in plain if ":" not in r["recipe"]}, key=lambda recipe: (-kept(recipe), recipe)):
        cells = [cell(column, found(recipe, model, bits, modifier)) for model, bits, column, modifier in across]
        lines.append(f"| `{recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pivot", nargs="+", choices=list(COLUMNS))
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--grid", help="FILE.py:function")
    parser.add_argument("--compare", nargs="+", type=shown, metavar="MODEL,BITS,COLUMN[,MODIFIER]")
    args = parser.parse_args()
    files = sorted(path for folder in args.folders for path in folder.glob("*.json"))
    if not files:
        raise SystemExit("no results there; give folders that `dreamquant bench` wrote")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    results = of_grid(results, args.grid) if args.grid else results
    if args.compare:
        print(compared(results, args.compare))
    else:
        print("\n\n".join(pivot(results, column) for column in args.pivot) if args.pivot else table(results, args.columns))


if __name__ == "__main__":
    main()
