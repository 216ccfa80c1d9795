"""Causal-DFQ: contents in several styles, what the loss is by loops and in closed form, whom it teaches, and the alignment of networks."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from dreamquant import Images, Model, Run, recipes
from dreamquant.choose import chosen
from dreamquant.losses.causal import StyleInvariance, by_style
from dreamquant.losses.image import features
from dreamquant.recipe import changed
from dreamquant.report.layers import cka, layer_rows
from dreamquant.steps.cotrain import CoTrain
from dreamquant.synthesis.causal import ContentStyle, Styles
from dreamquant.synthesis.conditions import Condition
from dreamquant.synthesis.generator import ClassNormed, Multiplied
from dreamquant.trace import Pair, Trace, Watch
from oracles import FACTS, pair_of
from test_generator import network
from test_recipes import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, *FACTS)


# --- contents and styles


@pytest.mark.parametrize(("count", "styles", "classes"), [(8, 2, 10), (9, 2, 2), (16, 5, 1000), (2, 2, 3)])
def test_every_content_is_asked_for_in_every_style(count: int, styles: int, classes: int) -> None:
    condition = Styles(styles)(network((3, 8, 8), classes), count)
    content, style = condition.facts["content"], condition.facts["style"]
    assert len(condition) == len(content) == len(style) == count and condition.noise is None
    pairs = list(zip(content.tolist(), style.tolist(), strict=True))
    assert len(set(pairs)) == count, "no pair twice"
    for number in range(count // styles):
        mine = content == number
        assert sorted(style[mine].tolist()) == list(range(styles))
        assert len(condition.labels[mine].unique()) == 1, "a content is one class"


def test_contents_are_all_classes() -> None:
    torch.manual_seed(0)
    labels = Styles()(network((3, 8, 8), 4), 4000).labels
    assert labels.bincount(minlength=4).tolist() == pytest.approx([1000] * 4, rel=0.15)


def test_too_few_styles_or_images_are_refused() -> None:
    with pytest.raises(ValueError, match="styles=1"):
        Styles(1)
    with pytest.raises(ValueError, match="batch of 2 cannot show one content in 3 styles"):
        Styles(3)(network((3, 8, 8), 4), 2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 96, 64)])
@pytest.mark.parametrize("generator", [Multiplied(16, 8), ContentStyle(16, 8)])
def test_content_and_style_are_multiplied(generator: Multiplied | ContentStyle, shape: tuple[int, int, int]) -> None:
    """A style of zero leaves no content, a content of zero no style, and a sign may move from one to the other."""
    live = generator.on(network(shape, 7))
    embedding = live.embedding.weight  # type: ignore[union-attr]
    labels, style = torch.tensor([0, 1, 2, 3, 3, 3]), torch.randn(6, 16)
    with torch.no_grad():
        images = live(Condition(labels, noise=style))
        assert images.shape == (6, *shape)
        embedding[3] = -embedding[3]  # type: ignore[index, operator]
        style[3:] = -style[3:]
        assert torch.allclose(live(Condition(labels, noise=style)), images, atol=1e-5)
        embedding[3] = 0  # type: ignore[index, operator]
        faint = live(Condition(labels, noise=style))
        assert torch.allclose(faint[3], faint[4]) and torch.allclose(faint[3], faint[5]), "nothing to style"
        assert not torch.allclose(faint[0], faint[1], atol=1e-2)


def test_large_images_know_the_class_in_the_normalisations_too() -> None:
    live = ContentStyle(16, 8).on(network((3, 16, 16), 1000))
    shapes = {name: tuple(p.shape) for name, p in live.named_parameters()}
    assert shapes["embedding.weight"] == (1000, 16)
    assert [shape for name, shape in shapes.items() if name.endswith("scale")] == [(1000, 8), (1000, 8), (1000, 4)]
    shares = torch.rand(4, 1000).softmax(1)
    assert live(Condition(shares)).shape == (4, 3, 16, 16)


# --- the loss


def pair_with(model: Model, teacher: Tensor, student: Tensor, content: Tensor, style: Tensor) -> Pair:
    """A pair whose features before the classifier are these, (B, F)."""
    images = Images(torch.zeros(len(teacher), 3, 16, 16), content, {"content": content, "style": style})
    watch = Watch(model, frozenset({"features"}))
    logits = torch.zeros(len(teacher), 10)
    mine = Trace(images, logits, {}, {"features": (student,)}, watch, lambda: None)
    return Pair(images, logits, {}, {"features": (teacher,)}, watch, lambda: None, student=mine)


def by_loops(seen: Pair, temperature: float, threshold: float) -> float:
    """The loss as it is written, image by image, for whole contents."""
    u, v = features(seen).double(), features(seen.student).double()
    content, style = seen.images.facts["content"].tolist(), seen.images.facts["style"].tolist()
    row = {place: number for number, place in enumerate(zip(content, style, strict=True))}
    styles = range(max(style) + 1)
    whole = [c for c in range(max(content) + 1) if all((c, s) in row for s in styles)]

    def told(mine: Tensor, t: int) -> list[float]:
        h = [float(u[row[j, t]] @ mine / (u[row[j, t]].norm() * mine.norm())) / temperature for j in whole]
        return [math.exp(value) / sum(map(math.exp, h)) for value in h]

    gaps = []
    for t, s, i in ((t, s, i) for t in styles for s in styles if t != s for i in whole):
        p, q = told(v[row[i, s]], t), told(u[row[i, s]], t)
        gaps.append(max(0.0, sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) - threshold))
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize(("count", "styles"), [(8, 2), (9, 2), (11, 3), (3, 3)])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_the_loss_by_loops(model: Model, count: int, styles: int, threshold: float) -> None:
    torch.manual_seed(count)
    facts = Styles(styles)(model, count).facts
    order = torch.randperm(count)  # the facts tell who is who, not the order
    seen = pair_with(model, torch.randn(count, 5), torch.randn(count, 5), facts["content"][order], facts["style"][order])
    expected = by_loops(seen, 0.5, threshold)
    assert float(StyleInvariance(0.5, threshold)(seen)) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (expected > 0) == (count > styles), "one content has nothing to be told apart from"


def test_the_loss_in_closed_form(model: Model) -> None:
    """Two contents, swapped by style 1 in the teacher alone. Seen from style 0, style 1 should tell (1-p, p) and tells (p, 1-p).

    From style 1, style 0 tells of the swapped ones what it should.
    """
    e = torch.eye(2)
    content, style = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    teacher, student = torch.cat([e, e.flip(0)]), torch.cat([e, e])
    p = 1 / (1 + math.exp(-1 / 0.5))  # of the right one, with cosines 1 and 0
    each = (2 * p - 1) * math.log(p / (1 - p))
    assert float(StyleInvariance(0.5)(pair_with(model, teacher, student, content, style))) == pytest.approx(each / 2, rel=1e-5)
    barely = StyleInvariance(0.5, each + 1e-3)
    assert float(barely(pair_with(model, teacher, student, content, style))) == 0


def test_a_student_that_is_the_teacher_costs_nothing(model: Model) -> None:
    torch.manual_seed(0)
    content, style = torch.arange(12) // 2, torch.arange(12) % 2
    teacher = torch.randn(12, 5)  # whatever a style does to them
    scale = 1 + style[:, None].float()
    assert float(StyleInvariance()(pair_with(model, teacher, scale * teacher, content, style))) == pytest.approx(0, abs=1e-5), "nor lengths"
    moved = teacher + 0.3 * torch.randn(12, 5)
    assert float(StyleInvariance()(pair_with(model, teacher, moved, content, style))) > 0.01


def test_only_the_student_learns_from_it(model: Model) -> None:
    """Row s4 of generators.md 11.3b: into the student's weights; neither into the teacher's features nor, so detached, the pixels."""
    torch.manual_seed(0)
    condition = Styles()(model, 8)
    images = replace(condition.images(torch.randn(8, 3, 16, 16)), labels=condition.labels)
    seen = pair_of(model, images, frozenset({"features"}))
    loss = StyleInvariance()(seen)
    weights = [p for p in seen.student.watch.source.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    assert not any(p.requires_grad for p in model.net.parameters())
    teacher, student = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    StyleInvariance()(pair_with(model, teacher, student, condition.facts["content"], condition.facts["style"])).backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0


def test_images_without_styles_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"conditioner=Styles\(\)"):
        by_style(torch.zeros(4, 2), {"content": torch.arange(4)})
    recipe = changed(tiny(recipes.find("causal_dfq")()), "steps.CoTrain.dream.conditioner.styles=3")
    *ranges, step = recipe.steps
    assert isinstance(step, CoTrain) and step.dream.conditioner == Styles(3)
    plain = replace(step, dream=replace(step.dream, conditioner=recipes.find("gdfq")().steps[-1].dream.conditioner))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"conditioner=Styles\(\)"):
        replace(recipe, steps=(*ranges, plain))(model)


# --- the recipe


def test_it_is_gdfq_with_styles_and_one_more_loss() -> None:
    mine, gdfq = recipes.find("causal_dfq")("w3a3", weight=2.5, threshold=0.1), recipes.find("gdfq")("w3a3")
    (*_, step), (*_, plain) = mine.steps, gdfq.steps
    assert isinstance(step, CoTrain) and isinstance(plain, CoTrain)
    added = step.learn.loss.terms[-1]  # type: ignore[attr-defined]
    assert added == (2.5, StyleInvariance(threshold=0.1))
    assert step.learn.loss.terms[:-1] == plain.learn.loss.terms  # type: ignore[attr-defined]
    dream = replace(step.dream, conditioner=plain.dream.conditioner, generator=plain.dream.generator)
    assert replace(step, learn=plain.learn, dream=dream) == plain
    fused, normed = step.dream.generator, plain.dream.generator
    assert isinstance(fused, ContentStyle) and isinstance(normed, ClassNormed)
    assert (fused.latent, fused.width, fused.affine) == (normed.latent, normed.width, normed.affine), "but for the product"


@pytest.mark.parametrize("name", ["causal_dfq", "synq_on:causal_dfq"])
@pytest.mark.parametrize(("shape", "classes", "batch"), [((1, 8, 8), 2, 7), ((3, 64, 48), 1000, 4)])
def test_it_runs_on_any_network(name: str, shape: tuple[int, int, int], classes: int, batch: int) -> None:
    recipe = tiny(chosen(name, "w3a3", "fast", None))
    for setting in (f"batch={batch}", "generator.width=4", "generator.latent=8"):
        recipe = changed(recipe, f"steps.CoTrain.dream.{setting}")
    net = network(shape, classes)
    quantized = recipe(net, run=(run := Run()))
    assert quantized(torch.randn(3, *shape)).isfinite().all()
    assert any("StyleInvariance" in values for _, values in list(run.curves.values())[-1])
    assert run.kept.images is not None and run.kept.images.pixels.shape == (16, *shape)


# --- the alignment of teacher and student


def test_cka_in_closed_form() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 3, 2, 2)
    turned = x.flatten(1) @ torch.linalg.qr(torch.randn(12, 12))[0]
    assert cka(x, 3.7 * turned + 5) == pytest.approx(1, abs=1e-5)
    first, second = (v - v.mean(0) for v in (x.flatten(1), torch.randn(20, 5)))
    by_features = float((second.T @ first).norm() ** 2 / ((first.T @ first).norm() * (second.T @ second).norm()))
    assert cka(x, second + 1) == pytest.approx(by_features, rel=1e-4)
    one, other = torch.tensor([[1.0], [0.0], [-1.0], [0.0]]), torch.tensor([[0.0], [1.0], [0.0], [-1.0]])
    assert cka(one, other) == pytest.approx(0, abs=1e-6)
    angle = 0.4  # one feature each: the squared correlation
    assert cka(one, math.cos(angle) * one + math.sin(angle) * other) == pytest.approx(math.cos(angle) ** 2, rel=1e-5)
    assert cka(x, torch.ones(20, 4)) is None


def test_cka_falls_with_the_bits_and_is_recorded(model: Model) -> None:
    found = {}
    x = torch.randn(32, *model.shape, generator=torch.Generator().manual_seed(0))
    for bits in ("w8a8", "w4a4", "w2a2"):
        rows = layer_rows(model, recipes.find("rtn")(bits)(model), x)
        assert rows["cka"] == pytest.approx(sum(row["cka"] for row in rows["layers"]) / len(rows["layers"]))
        found[bits] = rows["cka"]
    assert 1 > found["w8a8"] > 0.99 and found["w8a8"] > found["w4a4"] > found["w2a2"] > 0


# --- the page that tells it


def test_the_page_has_its_picture_and_the_recipes_numbers() -> None:
    page = (ROOT / "docs" / "causal_dfq.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        if "://" not in target:
            assert (ROOT / "docs" / target).exists(), target
    words = {
        "".join(element.itertext())
        for element in ElementTree.parse(ROOT / "docs" / "causal_graph.svg").iter()
        if element.tag.endswith("text")
    }
    assert {"content C", "style S", "do(S = s)"} <= words
    *_, step = recipes.find("causal_dfq")().steps
    weight, loss = step.learn.loss.terms[-1]  # type: ignore[attr-defined]
    for value in (
        f"lambda = {weight:g}",
        f"tau = {loss.threshold:g}",
        f"temperature {loss.temperature:g}",
        f"{step.dream.conditioner.styles} styles",
    ):  # type: ignore[attr-defined]
        assert value in page
