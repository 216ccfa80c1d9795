"""Recipe: a frozen value, called on a model. Its repr evaluates back to an equal value: that is the record."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from dreamquant import __version__
from dreamquant.dream import Dream
from dreamquant.images import ImageBuffer, Images
from dreamquant.inspection import inspect
from dreamquant.losses.algebra import Sum
from dreamquant.model import Model
from dreamquant.quant.freeze import freeze
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.quant.scheme import Allocation
from dreamquant.quant.student import Student, convert
from dreamquant.run import Run
from dreamquant.steps.notice import deployment_remark, ruin_remark
from dreamquant.synthesis.pixels import Synthesis

P = TypeVar("P")


class Prepare(Protocol):
    """Model -> Model, before conversion."""

    def __call__(self, model: Model) -> Model: ...


class Step(Protocol):
    """Changes a student in place, and nothing else."""

    def __call__(self, student: Student, teacher: Model, images: Images, run: Run) -> None: ...


@dataclass(frozen=True)
class Recipe:
    """How a network becomes a quantized one: dream images, convert, take steps, freeze.

    >>> from dreamquant import load_model, recipes
    >>> recipes.rtn(bits="w4a4")(load_model("zoo:resnet-digits"), seed=0).classes
    10
    """

    name: str
    synthesis: Synthesis
    scheme: Allocation
    steps: tuple[Step, ...]
    prepare: tuple[Prepare, ...] = ()

    def __call__(self, model: Model, seed: int = 0, run: Run | None = None) -> QuantizedModel:
        """The quantized model; `run` brings a folder to resume from, a device, and progress."""
        run = run or Run(seed, device=model.device)
        model.to(run.device)
        return self.quantize(model, self.dream(model, run), run)

    def dream(self, model: Model, run: Run) -> Images:
        """The images alone: from the cache, where the run has one, or dreamed.

        Raises ValueError where the recipe matches BatchNorm's statistics and the network has none.
        """
        if reads_batch_norm(self) and not model.has_batch_norm():
            from dreamquant import recipes  # they are made of this class

            free = [name for name in recipes.names() if not reads_batch_norm(recipes.find(name)())]
            raise ValueError(
                f"{model.name} has no BatchNorm, whose statistics {self.name} matches; recipes that need none: {', '.join(free)}, "
                "and with images without_batch_norm:gdfq"
            )
        cached = run.images_cache / digest(self.synthesis, model, run.seed) if run.images_cache else None
        if cached and (cached / "images.safetensors").exists():
            note = Images.note(cached)
            run.seconds["synthesis"] += float(note["seconds"])  # what these images cost when they were dreamed
            run.go_on({key: note[key] for key in ("notes", "curves") if key in note})
            run.kept.load_generator(cached)
            return Images.load(cached).to(run.device)
        buffer = ImageBuffer()
        with run.clock("synthesis"), _about(f"synthesis of {self.name}"):
            for _ in run.loop("images", 1, buffer=buffer, kept=run.kept):
                buffer.add(self.synthesis(model, run))
        images = buffer.all().to(run.device)
        if cached and len(images):
            run.kept.save_generator(cached)
            made = {"model": model.name, "synthesis": repr(self.synthesis), "seed": run.seed}
            images.save(cached, {**run.told(), **made, "seconds": run.seconds["synthesis"]})
        return images

    def quantize(self, model: Model, images: Images, run: Run) -> QuantizedModel:
        """The rest of the recipe, on images that exist."""
        with run.clock("quantize"):
            teacher = model
            for part in self.prepare:
                teacher = part(teacher)
            student = convert(teacher, self.scheme.on(teacher, images, run))
            for number in run.loop("steps", len(self.steps), student=student, kept=run.kept):
                with _about(f"step {number + 1} of {self.name}: {type(self.steps[number]).__name__}"):
                    self.steps[number](student, teacher, images, run)
            images = run.kept.images or images
            generated = bool(dreams(self)) or hasattr(self.synthesis, "generator")
            if generated and len(images) and (remark := inspect(model, images).collapse):
                run.note(remark)
            quantized = freeze(student, self.provenance(model, images, run))
            if len(images) and (remark := ruin_remark(quantized, model, images) or deployment_remark(quantized, images)):
                run.note(remark)
            return quantized

    def provenance(self, model: Model, images: Images, run: Run) -> Mapping[str, Any]:
        """What made the result, for the record."""
        return {
            "dreamquant": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "recipe": repr(self),
            "model": model.name,
            "model_digest": model.digest(),
            "images": images.digest if len(images) else None,
            "images_count": len(images),
            "seed": run.seed,
        }


class _about:
    """Errors raised inside get a note that says where; the type and message stay."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            error.add_note(self.text)


