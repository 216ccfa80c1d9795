"""ARC: the published genotypes, trunks of cells for any network, and the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import test_recipes
from dreamquant import Model, Run
from dreamquant.losses.image import BatchNormDeviation, ClassTarget
from dreamquant.synthesis.cells import (
    MOBILENETV2,
    RESNET18,
    RESNET20_CIFAR10,
    RESNET20_CIFAR100,
    RESNET50,
    Cells,
    Edge,
    Genotype,
    published_for,
)
from dreamquant.synthesis.cellsearch import SearchCells, _Searching
from dreamquant.synthesis.conditions import Condition, Uniform
from test_generator import network

PUBLISHED = (RESNET20_CIFAR10, RESNET20_CIFAR100, RESNET18, RESNET50, MOBILENETV2)
SMALL = network((3, 8, 8), 4)


@pytest.mark.parametrize("genotype", PUBLISHED)
def test_every_genotype_builds_what_its_table_says(genotype: Genotype) -> None:
    """Item 11: as many convolutions, of such kernels, as the words; plus the head's."""
    live = Cells(genotype, 9, 4).on(SMALL)
    words = " ".join((*genotype.ups, *genotype.nodes, *genotype.crosses)).split()
    assert len(words) == 6 + 15 + 12 and not {"s"} & set(words)
    convs = [m for m in live.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == sum(word != "0" for word in words) + 1
    fives = [m for m in convs if m.kernel_size == (5, 5)]
    assert len(fives) == sum(word in ("c5", "d5") for word in words)
    assert sum(m.dilation == (2, 2) for m in convs) == sum(word.startswith("d") for word in words)
    assert sum(m.mode == "bilinear" for m in live.modules() if isinstance(m, Edge)) == words.count("B")
    live(Uniform()(SMALL, 3)).square().sum().backward()
    unused = [name for name, p in live.named_parameters() if p.grad is None]
    assert not unused, "no edge is computed for nothing"
    assert eval(repr(Cells(genotype)), test_recipes.PARTS) == Cells(genotype)


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 2), ((3, 30, 31), 7), ((2, 5, 3), 3), ((3, 48, 64), 1000)])
def test_cells_fit_any_network(shape: tuple[int, int, int], classes: int) -> None:
    model = network(shape, classes)
    images = Cells(latent=7, width=4).on(model)(Uniform()(model, 4))
    assert images.shape == (4, *shape) and torch.allclose(images.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4)
    shares = F.softmax(torch.randn(4, classes), 1)
    assert Cells(latent=7, width=4).on(model)(Condition(shares)).shape == (4, *shape)


def test_the_published_sizes() -> None:
    """generators.md 2.1: noise of 33, 33 and 34 into 4, 8 and 16 pixels of 64 channels."""
    live: Any = Cells(RESNET20_CIFAR10).on(network((3, 32, 32), 10))
    assert [(m.in_features, m.out_features) for m in live.starts] == [(33, 64 * 16), (33, 64 * 64), (34, 64 * 256)]


