"""Who may import whom, and what may stand in no file: "data-free" is a property of the import graph."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "dreamquant"
FILES = sorted(PACKAGE.rglob("*.py"))
READS_REAL_IMAGES = ("dreamquant.evaluate", "dreamquant.labelled")
MAY_EVALUATE = (*READS_REAL_IMAGES, "dreamquant.cli", "dreamquant.job", "dreamquant.report")
DATA_FREE = ("dreamquant.recipes", "dreamquant.steps", "dreamquant.synthesis", "dreamquant.losses")
# layer -> what it must never see
FORBIDDEN = {
    "dreamquant.losses": ("dreamquant.quant", "dreamquant.steps", "dreamquant.recipe", "dreamquant.recipes"),
    "dreamquant.quant": ("dreamquant.losses", "dreamquant.steps", "dreamquant.recipe", "dreamquant.recipes"),
    "dreamquant.steps": ("dreamquant.recipe", "dreamquant.recipes"),
    "dreamquant.synthesis": ("dreamquant.recipe", "dreamquant.recipes"),
    "dreamquant.model": ("dreamquant.quant", "dreamquant.losses", "dreamquant.steps", "dreamquant.synthesis"),
    "dreamquant.images": ("dreamquant.quant", "dreamquant.losses", "dreamquant.steps", "dreamquant.synthesis"),
    "dreamquant.export": ("dreamquant.recipe", "dreamquant.recipes", "dreamquant.steps", "dreamquant.losses", "dreamquant.synthesis"),
}
CALLS = {"cuda": "devices are chosen once, by the run", "print": "progress and tables go through rich"}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, *layers: str) -> bool:
    return any(module == layer or module.startswith(layer + ".") for layer in layers)


def in_type_checking(tree: ast.Module) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING:`; they import nothing when the program runs."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(path: Path) -> Iterator[str]:
    """Every module of the package that the file imports when it runs, imports inside functions included."""
    tree = ast.parse(path.read_text())
    skipped = in_type_checking(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_evaluation_reads_real_images(path: Path) -> None:
    module = module_of(path)
    sees = [name for name in imports(path) if within(name, *READS_REAL_IMAGES)]
    lazy_public_names = module == "dreamquant"
    assert not sees or lazy_public_names or within(module, *MAY_EVALUATE), f"{module} imports {sees}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_layers(path: Path) -> None:
    module = module_of(path)
    banned = [target for layer, targets in FORBIDDEN.items() if within(module, layer) for target in targets]
    if within(module, *DATA_FREE):
        banned += [*READS_REAL_IMAGES, "dreamquant.export", "dreamquant.report", "dreamquant.job", "dreamquant.intake"]
    if not within(module, "dreamquant.cli"):
        banned.append("dreamquant.cli")
    assert not [name for name in imports(path) if within(name, *banned)]


def test_no_data_free_part_reaches_evaluation_through_another_module() -> None:
    """Follows imports to the end: what a recipe, step, synthesis or loss can reach never includes what reads real images."""
    graph = {module_of(path): set(imports(path)) for path in FILES}
    reached, waiting = set(), [module for module in graph if within(module, *DATA_FREE)]
    while waiting:
        module = waiting.pop()
        if module not in reached and module != "dreamquant":  # the package's own __init__ runs first for everybody
            reached.add(module)
            waiting += [name for name in graph.get(module, ()) if name in graph]
    assert not reached & set(READS_REAL_IMAGES)
    assert len(reached) > 5


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_banned_calls(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_method = isinstance(node.func, ast.Attribute)
        assert not (name == "cuda" and is_method), f"{path}:{node.lineno}: {CALLS['cuda']}"
        assert not (name == "print" and not is_method), f"{path}:{node.lineno}: {CALLS['print']}"
        hook = name.startswith("register_") and name.endswith("_hook")
        assert not hook, f"{path}:{node.lineno}: hooks miss function nodes; rewrite the graph"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_randomness_comes_from_torch(path: Path) -> None:
    """numpy and Python generators are not seeded by the run, so nothing may draw from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "random":
            assert ast.unparse(node.value) not in ("np", "numpy"), f"{path}:{node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"random", "numpy.random"} & set(names) or getattr(node, "module", "") == "torch", f"{path}:{node.lineno}"
