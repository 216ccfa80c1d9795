"""Clips against the published constants, against their models by brute force, and against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dreamquant.quant.clips import AnalyticClip, GoldenSection, best_cut
from dreamquant.quant.ranges import LpSearch, MinMax, rounded, to_grid
from dreamquant.quant.scheme import Int

LAPLACE = [1.86, 2.83, 3.90, 5.03, 6.20, 7.41, 8.65, 9.90, 11.16]  # of 1 to 9 bits; 9 is the one-sided cut of 8
GAUSS = [1.24, 1.71, 2.15, 2.56, 2.94, 3.29, 3.62, 3.92, 4.22]


def squared_error(x: Tensor, low: Tensor, high: Tensor, form: Int) -> float:
    return (rounded(x, *to_grid(low, high, form), form) - x).square().mean().item()


def laplace(count: int, seed: int = 0) -> Tensor:
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs().clamp_max(0.4999999))


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 10))
def test_cuts_are_the_published_ones(bits: int) -> None:
    assert best_cut("laplace", bits) == pytest.approx(LAPLACE[bits - 1], abs=0.006)
    assert best_cut("gauss", bits) == pytest.approx(GAUSS[bits - 1], abs=0.006)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("family", ["laplace", "gauss"])
def test_cuts_minimise_the_model_by_brute_force(family: str, bits: int) -> None:
    x = torch.arange(0.0005, 40, 0.001, dtype=torch.float64)
    density = torch.exp(-x) if family == "laplace" else math.sqrt(2 / math.pi) * torch.exp(-x * x / 2)  # of |x|

    def error(cut: float) -> float:
        return ((x - cut).clamp_min(0).square() * density).sum().item() * 0.001 + cut * cut / (3 * 4**bits)

    best = min((k / 100 for k in range(100, 1200)), key=error)
    assert best_cut(family, bits) == pytest.approx(best, abs=0.011)


def test_a_laplace_cut_is_lamberts_w() -> None:
    for bits in range(2, 9):
        cut = best_cut("laplace", bits)
        assert cut * math.exp(cut) == pytest.approx(3 * 4**bits, rel=1e-9)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("family", ["laplace", "gauss"])
def test_on_its_own_distribution_hardly_any_range_is_better(family: str, bits: int, one_sided: bool) -> None:
    x = 0.7 * (laplace(50_000) if family == "laplace" else normal(50_000))
    x, form = x.clamp_min(0) if one_sided else x, Int(bits)
    mine = squared_error(x, *AnalyticClip(family)(x, form), form)  # type: ignore[arg-type]
    low, high = MinMax()(x, form)
    others = [squared_error(x, low * share, high * share, form) for share in torch.linspace(0.1, 1, 90)]
    assert mine < 1.1 * min(others) and mine < 0.8 * others[-1]


def test_constants_come_from_the_spread_around_the_mean() -> None:
    x = laplace(20_000) - 0.5
    low, high = AnalyticClip("laplace")(x, Int(4))
    spread = (x - x.mean()).abs().mean()
    assert low.item() == pytest.approx((x.mean() - 5.0286 * spread).item(), rel=1e-4)
    assert high.item() == pytest.approx((x.mean() + 5.0286 * spread).item(), rel=1e-4)
    low, high = AnalyticClip("gauss")(x, Int(4))
    assert (high - low).item() == pytest.approx(2 * 2.5591 * x.std(unbiased=False).item(), rel=1e-4)


def test_data_that_is_never_negative_is_cut_above_and_its_zeros_do_not_count() -> None:
    x = laplace(20_000).clamp_min(0)
    low, high = AnalyticClip("laplace")(x, Int(4))
    assert low == 0 and high.item() == pytest.approx(6.2048 * x[x > 0].mean().item(), rel=1e-4)
    more = AnalyticClip("laplace")(torch.cat([x, torch.zeros(30_000)]), Int(4))
    assert more[0] == 0 and more[1].item() == pytest.approx(high.item(), rel=1e-5)
    _, signed = AnalyticClip("laplace")(x, Int(4, symmetric=True))
    assert signed.item() == pytest.approx(5.0286 * x[x > 0].mean().item(), rel=1e-4)


def test_a_range_begins_no_lower_than_the_data_and_keeps_its_width() -> None:
    x = torch.cat([torch.tensor([-0.1]), laplace(9_999).abs()])
    low, high = AnalyticClip("laplace")(x, Int(3))
    spread = (x - x.mean()).abs().mean()
    assert low == x.min() and high.item() == pytest.approx(-0.1 + 2 * 3.8972 * spread.item(), rel=1e-4)


def test_a_range_ends_no_higher_than_the_data() -> None:
    x = torch.cat([torch.tensor([-20.0]), laplace(9_999).clamp_max(1.0)])
    low, high = AnalyticClip("laplace")(x, Int(4))
    assert low > -6 and high == 1


@pytest.mark.parametrize("x", [torch.linspace(-1, 2, 100), torch.linspace(0, 1, 9), torch.zeros(7), torch.full((5,), -2.0)])
def test_a_cut_outside_the_data_is_none(x: Tensor) -> None:
    low, high = AnalyticClip("laplace")(x, Int(8))
    assert (low, high) == (x.min(), x.max())


@pytest.mark.parametrize("family", ["laplace", "gauss", "mix"])
def test_channels_are_cut_alone(family: str) -> None:
    weight = torch.stack([laplace(600), 10 * normal(600), laplace(600).clamp_min(0), torch.rand(600)]).view(4, 6, 10, 10)
    low, high = AnalyticClip(family)(weight, Int(4, "channel"))  # type: ignore[arg-type]
    assert low.shape == high.shape == (4, 1, 1, 1)
    for row, a, b in zip(weight, low.flatten(), high.flatten(), strict=True):
        alone = AnalyticClip(family)(row, Int(4))  # type: ignore[arg-type]
        assert torch.allclose(torch.stack(alone), torch.stack([a, b]), rtol=1e-5)


def test_a_mix_takes_what_does_best() -> None:
    chosen = []
    outliers = torch.cat([normal(998), torch.tensor([-30.0, 30.0])])
    for x, form in ((laplace(20_000), Int(4)), (normal(20_000), Int(4)), (outliers, Int(8))):
        choices = {family: AnalyticClip(family)(x, form) for family in ("laplace", "gauss")} | {"none": MinMax()(x, form)}  # type: ignore[arg-type]
        errors = {name: squared_error(x, *found, form) for name, found in choices.items()}
        best = min(errors, key=lambda name: errors[name])
        assert AnalyticClip("mix")(x, form) == choices[best]
        chosen.append(best)
    assert chosen == ["laplace", "gauss", "none"]


def test_activations_are_cut_from_a_sample_of_all_batches() -> None:
    x = laplace(40_000)
    observer = AnalyticClip("laplace", samples=5_000).observer()
    for batch in x.view(8, 50, 10, 10):
        observer.see(batch)
    low, high = observer.range(Int(4))
    expected = AnalyticClip("laplace")(x, Int(4))
    assert high.item() == pytest.approx(expected[1].item(), rel=0.03) and low.item() == pytest.approx(expected[0].item(), rel=0.03)


def test_an_unknown_family_is_told() -> None:
    with pytest.raises(ValueError, match="cauchy.*laplace"):
        AnalyticClip("cauchy")  # type: ignore[arg-type]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_golden_section_beats_its_coarse_search_and_comes_near_a_dense_one(bits: int, symmetric: bool) -> None:
    weight = torch.stack([laplace(288), normal(288, 1), torch.cat([normal(287, 2), torch.tensor([9.0])])])
    form, search = Int(bits, "channel", symmetric), LpSearch(p=2.0, candidates=40, least=0.2)
    coarse, fine = search(weight, form), GoldenSection(search)(weight, form)
    before, after = search.error(weight, *coarse, form), search.error(weight, *fine, form)
    assert (after <= before).all() and (after < before).any()
    dense = LpSearch(p=2.0, candidates=401, least=0.2)
    assert (after <= 1.05 * dense.error(weight, *dense(weight, form), form)).all()


def test_a_golden_section_stays_inside_the_data() -> None:
    x = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 6.95])  # a range of 7 would suit all but the last
    low, high = GoldenSection()(x, Int(3))
    assert low == 0 and 6.9 < high <= 6.95


def test_a_golden_section_finds_the_least_of_a_smooth_error() -> None:
    x = normal(100_000)
    form, search = Int(3), LpSearch(p=2.0, candidates=9, least=0.2)
    low, high = MinMax()(x, form)
    shares = torch.linspace(0.2, 1, 801).tolist()
    best = min(shares, key=lambda share: search.error(x, low * share, high * share, form).item())
    assert (GoldenSection(search)(x, form)[1] / high).item() == pytest.approx(best, abs=0.004)
    assert abs((search(x, form)[1] / high).item() - best) > 0.004  # the coarse search alone does not


def test_rows_are_refined_as_if_alone() -> None:
    weight = torch.stack([laplace(500), 7 * normal(500), torch.zeros(500), laplace(500).abs()])
    low, high = GoldenSection()(weight, Int(3, "channel"))
    assert low[2] == 0 and high[2] == 0
    for row, a, b in zip(weight, low, high, strict=True):
        assert torch.allclose(torch.stack(GoldenSection()(row, Int(3))), torch.cat([a, b]), rtol=1e-5)
