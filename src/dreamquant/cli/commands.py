"""The commands and their options."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dreamquant import __version__

app = typer.Typer(
    name="dreamquant",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dreamquant {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")] = False,
) -> None:
    """Quantize PyTorch vision networks without any data."""


CHECKED = 256  # dreamed images that an exported file is compared on

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="zoo:NAME, torchvision:NAME, timm:NAME, hf:REPO or file.py:factory")]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="safetensors or a state dict; no code in it is run")]
Shape = Annotated[str | None, typer.Option(metavar="C,H,W", help="input shape, as 3,32,32")]
Mean = Annotated[str | None, typer.Option(metavar="A,B,C", help="channel means; the network takes (x/255 - mean) / std")]
Std = Annotated[str | None, typer.Option(metavar="A,B,C", help="channel deviations")]
Classes = Annotated[int | None, typer.Option(metavar="N", help="number of classes to build the network with")]
Data = Annotated[str | None, typer.Option("--eval", metavar="DATA", help="labelled images: folder, tar or npz; read by evaluation alone")]


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.5,0.5,0.5` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text!r}: write numbers with commas between them, as 0.5,0.5,0.5") from None


def classes_of(text: str | None) -> tuple[int, ...]:
    """`3,5` as classes; none where all are meant."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--labels {text!r}: write numbers of classes with commas between them, as 3,5")
    return tuple(map(int, parts))


