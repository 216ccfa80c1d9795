"""Mixed precision: sensitivities against the whole network, budgets against brute force, bits that arrive where they were chosen."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from dreamquant import Images, Int, Model, Run, Scheme, recipes
from dreamquant.choose import chosen as chosen_recipe
from dreamquant.cli import main
from dreamquant.quant import pareto
from dreamquant.quant.allocate import MixedBits, mixed_of, parse_mixed
from dreamquant.quant.budget import Budget
from dreamquant.quant.pareto import choice, either, together
from dreamquant.quant.quantized import QuantizedModel
from dreamquant.quant.ranges import LpSearch, MinMax, rounded, to_grid
from dreamquant.quant.scheme import scheme_of, uniform
from dreamquant.quant.sensitivity import FollowGradient, SwapOneLayer, trial
from dreamquant.quant.student import convert
from dreamquant.recipe import Recipe, changed
from dreamquant.report.pictures import bits_chart, front_chart
from dreamquant.run import Loop
from dreamquant.steps.calibrate import Calibrate, SetWeightRanges
from dreamquant.synthesis.pixels import Noise

BITS = (2, 3, 4, 5, 6, 8)
QUICK = SwapOneLayer(count=16, ranges=MinMax())


@pytest.fixture
def model(tiny_net: nn.Module) -> Model:
    return Model.from_module(tiny_net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def images(count: int = 16, seed: int = 0) -> Images:
    return Images(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 10)


# --- fronts


def brute(losses: np.ndarray, costs: np.ndarray, limit: float) -> float:
    """The least loss of all choices that cost no more than the limit."""
    picks = itertools.product(range(losses.shape[1]), repeat=len(losses))
    rows = np.arange(len(losses))
    return min((losses[rows, list(p)].sum() for p in picks if costs[rows, list(p)].sum() <= limit), default=np.inf)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_fronts_are_exact_within_every_budget_and_fall(seed: int, places: int, candidates: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    losses = rng.integers(0, 4, (places, candidates)).astype(float) if ties else rng.lognormal(size=(places, candidates))
    costs = rng.integers(1, 30, (places, candidates)).astype(float)
    front = together([choice(lost, cost) for lost, cost in zip(losses, costs, strict=True)])
    rows = np.arange(places)
    for cost, loss, chosen in zip(front.cost, front.loss, front.chosen, strict=True):
        assert costs[rows, chosen].sum() == cost and losses[rows, chosen].sum() == pytest.approx(loss)
    assert (np.diff(front.cost) > 0).all() and (np.diff(front.loss) < 0).all()
    for limit in np.linspace(0, costs.max(1).sum(), 12):
        at = front.within(limit)
        assert (front.loss[at] if at >= 0 else np.inf) == pytest.approx(brute(losses, costs, limit))


def test_thinned_fronts_keep_their_ends_and_stay_close(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1000, 100_000, 20)
    fronts = [choice(rng.lognormal() * 4.0 ** -np.array(BITS), [size * b for b in BITS]) for size in sizes]
    whole = together(fronts)
    monkeypatch.setattr(pareto, "KEPT", 300)
    thin = together(fronts)
    assert len(thin.cost) <= 301 < len(whole.cost)
    assert thin.cost[0] == whole.cost[0] == 2 * sizes.sum()
    for limit in np.linspace(2.01, 8, 50) * sizes.sum():
        best, got = whole.loss[whole.within(limit)], thin.loss[thin.within(limit)]
        assert thin.cost[thin.within(limit)] <= limit
        stricter = whole.within(limit - 20 * 6 * sizes.sum() / 300)  # a cell lost for each of the 20 places
        assert best <= got and (stricter < 0 or got <= whole.loss[stricter])


def test_either_takes_the_best_of_both() -> None:
    one, other = choice([5.0, 1.0], [1.0, 4.0]), choice([3.0, 2.0], [2.0, 3.0], numbers=[7, 9])
    front = either([one, other])
    assert front.cost.tolist() == [1, 2, 3, 4] and front.chosen[:, 0].tolist() == [0, 7, 9, 1]


# --- sensitivity


class With(fx.Interpreter):
    """Runs a network with the output of one node changed."""

    def __init__(self, net: fx.GraphModule, name: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(net)
        self.name, self.change = name, change

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        return self.change(out) if n.name == self.name else out


def on_grid(x: Tensor, form: Int) -> Tensor:
    scale, zero = to_grid(*MinMax()(x, form), form)
    return rounded(x, scale, zero, form)


def softened(mine: Tensor, wanted: Tensor, t: float) -> float:
    """T^2 KL, by torch's own distributions."""
    p, q = (torch.distributions.Categorical(logits=z.double() / t) for z in (wanted, mine))
    return float(torch.distributions.kl_divergence(p, q).mean()) * t**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_swapping_one_layer_is_the_whole_network_with_that_layer_rounded(temperature: float, model: Model) -> None:
    x = images().pixels
    student, places = trial(model, uniform("w4a4"))
    found = SwapOneLayer(16, temperature, MinMax())(student, places, (2, 4, 8), x, Run())
    assert len(places) == len(student.layers()) + len(model.points["activations"]) and set(found) == {p.name for p in places}
    for name in ("conv1", "layer2.0.conv1", "linear"):
        for number, bits in enumerate((2, 4, 8)):
            net = copy.deepcopy(model.net)
            layer = net.get_submodule(name)
            layer.weight.data = on_grid(layer.weight.data, Int(bits, "channel"))
            assert found[name][number] == pytest.approx(softened(net(x), model(x), temperature), rel=1e-3, abs=1e-9)
    for name in (model.points["activations"][0], model.points["activations"][-1]):
        for number, bits in enumerate((2, 4, 8)):
            with torch.no_grad():
                out = With(model.net, name, lambda a, bits=bits: on_grid(a, Int(bits))).run(x)
            assert found["q." + name][number] == pytest.approx(softened(out, model(x), temperature), rel=1e-3, abs=1e-9)


