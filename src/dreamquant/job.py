"""One quantization job: a model, a recipe and a folder that is filled, resumed after a kill, and never overwritten."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreamquant.choose import chosen
from dreamquant.evaluate import LabelledImages, predictions, scored
from dreamquant.folder import JOB, belongs, claimed, marked, read_json, replacing, write_json
from dreamquant.images import Images
from dreamquant.inspection import inspect, spectrum
from dreamquant.intake import load_model
from dreamquant.model import Model
from dreamquant.quant.deploy import in_float
from dreamquant.quant.freeze import without_form
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.recipe import Recipe, dreams
from dreamquant.report.layers import layer_rows
from dreamquant.report.likeness import likeness
from dreamquant.report.page import write_page
from dreamquant.report.pictures import sheet
from dreamquant.run import Run

if TYPE_CHECKING:
    from dreamquant.run import Progress

PREVIEW, MEASURED = 64, 64  # dreamed images on the sheet, and those that the layers' noise is measured on
LIBRARIES = ("dreamquant", "torch", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Job:
    """What `dreamquant quantize` is asked for. `eval`, `also` (further data to measure on) and `device` do not change which job it is."""

    model: str
    recipe: str = "dream"
    bits: str = "w4a4"
    ends: int | None = None
    effort: str = "fast"
    seed: int = 0
    eval: str | None = None
    weights: str | None = None
    shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: int | None = None
    images: str | None = None
    set: tuple[str, ...] = ()
    device: str = "auto"
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.bits.lower())  # W4A4 is the job w4a4

    def folder(self) -> Path:
        """Where the result goes when no folder is named."""
        recipe = self.recipe.rsplit("/", 1)[-1].replace(".py:", "-") if ".py:" in self.recipe else self.recipe
        words = [Path(self.model.rsplit("/", 1)[-1]).stem if ".py:" in self.model else self.model, recipe, self.bits]
        words += [f"ends{self.ends}"] if self.ends is not None else []
        return Path("dreamquant-out") / "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in word) for word in words)

    def load(self) -> Model:
        """The network that the job names."""
        return load_model(self.model, weights=self.weights, shape=self.shape, mean=self.mean, std=self.std, classes=self.classes)


@dataclass(frozen=True)
class GivenImages:
    """Images dreamed before, in the place of a synthesis, known by their `digest`: where they lie on a machine is not published."""

    folder: str = field(repr=False)
    digest: str

    def __call__(self, model: Model, run: Run) -> Images:
        images = Images.load(self.folder)
        shape = tuple(images.pixels.shape[1:])
        if shape != model.shape:
            raise ValueError(f"the images of {self.folder} have the shape {shape}; {model.name} takes {model.shape}")
        return images.to(model.device)


def device_of(name: str) -> str:
    """The device that --device names; ValueError for one that this machine has not."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise ValueError(f"--device {name!r}: choose auto, cpu, cuda or cuda:NUMBER")
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; choose auto or cpu")
    return name


def opened(data: str) -> LabelledImages:
    """Data to measure on; ValueError for an empty name, which a path takes for the folder that we are in."""
    if not data:
        raise ValueError("--eval is empty; name a folder, tar or npz of labelled images, or leave it out")
    return LabelledImages.open(data)


def recipe_of_job(job: Job) -> Recipe:
    """The recipe that the job names, its settings applied and its synthesis replaced where images are given."""
    recipe = chosen(job.recipe, job.bits, job.effort, job.ends, job.set)
    if job.images is not None:
        recipe = replace(recipe, synthesis=GivenImages(job.images, Images.load(job.images).digest))
    return recipe


def quantize_job(
    job: Job, folder: Path, progress: Progress | None = None, command: str = "", images_cache: Path | None = None
) -> tuple[dict[str, Any], bool]:
    """Do the job, or what is left of it, in `folder`; the contents of result.json and whether all was done before.

    What is wrong with the request or with the evaluation data is a ValueError before the long work begins.
    """
    data = None if job.eval is None else opened(job.eval)
    further = {Path(name).name: opened(name) for name in job.also}
    if len(further) < len(job.also):
        raise ValueError(f"also: {', '.join(job.also)}: results tell them by their names, and two are the same; rename one")
    device = device_of(job.device)
    recipe = recipe_of_job(job)
    model = job.load()
    for images in (data, *further.values()):
        if images is not None:
            images.check(model)
    if parts := without_form(model):
        named = ", ".join(f"{name} ({words})" for name, words in parts.items())
        raise ValueError(f"{model.name} could not be saved, because a file has no form for {named}; write it with other functions of torch")
    fingerprint = {"model": model.name, "weights": model.digest(), "recipe": repr(recipe), "seed": job.seed}
    with claimed(folder):
        belongs(folder, fingerprint, asdict(job))
        if (folder / "result.json").exists() and (folder / "model.safetensors").is_file():
            result = read_json(folder / "result.json")
            if _answers(result, job, data, further):
                if not (folder / "report.html").exists():
                    write_page(folder, result)
                shutil.rmtree(folder / ".work", ignore_errors=True)
                return result, True
        if not all((folder / name).is_file() for name in ("report.json", "model.safetensors")):
            run = Run(job.seed, folder=folder / ".work", device=device, progress=progress, images_cache=images_cache)
            _quantize(model, recipe, run, folder, command)
        result = _measured(job, model, recipe, data, further, folder)
        write_page(folder, result)
        write_json(folder / "result.json", result)  # last, because it says that all is there
        shutil.rmtree(folder / ".work", ignore_errors=True)
    return result, False


