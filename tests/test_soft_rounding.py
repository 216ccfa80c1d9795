"""Rounding that is learned, and quantization that is dropped here and there: the rules that `Reconstruct` lets quantizers act by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamquant.quant.quantizer import LearnedStep, Quantizer, acting
from dreamquant.quant.ranges import LpSearch, to_grid
from dreamquant.quant.rounding import Dropping, SoftRounding, drawn
from dreamquant.quant.scheme import Int


def fixed(weight: Tensor, form: Int) -> Quantizer:
    shape = (len(weight),) + (1,) * (weight.ndim - 1) if form.per == "channel" else ()
    quantizer = Quantizer(form, shape)
    quantizer.fix(*to_grid(*LpSearch()(weight, form), form))
    return quantizer


@pytest.mark.parametrize("form", [Int(2, "channel"), Int(4, "tensor", symmetric=True), Int(8, "channel")])
def test_soft_rounding_starts_at_the_weight_and_hardens_to_a_neighbour(form: Int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    q = fixed(weight, form)
    rule = SoftRounding(q, weight)
    clipped = weight.clamp((form.low - q.zero) * q.scale, (form.high - q.zero) * q.scale)
    with acting({q: rule}):
        assert torch.allclose(q(weight), clipped, atol=1e-5)
    hard = rule.hard(q)
    assert torch.equal(hard, q(weight)), "before anything is learned, the nearer neighbour is the nearest code"
    with torch.no_grad():
        rule.logit.neg_()
    hard = rule.hard(q)
    assert ((hard - clipped).abs() <= q.scale * 1.0001).all()
    assert torch.equal(q(hard), hard), "on the grid to the bit"
    codes = hard / q.scale + q.zero
    assert torch.allclose(codes, codes.round(), atol=1e-3) and torch.equal(codes.round(), q.codes(hard))


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_gradients_of_soft_rounding_are_finite_differences(per: str) -> None:
    torch.manual_seed(1)
    weight = torch.randn(3, 5).double()
    q = fixed(weight, Int(3, "channel" if per == "channel" else "tensor")).double()
    q.scale.requires_grad_()
    rule = SoftRounding(q, weight)

    def made(logit: Tensor, scale: Tensor) -> Tensor:
        return torch.func.functional_call(rule, {"logit": logit}, (_With(q, scale), weight))

    class _With:  # a quantizer with another step: the floor stays what it was
        def __init__(self, q: Quantizer, scale: Tensor) -> None:
            self.format, self.zero, self.scale = q.format, q.zero, scale

    assert torch.autograd.gradcheck(made, (rule.logit, q.scale), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_elements_are_dropped_with_their_probability(share: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 5, 30, 31).contiguous(memory_format=layout)
    mask = drawn(x, share)
    assert mask.stride() == x.stride() and ((mask == 0) | (mask == 1)).all()
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert mask.mean().item() == pytest.approx(share, abs=4 * deviation + 1e-9)
    assert share in (0, 1) or not torch.equal(mask, drawn(x, share))
    assert share in (0, 1) or abs(torch.corrcoef(torch.stack([mask[..., 1:].flatten(), mask[..., :-1].flatten()]))[0, 1]) < 0.02


def test_dropped_elements_pass_and_the_rest_is_quantized_with_gradients_of_lsq() -> None:
    x = torch.randn(4, 3, 7, 7)
    q = fixed(x * 0.7, Int(3))
    q.scale.requires_grad_()
    weights = torch.randn_like(x)
    with acting({q: LearnedStep()}):
        full = q(x).detach()
    leaf = x.clone().requires_grad_()
    with acting({q: Dropping(0.5)}):
        torch.manual_seed(5)
        y = q(leaf)
        (y * weights).sum().backward()
    torch.manual_seed(5)
    dropped = drawn(x, 0.5)
    assert torch.equal(y, torch.where(dropped == 1, x, full)) and 0.3 < dropped.mean() < 0.7
    by_hand_x, scale = x.clone().requires_grad_(), q.scale.detach().clone().requires_grad_()
    v = (by_hand_x / scale).clamp(q.format.low - q.zero, q.format.high - q.zero)
    straight = (v + (v.round() - v).detach()) * scale
    (torch.where(dropped == 1, by_hand_x, straight) * weights).sum().backward()
    factor = (x.numel() * q.format.high) ** -0.5
    assert q.scale.grad is not None and scale.grad is not None
    assert torch.allclose(leaf.grad, by_hand_x.grad, atol=1e-5)  # type: ignore[arg-type]
    assert q.scale.grad.item() == pytest.approx(scale.grad.item() * factor, rel=1e-3)