def test_the_gradient_predicts_small_errors(model: Model) -> None:
    x = images(256).pixels
    bits = (4, 6, 8)
    student, places = trial(model, uniform("w4a4"))
    exact = SwapOneLayer(256, 4.0, MinMax())(student, places, bits, x, Run())
    fast = FollowGradient(256, 4.0, MinMax())(*trial(model, uniform("w4a4")), bits, x, Run())
    for number, factor in ((2, 1.5), (1, 1.7)):
        ratios = [fast[name][number] / exact[name][number] for name in exact]
        assert 1 / factor < min(ratios) and max(ratios) < factor, ratios
    a, b = (np.argsort(np.argsort([found[name][0] for name in exact])) for found in (exact, fast))
    assert np.corrcoef(a, b)[0, 1] > 0.9


def test_the_gradient_is_that_of_the_softened_divergence() -> None:
    """On a linear network the rest of the network is linear: the prediction's mean is the second order of the divergence."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Linear(6, 3))
    model = Model.from_module(net, (1, 2, 2), (0.5,), (0.25,))
    x = torch.randn(1, 1, 2, 2).expand(4000, 1, 2, 2)
    student, places = trial(model, uniform("w4a32"))
    found = FollowGradient(4000, 2.0, MinMax())(student, places, (8,), x, Run())
    weight, last = (student.layers()[name].weight for name in ("1", "2"))
    change = (x[0].flatten() @ (on_grid(weight, Int(8, "channel")) - weight).T) @ last.T
    p = (model(x[:1])[0] / 2.0).softmax(0)
    want = 0.5 * (change @ (torch.diag(p) - torch.outer(p, p)) @ change)
    assert found["1"][0] == pytest.approx(float(want), rel=0.1)


def test_the_gradient_says_where_it_sees_one_call_of_several() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.mix(self.mix(x.flatten(1)).relu()).relu())

    model, run = Model.from_module(Twice(), (1, 2, 2), (0.5,), (0.25,)), Run()
    FollowGradient(4)(*trial(model, uniform("w4a32")), (8,), torch.randn(4, 1, 2, 2), run)
    assert [note for note in run.notes if "first call of mix;" in note]


@pytest.mark.parametrize("measure", [SwapOneLayer(16, ranges=LpSearch(candidates=5)), FollowGradient(16, ranges=LpSearch(candidates=5))])
def test_measuring_changes_nothing_and_resumes_to_the_same(
    measure: SwapOneLayer | FollowGradient, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    mixed = replace(mixed_of("mixed:3.0a3.0"), sensitivity=measure, candidates=(2, 3, 4))

    def scheme(folder: str) -> tuple[Scheme, dict[str, dict[str, object]]]:
        run = Run(0, tmp_path / folder, save_every=0.0)
        return mixed.on(model, images(), run), run.fronts

    whole = scheme("whole")
    real, left = Loop.save, [4]

    def save(self: Loop, following: int) -> None:
        real(self, following)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", save)
    with pytest.raises(KeyboardInterrupt):
        scheme("killed")
    monkeypatch.undo()
    assert scheme("killed") == whole
    assert scheme("killed") == whole  # and again, when all of it is there
    assert all(torch.equal(value, model.net.state_dict()[key]) for key, value in before.items())


def test_what_is_not_the_schemes_to_choose_is_no_place(model: Model) -> None:
    def names(scheme: Scheme) -> set[str]:
        return {place.name for place in trial(model, scheme)[1]}

    everything = names(uniform("w4a4"))
    assert everything - names(uniform("w4a4", ends=4)) >= {"conv1", "linear"}, "ends of the same bits are still ends"
    first, act = "layer1.0.conv1", model.points["activations"][1]
    excepted = replace(uniform("w4a4"), layers=((first, Int(4, "channel")),), tensors=((act, Int(4)),))
    assert everything - names(excepted) == {first, "q." + act}
    assert names(uniform("w4a32")) == set(convert(model, uniform("w4a32")).layers())
    assert not any(name == "q.x" for name in everything), "the image stays as it is"


# --- budgets


def chosen(model: Model, bits: str, unit: str = "bits", ends: int | None = None, **fields: object) -> tuple[QuantizedModel, Scheme, Run]:
    mixed = mixed_of(bits, ends)
    mixed = replace(mixed, budget=replace(mixed.budget, unit=unit), sensitivity=QUICK, **fields)
    run = Run()
    recipe = Recipe("x", Noise(16), mixed, (SetWeightRanges(MinMax()), Calibrate(MinMax(), count=16)))
    scheme = mixed.on(model, images(), run)
    return replace(recipe, scheme=scheme).quantize(model, images(), run), scheme, run


@pytest.mark.parametrize("average", [2.0, 2.7, 3.0, 4.0, 5.5, 8.0])
def test_averages_are_kept_and_arrive_in_the_quantized_model(average: float, model: Model) -> None:
    quantized, scheme, run = chosen(model, f"mixed:{average}a{average}")
    layers = quantized.layers()
    sizes = [np.prod(layer.shape) for layer in layers]
    mean = sum(size * layer.bits for size, layer in zip(sizes, layers, strict=True)) / sum(sizes)
    assert mean <= average and mean == pytest.approx(run.fronts["weights"]["taken"][0])
    assert {layer.layer: layer.bits for layer in layers} == {name: form.bits for name, form in scheme.layers}
    grids = {op.name.removeprefix("q_"): op for op in quantized.program if op.kind == "grid"}
    counts = {node.name: np.prod(node.meta["shape"][1:]) for node in model.net.graph.nodes if "shape" in node.meta}
    assert {name for name, _ in scheme.tensors} == set(model.points["activations"])
    assert all(grids[name].numbers["bits"] == form.bits for name, form in scheme.tensors)
    mean = sum(counts[n] * form.bits for n, form in scheme.tensors) / sum(counts[n] for n, _ in scheme.tensors)
    assert mean <= average and mean == pytest.approx(run.fronts["activations"]["taken"][0])
    if average in (2.0, 8.0):
        assert {form.bits for _, form in (*scheme.layers, *scheme.tensors)} == {int(average)}


def test_a_larger_budget_never_predicts_more_loss_and_a_mixture_beats_uniform_bits(model: Model) -> None:
    fronts = [chosen(model, f"mixed:{average}")[2].fronts["weights"] for average in (2.0, 3.0, 4.0, 6.0)]
    losses = [front["taken"][1] for front in fronts]
    assert losses == sorted(losses, reverse=True)
    same = dict(map(tuple, fronts[0]["uniform"]))
    assert losses[0] == pytest.approx(same[2.0]) and losses[1] < same[3.0] and losses[2] < same[4.0]


def test_a_mixture_loses_less_than_uniform_bits_on_other_images(model: Model) -> None:
    x = images(128, seed=9).pixels
    steps = (SetWeightRanges(LpSearch(candidates=10)), Calibrate(LpSearch(candidates=10), count=64))
    mixed = replace(mixed_of("mixed:3.0a3.0"), sensitivity=SwapOneLayer(64, ranges=LpSearch(candidates=10)))
    lost = {}
    for name, scheme in (("mixed", mixed), ("uniform", uniform("w3a3"))):
        quantized = Recipe("x", Noise(64), scheme, steps).quantize(model, images(64), Run())
        lost[name] = softened(quantized(x), model(x), 4.0)
    assert lost["mixed"] < 0.8 * lost["uniform"]


def test_bit_operations_against_brute_force(model: Model) -> None:
    """Few candidates, so that all choices can be tried; costs come from the quantized model's own records."""
    student, places = trial(model, uniform("w4a4"))
    names = ["layer3.0.conv1", "layer3.0.conv2", "linear", *[p.name for p in places if p.weight is None][-3:]]
    rng = np.random.default_rng(0)
    bits = (2, 4, 8)
    losses = {name: (rng.lognormal() * 4.0 ** -np.array(bits)).tolist() for name in names}
    mine = [place for place in places if place.name in names]
    (share,) = Budget(4.0, 4.0, "bitops").shares(student, mine, losses, bits)
    assert {place.name for place in share.places} == set(names)

    def operations(pick: dict[str, int]) -> float:
        scheme = replace(
            uniform("w4a4"),
            layers=tuple((n, Int(b, "channel")) for n, b in pick.items() if not n.startswith("q.")),
            tensors=tuple((n.removeprefix("q."), Int(b)) for n, b in pick.items() if n.startswith("q.")),
        )
        quantized = Recipe("x", Noise(4), scheme, (Calibrate(MinMax(), count=4),)).quantize(model, images(4), Run())
        return sum(la.macs * la.bits * (la.input_bits or 8) for la in quantized.layers() if la.layer in names)

    layers = {la.layer: la for la in Recipe("x", Noise(4), uniform("w4a4"), (Calibrate(),)).quantize(model, images(4), Run()).layers()}
    source = {}
    for name in names[:3]:
        node = next(n for n in student.net.graph.nodes if n.target == name).all_input_nodes[0]
        source[name] = str(node.target) if str(node.target) in names else None
    assert sum(value is not None for value in source.values()) == 2, "or nothing is multiplied"

    def cost(pick: dict[str, int]) -> float:
        return sum(layers[n].macs * pick[n] * (pick[s] if (s := source[n]) else layers[n].input_bits or 8) for n in names[:3])

    taken = share.chosen(bits)
    assert cost(taken) == operations(taken) == share.front.cost[share.taken]
    best = np.inf
    limit = operations(dict.fromkeys(names, 4))
    assert share.limit == limit
    for values in itertools.product(range(3), repeat=len(names)):
        pick = dict(zip(names, values, strict=True))
        if cost({n: bits[i] for n, i in pick.items()}) <= limit:
            best = min(best, sum(losses[n][i] for n, i in pick.items()))
    assert share.front.loss[share.taken] == pytest.approx(best)