def test_a_cell_by_hand() -> None:
    """The second cell: two upsamplings, edges of the table, and edges from the nodes of the cell before."""
    torch.manual_seed(0)
    genotype = Genotype(("N B",) * 3, ("c1 s c3 0 d3",) * 3, ("0 N 0 B 0 0",) * 2)
    live: Any = Cells(genotype, 9, 4).on(SMALL)
    cell, condition, size = live.cells[1], Condition(torch.tensor([0, 3])), (8, 8)
    for p in cell.parameters():
        nn.init.normal_(p, std=0.5)
    u, before = torch.randn(2, 4, 4, 4), [torch.randn(2, 4, 4, 4) for _ in range(4)]

    def edge(module: Any, x: torch.Tensor) -> torch.Tensor:
        normed = F.batch_norm(x, None, None, training=True, eps=0.8)
        normed = normed * module.norm.scale[condition.labels][:, :, None, None] + module.norm.shift[condition.labels][:, :, None, None]
        return F.conv2d(F.leaky_relu(normed, 0.2), module.conv.weight, module.conv.bias, 1, module.conv.padding, module.conv.dilation)

    def up(x: torch.Tensor, mode: str) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode=mode)

    n0, n1 = edge(cell.ups["0"], up(u, "nearest")), edge(cell.ups["1"], up(u, "bilinear"))
    n2 = edge(cell.nodes["0"], n0) + n1 + edge(cell.crosses["1"], up(before[1], "nearest"))
    n3 = edge(cell.nodes["2"], n0) + edge(cell.nodes["4"], n2) + edge(cell.crosses["3"], up(before[0], "bilinear"))
    for mine, expected in zip(cell(u, before, condition, size), (n0, n1, n2, n3), strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_nothing_may_stand_on_every_edge() -> None:
    live = Cells(Genotype(("N N",) * 3, ("0 0 0 0 0",) * 3, ("0 0 0 0 0 0",) * 2), 9, 4).on(SMALL)
    assert live(Uniform()(SMALL, 3)).isfinite().all()


@pytest.mark.parametrize("wrong", [{"ups": ("N N", "N N", "N")}, {"nodes": ("d5 d5 d5 d5 c7",) * 3}, {"crosses": ("0 0 s 0 0 0",) * 2}])
def test_a_wrong_word_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Genotype: (ups 'N'|nodes 'd5 d5 d5 d5 c7'|crosses '0 0 s 0 0 0')"):
        Genotype(**{"ups": ("N N",) * 3, "nodes": ("s s s s s",) * 3, "crosses": ("0 0 0 0 0 0",) * 2} | wrong)


def test_the_most_similar_teachers_genotype_is_taken() -> None:
    def large(channels: int, groups: int = 1) -> Model:
        layers = (nn.Conv2d(3, channels, 3, 32), nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, groups=groups), nn.Flatten())
        net = nn.Sequential(*layers[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
        return Model.from_module(net.eval(), (3, 96, 96), (0.5,) * 3, (0.25,) * 3)

    assert published_for(SMALL) is RESNET20_CIFAR10 and published_for(network((3, 8, 8), 20)) is RESNET20_CIFAR100
    assert published_for(large(8)) is RESNET18 and published_for(large(8, 8)) is MOBILENETV2 and published_for(large(8, 2)) is RESNET18
    assert published_for(large(2048)) is RESNET50


def test_a_search_finds_a_genotype_again_after_a_kill(tmp_path: Path) -> None:
    part = SearchCells(BatchNormDeviation() + 0.1 * ClassTarget(), 6, 4, Cells(latent=6, width=4), scores_lr=0.1)
    whole = part(SMALL, Run(1, tmp_path / "whole"))
    run = Run(1, tmp_path / "killed", save_every=0.0)
    torch.manual_seed(run.number("cells"))
    searching = _Searching(part, SMALL)
    for number in run.loop("searching cells", 6, searching=searching):
        if number == 4:
            break
        searching.step(number)
    assert part(SMALL, Run(1, tmp_path / "killed")) == whole
    assert Cells(whole, 6, 4).on(SMALL)(Uniform()(SMALL, 3)).shape == (3, 3, 8, 8)
    assert eval(repr(whole), test_recipes.PARTS) == whole


def test_weights_and_scores_learn_in_turns() -> None:
    torch.manual_seed(0)
    searching = _Searching(SearchCells(BatchNormDeviation(), 10, 4, Cells(latent=6, width=4)), SMALL)
    assert len(searching.choices) == 33
    for number in (0, 1):
        before = [[p.detach().clone() for p in turn] for turn in searching.turns]
        searching.step(number)
        moved = [
            any(not torch.equal(p, q) for p, q in zip(turn, old, strict=True)) for turn, old in zip(searching.turns, before, strict=True)
        ]
        assert moved == [number == 0, number == 1]
    searching.choices[3].scores.data[:] = torch.arange(float(len(searching.choices[3].kinds)))
    cell = searching.genotype()
    assert cell.nodes[0].split()[1] == searching.choices[3].best == "d5", "two upsamplings, then the edges"
