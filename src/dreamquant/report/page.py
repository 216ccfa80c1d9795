"""report.html: numbers, dreamed images, layers and curves of one job on a page without external resources."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dreamquant.folder import read_json, write_text
from dreamquant.progress import duration
from dreamquant.report.pictures import bits_chart, curve_chart, front_chart, noise_chart, plane_chart, similarity_chart, spectrum_chart

CHARTS = 8  # loss curves shown; a large set is dreamed in many batches that look alike
EXPORT = "export.json"  # what an export of the folder wrote and found
NAMED = 4  # unreadable files that are named
PLACEMENTS = {
    "paper": "quantizers as in the papers: on weights and on what convolutions and linear layers take in, but for the image and averages, "
    "which are in float; the deployed accuracy is that of integers with BatchNorm folded, every tensor quantized, these with 8 bits",
    "deploy": "quantizers on every tensor that an integer kernel needs",
    "weights": "quantizers on weights alone; activations are in float, when deployed too",
}
TITLES = {"GivenImages": "The images that it was quantized on", "Noise": "The noise that ranges were measured on"}  # by the synthesis


def write_report(folder: str | Path) -> Path:
    """Write FOLDER/report.html from the result.json, report.json and images of a finished job; ValueError when it has none."""
    return write_page(Path(folder), read_json(Path(folder) / "result.json"))


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write FOLDER/report.html of a `result` that is not in its result.json yet."""
    details = read_json(folder / "report.json")
    preview, source = folder / "images" / "preview.png", details["images"].get("source", "")  # older folders have none
    charts = [Markup(chart) for name, points in details["curves"].items() if (chart := curve_chart(name, points))]
    fronts = [Markup(front_chart(title, front)) for title, front in details.get("fronts", {}).items()]  # older folders have none
    page = _template().render(
        result=result,
        details=details,
        facts=headline(result),
        tested=tested(result),
        left_out=left_out(result["unreadable"]),
        placement=PLACEMENTS.get(_placement(details), ""),
        given=source == "GivenImages",
        title=TITLES.get(source, "What the network dreamed"),
        bits_of_sums=details.get("bits_of_sums"),  # older folders have none
        exported=export_rows(read_json(folder / EXPORT)) if (folder / EXPORT).exists() else [],
        dreamed=image_rows(result.get("images") or {}),
        likeness=[Markup(chart) for chart in likeness_charts(details.get("likeness")) if chart],
        spectrum=Markup(spectrum_chart("spectrum", {"dreamed": details.get("spectrum") or []})),  # older folders have none
        sheet=base64.b64encode(preview.read_bytes()).decode() if preview.exists() else None,
        fronts=fronts,
        bits=Markup(bits_chart(details["layers"])),
        noise=Markup(noise_chart(details["layers"])),
        curves=charts[:CHARTS],
        more_curves=len(charts[CHARTS:]),
        provenance=json.dumps(result["provenance"], indent=2),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _placement(details: dict[str, Any]) -> str:
    """The word of PLACEMENTS; "" in folders of before they were kept."""
    bits = [layer.get("deployed_bits", layer["activation_bits"]) for layer in details["layers"]]
    return str(details.get("placement", "")) if any(bits) else "weights"


def headline(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers that matter, as (what, value, remark); accuracy only where it was measured."""
    rows = []
    if result["fp"]:
        deployed = result.get("deployed") or {}
        rows.append(("accuracy, float", percent(result["fp"]["top1"]), "of the network as it came"))
        rows.append(("accuracy, quantized", percent(result["quantized"]["top1"]), f"at {result['bits']}"))
        if deployed.get("top1") is not None:
            kernels = "activations in float" if result["bits"].endswith("a32") else "integers"
            rows.append(("accuracy, deployed", percent(deployed["top1"]), f"{kernels}, folded BatchNorm"))
        rows.append(("kept", percent(result["kept"]), "of what the float network gets right"))
        rows.append(("agreement", percent(result["agreement"]), "of images predicted alike"))
        if counted := tested(result):
            rows.append(("test images", *counted))
    sizes = result["size_bytes"]
    ratio = sizes["fp32"] / sizes["quantized"]
    told = f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more: what describes so small a network outweighs it"
    rows.append(("size", kilobytes(sizes["quantized"]), f"{kilobytes(sizes['fp32'])} in float, {told}"))
    rows.append(("time", duration(result["seconds"]["total"]), f"on {result['device']}"))
    return rows


def tested(found: dict[str, Any]) -> tuple[str, str] | None:
    """How many images accuracies are of, and their standard error in words; None in results of before these were kept."""
    if found.get("eval_images") is None:
        return None
    classes = "1 class" if found["eval_classes"] == 1 else f"{found['eval_classes']} classes"
    return str(found["eval_images"]), f"of {classes}; accuracies ± {100 * found['standard_error']:.1f} points"


def image_rows(images: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured of the dreamed images, as (what, value, remark); see `inspection.Inspection`."""
    rows = (
        ("similarity", "{:.2f}", "mean cosine of two images' features; 1 when all look alike to the network"),
        ("similarity_within_class", "{:.2f}", "the same for two images of one class"),
        ("similarity_between_classes", "{:.2f}", "the same for two images of two classes"),
        ("spread_within_class", "{:.2f}", "how far apart two images of one class are, of the distance of two classes; 0 when collapsed"),
        ("class_balance", "{:.2f}", "1 when every class is dreamed equally often"),
        ("labels_hit", "{:.1%}", "images in which the network sees the class they were asked for"),
        ("teacher_entropy", "{:.2f}", "uncertainty of the network; 0 when sure, 1 when clueless"),
        ("spectrum_slope", "{:.2f}", "of log amplitude against log frequency; about -1 in photographs, 0 in white noise"),
        ("batch_norm_deviation", "{:.3f}", "distance of BatchNorm statistics left, in units of the network's deviations"),
        ("centres_hit", "{:.1%}", "images in which the network's attention is centred in the cell asked for"),
        ("centre_distance", "{:.2f}", "mean distance of that centre from there, in shares of the image's side"),
    )
    return [(key.replace("_", " "), form.format(images[key]), remark) for key, form, remark in rows if images.get(key) is not None]


def export_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What an export wrote, and how it ran where that was checked, as (what, value); of `ExportReport.as_dict`."""
    types = ", ".join(f"{count} layers {kind}" for kind, count in found["types"].items())
    rows = [("file", found["path"]), ("size", kilobytes(found["bytes"])), ("weights", types), ("operator set", str(found["opset"]))]
    if ran := found["check"]:
        told = f"{percent(ran['agreement'])} of {ran['images']} images, logits {percent(ran['relative'])} apart"
        done, left = (sum(ran[kind].values()) for kind in ("integer", "floating"))
        rows.append(("runtime", ran["runtime"]))
        rows.append(("agreement", f"{told}, with the deployed simulation"))
        rows.append(("integer kernels", f"{done} of {done + left} convolutions, linears and additions"))
        rows.append(("one image", f"{ran['milliseconds']:.2f} ms on one thread"))
        if ran["float_bytes"] is not None and ran["float_milliseconds"] is not None:
            rows.append(("in float", f"{kilobytes(ran['float_bytes'])}, {ran['float_milliseconds']:.2f} ms"))
    return rows


def left_out(unreadable: Sequence[str]) -> str:
    """How many files of the evaluation data could not be read, and which; "" where all could."""
    rest = len(unreadable) - NAMED
    named = ", ".join(unreadable[:NAMED]).encode(errors="backslashreplace").decode()  # a terminal writes no name that is not UTF-8
    names = named + (f" and {rest} more (all in result.json)" if rest > 0 else "")
    count = "1 file" if len(unreadable) == 1 else f"{len(unreadable)} files"
    return f"{count} of the evaluation data could not be read: {names}" if unreadable else ""


def likeness_charts(found: dict[str, Any] | None) -> list[str]:
    """How alike the dreamed images look to the network, of one class in pairs and all in a plane; older folders have none."""
    if not found:
        return []
    return [similarity_chart(f"images of class {found['class']}", found["similarity"]), plane_chart("images by class", found["points"])]


def percent(share: float | None) -> str:
    """A share of 1 as `91.2 %`."""
    return "–" if share is None else f"{100 * share:.1f} %"


def kilobytes(count: float) -> str:
    """A size in bytes, readable."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _template() -> jinja2.Template:
    source = importlib.resources.files("dreamquant.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["kilobytes"] = kilobytes
    return environment.from_string(source)