@pytest.mark.parametrize("bits", ["mixed:4.0", "mixed:4.0a4.0", "mixed:3.0a5"])
def test_bit_operations_stay_within_those_of_a_uniform_network(bits: str, model: Model) -> None:
    quantized, _, run = chosen(model, bits, "bitops")
    weights, activations, same = parse_mixed(bits)
    spent = sum(la.macs * la.bits * (la.input_bits or 8) for la in quantized.layers())
    allowed = sum(la.macs * weights * ((activations or same) if la.input_bits else 8) for la in quantized.layers())
    assert 0.9 * allowed < spent <= allowed
    assert list(run.fronts) == ["bit operations"]


def test_ends_keep_their_bits_and_are_outside_the_average(model: Model) -> None:
    quantized, _, run = chosen(model, "mixed:3.0a3.0", ends=8)
    layers = quantized.layers()
    everywhere = sum(np.prod(la.shape) * la.bits for la in layers) / sum(np.prod(la.shape) for la in layers)
    assert any(f"mixed weights: {everywhere:.2f} bits with" in note for note in run.notes)
    assert layers[0].bits == layers[-1].bits == 8
    sizes = [np.prod(layer.shape) for layer in layers[1:-1]]
    assert sum(size * la.bits for size, la in zip(sizes, layers[1:-1], strict=True)) <= 3 * sum(sizes)