def _answers(result: Mapping[str, Any], job: Job, data: LabelledImages | None, further: Mapping[str, LabelledImages]) -> bool:
    """Whether a finished `result` was measured on all that is asked for; one without digests, of an older version, is believed."""
    asked = [(images, result["also"].get(name)) for name, images in further.items()]
    if data is not None:
        asked.append((data, result if result["eval"] == job.eval else None))
    return all(scores is not None and scores.get("eval_digest") in (None, images.digest) for images, scores in asked)


def _quantize(model: Model, recipe: Recipe, run: Run, folder: Path, command: str) -> None:
    """Run the recipe; leaves model.safetensors, images/, where one was trained generator.safetensors, and, last,
    report.json, which says that all of it is there."""
    model.to(run.device)
    images = recipe.dream(model, run)
    quantized = recipe.quantize(model, images, run)
    quantized.save(folder / "model.safetensors")
    source = type(recipe.synthesis).__name__ if run.kept.images is None else "CoTrain"  # which shows the student images of its own
    images = (run.kept.images or images).to(run.device)
    run.kept.save_generator(folder, {"model": model.name, "seed": run.seed, "dream": repr(dreams(recipe)[-1:])})
    if len(images):
        images.save(folder / "images")
        with replacing(folder / "images" / "preview.png") as temporary:
            sheet(model.pixels(images.pixels), images.classes, temporary, PREVIEW)
    details = {
        "command": command,
        "device": device_words(run.device),
        "seconds": dict(run.seconds),
        "notes": list(run.notes),
        "curves": run.curves,
        "fronts": run.fronts,
        "placement": quantized.placement,
        "images": {"count": len(images), "digest": images.digest if len(images) else None, "source": source},
        "inspection": asdict(inspect(model, images)) if len(images) else None,
        "likeness": likeness(model, images) if len(images) else None,
        "spectrum": spectrum(images.pixels).tolist() if len(images) else None,
        "left_in_float": {**in_float(quantized), **model.left_in_float, **quantized.left_in_float},
        **layer_rows(model, quantized, images.pixels[:MEASURED]),
    }
    write_json(folder / "report.json", details)


def _measured(
    job: Job, model: Model, recipe: Recipe, data: LabelledImages | None, further: Mapping[str, LabelledImages], folder: Path
) -> dict[str, Any]:
    """The contents of result.json: the frozen model of `folder` measured on `data`, where there is any, and on `further` data."""
    details, device = read_json(folder / "report.json"), device_of(job.device)
    quantized = QuantizedModel.load(folder / "model.safetensors")
    begun = time.monotonic()
    scores = measured(model, quantized, data, device)
    seconds = {**details["seconds"], "evaluate": time.monotonic() - begun} if data is not None else dict(details["seconds"])
    return {
        "model": job.model,
        "recipe": recipe.name,
        "bits": job.bits,
        "ends": job.ends,
        "effort": job.effort,
        "seed": job.seed,
        "device": details["device"],
        "seconds": {**seconds, "total": sum(seconds.values())},
        "size_bytes": {"fp32": float_bytes(model), "quantized": (folder / "model.safetensors").stat().st_size},
        **scores,
        "images": details.get("inspection"),
        "cka": details.get("cka"),
        "eval": job.eval,
        "also": {name: measured(model, quantized, images, device) for name, images in further.items()},
        "layers": len(details["layers"]),
        "left_in_float": details["left_in_float"],
        "notes": details["notes"],
        "provenance": {**quantized.provenance, "versions": versions()},
    }


def measured(model: Model | None, quantized: QuantizedModel, data: LabelledImages | None, device: str = "cpu") -> dict[str, Any]:
    """Accuracy of the float model, the quantized one and its deployed form, in the keys of result.json; worked out on `device`."""
    if data is None:
        unknown = ("fp", "quantized", "agreement", "kept", "deployed", "eval_images", "eval_classes", "eval_digest", "standard_error")
        return {**dict.fromkeys(unknown), "unreadable": []}
    networks: list[Model | QuantizedModel] = [quantized, quantized.deployed(), *([model] if model else [])]
    (mine, integers, *theirs), labels = predictions([network.to(device) for network in networks], data)
    scores = scored(mine, labels, theirs[0] if theirs else None, data.unreadable)
    deployed = scored(integers, labels, mine)
    return {
        "fp": None if scores.reference_top1 is None else {"top1": scores.reference_top1},
        "quantized": {"top1": scores.top1},
        "agreement": scores.agreement,
        "kept": scores.kept,
        "deployed": {"top1": deployed.top1, "agreement_with_simulation": deployed.agreement},
        "eval_images": scores.images,
        "eval_classes": len(set(data.labels)),
        "eval_digest": data.digest,
        "standard_error": scores.standard_error,
        "unreadable": list(scores.unreadable),
    }


def float_model_of(folder: Path) -> Model:
    """The float network that the result in `folder` was made from; ValueError, with the reason, when it cannot be had here any more."""
    if not (folder / JOB).exists():
        raise ValueError(f"{folder} has no {JOB}, which names it")
    fingerprint, noted = marked(folder)
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in noted.items()}
    try:
        model = Job(**settings).load()
    except OSError as error:
        raise ValueError(str(error)) from None
    if model.digest() != fingerprint.get("weights"):
        raise ValueError(f"{settings['model']} is another network now, or has other weights")
    return model


def float_bytes(model: Model) -> int:
    """The size of parameters and BatchNorm statistics in 32-bit floats."""
    return sum(4 * tensor.numel() for tensor in model.net.state_dict().values() if tensor.is_floating_point())


def device_words(device: torch.device | str) -> str:
    """The device in words that mean something on another machine."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def versions() -> Mapping[str, str]:
    """The versions of what computed the result."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[library] = "not installed"
    return found