def reads_batch_norm(recipe: Recipe) -> bool:
    """Whether the images are dreamed from BatchNorm's statistics."""
    parts = [recipe.synthesis, *dreams(recipe)]
    return any("bn" in part.loss.wants() for part in parts if hasattr(part, "loss"))


def dreams(recipe: Recipe) -> list[Dream]:
    """The trained generators of a recipe; the result keeps the last one."""
    return [part.dream for part in (recipe.synthesis, *recipe.steps) if hasattr(part, "dream")]


def within(part: Any, kind: type[P]) -> Iterator[P]:
    """The parts of a kind in a part: itself, or in its fields and their items, in order."""
    if isinstance(part, kind):
        yield part
    inner = part if isinstance(part, tuple) else [getattr(part, f.name) for f in dataclasses.fields(part)] if _is_value(part) else ()
    for item in inner:
        yield from within(item, kind)


def _is_value(part: Any) -> bool:
    return dataclasses.is_dataclass(part) and not isinstance(part, type)


def digest(synthesis: Synthesis, model: Model, seed: int) -> str:
    """The name of a set of images: equal synthesis, network and seed, equal images."""
    return hashlib.sha256(repr((synthesis, model.digest(), seed)).encode()).hexdigest()[:16]


def changed(recipe: Recipe, setting: str) -> Recipe:
    """The recipe with one field set: `steps.FineTune.learn.optimizer.lr=1e-5`. ValueError offers what exists."""
    path, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set {setting!r}: write it as part.field=value")
    try:
        return _changed(recipe, path.split("."), text)
    except ValueError as error:
        raise ValueError(f"--set {setting}: {error}") from None


def _changed(part: Any, path: list[str], text: str) -> Any:
    if isinstance(part, tuple | Sum):
        items = [term for _, term in part.terms] if isinstance(part, Sum) else list(part)
        found = [i for i, item in enumerate(items) if path[0] in (type(item).__name__, str(i))]
        if len(found) != 1 or len(path) < 2:
            raise ValueError(
                f"{path[0]!r}: choose one of {', '.join(type(i).__name__ for i in items) or 'nothing'}, or its number, then a field"
            )
        if not isinstance(part, Sum):
            items[found[0]] = _changed(items[found[0]], path[1:], text)
            return tuple(items)
        terms = list(part.terms)
        weight, term = terms[found[0]]
        if path[1:] == ["weight"]:
            terms[found[0]] = (_value("weight", weight, "float", text), term)
        else:
            terms[found[0]] = (weight, _changed(term, path[1:], text))
        return Sum(tuple(terms))
    fields = {field.name: str(field.type) for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
    if path[0] not in fields:
        raise ValueError(f"{type(part).__name__} has no field {path[0]!r}; it has {', '.join(fields) or 'none'}")
    old = getattr(part, path[0])
    if len(path) > 1:
        return replace(part, **{path[0]: _changed(old, path[1:], text)})
    return replace(part, **{path[0]: _value(path[0], old, fields[path[0]], text)})


SIMPLE: dict[str, type] = {"int": int, "float": float, "str": str, "tuple[float, float]": tuple}  # what --set may put where nothing is

NONE = ("iterations", "patience", "pixels", "guessed", "others", "bound", "gentle")  # integers that may be 0: as many are made


def _value(name: str, old: Any, told: str, text: str) -> Any:
    """`told`: the annotation of the field, which says what may be where nothing is."""
    if dataclasses.is_dataclass(old):
        raise ValueError(f"{name} is a part ({old!r}); set one of its fields")
    try:
        new = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        new = text
    kind = next((SIMPLE[word] for word in told.split(" | ") if word in SIMPLE), None) if old is None else type(old)
    if kind is None:
        raise ValueError(f"{name} takes a part ({told}), which the command line cannot write; a recipe file can: --recipe file.py:function")
    if kind is float and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if type(new) is not kind:
        raise ValueError(f"{name} wants {kind.__name__}{'' if old is None else f' like {old!r}'}, got {text!r}")
    least = 0 if name in NONE else 1
    if type(new) is int and new < least:  # False is one, too
        raise ValueError(f"{name} is {least} at least, not {new}")
    return new


def scaled(part: Any, factor: float) -> Any:
    """The same part with every `iterations` multiplied: the record shows what ran."""
    if isinstance(part, tuple):
        return tuple(scaled(item, factor) for item in part)
    if not _is_value(part):
        return part
    new = {field.name: scaled(getattr(part, field.name), factor) for field in dataclasses.fields(part)}
    if isinstance(new.get("iterations"), int):
        new["iterations"] = max(1, round(new["iterations"] * factor))
    return replace(part, **new)