@pytest.mark.parametrize("residual", [3, 8])
def test_sums_keep_their_bits_and_are_no_place(residual: int, model: Model) -> None:
    """With 3 the trial that finds the places has none of their own: its activations have 3 as well."""
    student, places = trial(model, replace(mixed_of("mixed:4.0a2").base, residual=residual))
    assert any(name.endswith("_residual") for name in student.activation_quantizers())
    assert not any(place.name.endswith("_residual") for place in places)
    recipe = changed(recipes.rtn(bits="mixed:4.0a2"), f"scheme.base.residual={residual}")
    grids = [op for op in recipe(model).program if op.kind == "grid" and op.name.endswith("_residual")]
    assert grids and {op.numbers["bits"] for op in grids} == {residual}
    with pytest.raises(ValueError, match="mixed:4.0a4"):
        changed(recipes.rtn(bits="mixed:4.0a2.0"), f"scheme.base.residual={residual}")


def test_a_network_of_ends_alone_has_nothing_to_choose() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = Model.from_module(net, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    assert recipes.rtn(bits="mixed:4.0", ends=8)(model).layers()[0].bits == 8
    quantized = recipes.rtn(bits="mixed:4.0a4.0")(model)
    assert quantized(torch.randn(2, 3, 16, 16)).shape == (2, 3)


# --- words


@pytest.mark.parametrize(
    "text", ["mixed", "mixed:", "mixed:1.5", "mixed:9", "mixed:4.0a16", "mixed:4a1", "mixed:w4a4", "mixed:4.0a", "mixed:4,0"]
)
def test_mixtures_that_do_not_parse(text: str) -> None:
    with pytest.raises(ValueError, match=f"bits '{re.escape(text)}'"):
        scheme_of(text)


def test_uniform_bits_are_no_mixture_and_the_mixed_recipe_takes_them_as_averages() -> None:
    assert scheme_of("w3a3") == uniform("w3a3")
    assert recipes.mixed(bits="w3a3").scheme == mixed_of("mixed:3.0a3.0") == scheme_of(" Mixed:3.0A3.0 ")
    assert recipes.mixed(bits="w4a32").scheme == mixed_of("mixed:4a32")
    with pytest.raises(ValueError, match="as mixed:4.0 for a recipe that can mix"):
        uniform("mixed:4.0")


def test_gradients_take_the_place_of_trying() -> None:
    made = chosen_recipe("by_gradient:mixed", "mixed:4.0", "paper", None)
    assert made.scheme.sensitivity == FollowGradient(64, 1.0, MinMax()) and made.name == "by_gradient:mixed"
    with pytest.raises(ValueError, match="give it mixed bits"):
        chosen_recipe("by_gradient:rtn", "w4a4", "fast", None)


def test_budgets_that_cannot_be() -> None:
    base = uniform("w4a4")
    for bad, words in (
        (lambda: MixedBits(base, Budget(2.0), candidates=(4, 8)), "below the smallest candidate, 4"),
        (lambda: MixedBits(base, Budget(4.0), candidates=(4, 9)), "2 to 8 bits"),
        (lambda: MixedBits(base, Budget(4.0), candidates=()), "needs candidates"),
        (lambda: MixedBits(uniform("w4a32"), Budget(4.0, unit="bitops")), "in float"),
        (lambda: Budget(4.0, unit="bytes"), "'bits' or 'bitops'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=words):
            bad()
    recipe = changed(recipes.mixed(), "scheme.budget.unit=bitops")
    assert changed(recipe, "scheme.candidates=(2,4,8)").scheme.candidates == (2, 4, 8)


def test_records_of_schemes_are_as_before_and_read_back(model: Model) -> None:
    assert repr(uniform("w4a8")).endswith("layers=())")
    scheme = replace(uniform("w4a8"), tensors=(("relu", Int(3)),))
    assert eval(repr(scheme)) == scheme != uniform("w4a8")
    for wrong in (replace(scheme, tensors=(("nowhere", Int(3)),)), replace(scheme, tensors=(), layers=(("nowhere", Int(3)),))):
        with pytest.raises(ValueError, match="no nowhere to quantize"):
            convert(model, wrong)


# --- from end to end


def test_a_recipe_without_images_says_that_noise_decided(model: Model) -> None:
    run = Run()
    mixed = replace(mixed_of("mixed:4.0"), sensitivity=QUICK)
    none = Images(torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.long))
    assert mixed.on(model, none, run) == mixed.on(model, none, Run())
    assert any("noise" in note for note in run.notes)


def test_the_command_line_mixes_bits_for_any_recipe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["quantize", "zoo:resnet-digits", "--recipe", "rtn", "--bits", "mixed:3.5a4.5", "--device", "cpu", "--out", str(out)]
    quick = ("scheme.sensitivity.ranges.candidates=5", "scheme.sensitivity.count=32", "steps.Calibrate.ranges.candidates=5")
    assert main([*command, *(word for setting in quick for word in ("--set", setting))]) == 0
    result, details = (json.loads((out / name).read_text()) for name in ("result.json", "report.json"))
    assert result["bits"] == "mixed:3.5a4.5" and "MixedBits" in result["provenance"]["recipe"]
    assert sum("on average" in note for note in result["notes"]) == 2
    layers = QuantizedModel.load(out / "model.safetensors").layers()
    rows = [(row["name"], row["weight_bits"], row["activation_bits"]) for row in details["layers"]]
    assert rows == [(layer.layer, layer.bits, layer.input_bits) for layer in layers]
    assert len({layer.bits for layer in layers}) > 2
    page = (out / "report.html").read_text()
    assert "<h2>Bits</h2>" in page and page.count("best mixture") == 2
    assert main(["export", str(out), "--check"]) == 0


def test_charts_of_fronts_and_bits() -> None:
    front = {"unit": "bits on average", "points": [[2.0, 1.0], [8.0, 0.0]], "uniform": [[2, 1.0], [8, 0.0]], "taken": [2.0, 1.0]}
    assert "predicted loss" in front_chart("weights", front)
    assert bits_chart([]) == ""
    assert "layer&lt;1&gt;" in bits_chart([{"name": "layer<1>", "weight_bits": 3, "activation_bits": None}])