def chw(text: str | None) -> tuple[int, int, int] | None:
    """`3,32,32` as a shape."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--shape {text!r}: write channels, height and width, as 3,32,32")
    return int(parts[0]), int(parts[1]), int(parts[2])


@app.command()
def quantize(
    model: ModelName,
    weights: Weights = None,
    shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="a recipe, file.py:function or modifier:NAME")] = "dream",
    bits: Annotated[str, typer.Option(metavar="wXaY", help="weights and activations, as w4a4; a32 is float; mixed:4.0 averages")] = "w4a4",
    ends: Annotated[int | None, typer.Option(metavar="BITS", help="other bits for the first and last layer, as 8")] = None,
    effort: Annotated[Literal["fast", "paper"], typer.Option(help="our settings, or the published ones")] = "fast",
    data: Data = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the result [default: dreamquant-out/...]")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="same seed, same machine, same result")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:NUMBER")] = "auto",
    images: Annotated[str | None, typer.Option(metavar="DIR", help="images dreamed before, instead of dreaming")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", metavar="PART.FIELD=VALUE", help="change one field of the recipe")] = None,
) -> None:
    """Quantize MODEL without data, into a folder."""
    from dreamquant.cli import show
    from dreamquant.job import Job, quantize_job
    from dreamquant.progress import progress_on

    job = Job(
        model, recipe, bits, ends, effort, seed, data, weights, chw(shape), numbers(mean, "--mean"), numbers(std, "--std"), classes,
        images, tuple(setting or ()), device,
    )  # fmt: skip
    folder = out or job.folder()
    with progress_on(Console(stderr=True)) as progress:
        result, before = quantize_job(job, folder, progress, "dreamquant " + shlex.join(sys.argv[1:]))
    if before:
        Console(stderr=True).print(f"{folder} holds the finished result of this command", highlight=False, markup=False, soft_wrap=True)
    show.result(result, folder)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="folder of a result, or a network as in `quantize`")],
    data: Annotated[str, typer.Option("--eval", metavar="DATA", help="labelled images: folder, tar or npz")],
    weights: Weights = None,
    shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
) -> None:
    """Accuracy of a result, or of a float network."""
    from dreamquant.cli import show
    from dreamquant.evaluate import evaluate as scores_of
    from dreamquant.job import Job, device_of, float_model_of, measured, opened
    from dreamquant.quant.quantized import QuantizedModel

    if not Path(model).is_dir() and ":" not in model and not model.endswith(".py"):
        raise ValueError(f"no folder {model}; give that of a result, or a network, as zoo:NAME or path/file.py:function")
    images = opened(data)
    facts = {"weights": weights, "shape": shape, "mean": mean, "std": std, "classes": classes}
    if Path(model).is_dir():
        if alien := [f"--{name}" for name, value in facts.items() if value is not None]:
            raise ValueError(f"{', '.join(alien)}: for a float network; what a result was made from is known in its folder")
        quantized, float_model, reason = QuantizedModel.load(result_file(Path(model))), None, ""
        try:
            float_model = float_model_of(Path(model))
        except ValueError as error:
            reason = f"no float network to compare with: {error}; run this where the result was made"
        show.scores(measured(float_model, quantized, images, device_of("auto")), reason)
        return
    job = Job(model, weights=weights, shape=chw(shape), mean=numbers(mean, "--mean"), std=numbers(std, "--std"), classes=classes)
    scores = scores_of(job.load().to(device_of(job.device)), images)
    counted = {"eval_images": scores.images, "eval_classes": len(set(images.labels)), "standard_error": scores.standard_error}
    show.scores({"fp": {"top1": scores.top1}, "quantized": None, **counted, "unreadable": list(scores.unreadable)})


@app.command()
def dream(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a result whose recipe trained a generator")],
    count: Annotated[int, typer.Option(metavar="N", help="images in all")] = 512,
    labels: Annotated[str | None, typer.Option(metavar="A,B", help="of these classes in turns, as 3,5 [default: of all alike]")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="for `quantize --images FOLDER` [default: DIR/dreamed]")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="another seed, other images")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:NUMBER")] = "auto",
) -> None:
    """Dream more images by a result's generator."""
    from dreamquant.cli import show
    from dreamquant.generated import dream_more
    from dreamquant.inspection import inspect
    from dreamquant.progress import progress_on

    target = out or folder / "dreamed"
    with progress_on(Console(stderr=True)) as progress:
        model, images = dream_more(folder, target, count, classes_of(labels), seed, device, progress)
    show.dreamed(inspect(model, images), len(images), target)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a result")],
    to: Annotated[Literal["onnx"], typer.Option(help="format")] = "onnx",
    check: Annotated[bool, typer.Option("--check", help="run the file in ONNX Runtime on the dreamed images and compare")] = False,
) -> None:
    """Write DIR/model.onnx for stock ONNX Runtime; what was found goes into the report, if there is one."""
    from dreamquant.cli import show
    from dreamquant.export import export as write
    from dreamquant.folder import write_json
    from dreamquant.images import Images
    from dreamquant.quant.quantized import QuantizedModel
    from dreamquant.report.page import EXPORT, write_report

    quantized = QuantizedModel.load(result_file(folder))
    dreamed = folder / "images" / "images.safetensors"
    pixels = Images.load(dreamed).pixels[:CHECKED] if dreamed.exists() else None
    written = write(quantized, folder / "model.onnx", check=check, images=pixels)
    show.exported(written)
    if (folder / "result.json").exists():  # a folder may hold a model alone
        write_json(folder / EXPORT, {**written.as_dict(), "path": "model.onnx"})
        write_report(folder)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a result")]) -> None:
    """Write DIR/report.html again."""
    from dreamquant.report import write_report

    result_file(folder)
    Console().print(str(write_report(folder)), highlight=False, soft_wrap=True)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="show one in full")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="the table of the README")] = False,
) -> None:
    """List the methods, or show one in full."""
    from dreamquant.cli import show

    if name is not None:
        show.recipe(name)
    elif markdown:
        typer.echo(show.markdown())
    else:
        show.recipes()


@app.command()
def bench(
    grid: Annotated[str, typer.Argument(metavar="FILE.py[:function]", help="a function that returns a list of dreamquant.job.Job")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="one JSON file a job; those that exist are skipped")],
) -> None:
    """Run a list of jobs, one JSON file each."""
    from dreamquant.cli.bench import run_grid

    run_grid(grid, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the result")] = Path("dreamquant-out/demo"),
) -> None:
    """Quantize a shipped network, test it on real digits."""
    from dreamquant.cli.demo import run_demo

    run_demo(out)


def result_file(folder: Path) -> Path:
    """The quantized model in the folder of a result; ValueError when there is none."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not the folder of a result: there is no {path.name}; `dreamquant quantize MODEL --out DIR` makes one"
        )
    return path
