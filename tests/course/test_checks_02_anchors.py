"""Notebook 02's checks: the package's functions pass, the mistakes of real detectors fail, each with its hint."""

import pytest
import torch
from matplotlib.figure import Figure
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch.anchors import cell_anchors, grid_anchors
from mrcnn_scratch.course.checks import check_cell_anchors, check_grid_anchors
from mrcnn_scratch.visualize.recall import draw_iou_by_size, draw_recall


@pytest.mark.parametrize("check, function", [(check_cell_anchors, cell_anchors), (check_grid_anchors, grid_anchors)])
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def test_students_may_give_the_offset_of_the_middle_a_name(capsys):
    passes(check_grid_anchors, lambda *given: grid_anchors(*given, offset=0.5), capsys)


def boxes(pairs, low=-0.5, high=0.5):
    """(width, height) of each anchor -> corners around the origin."""
    return torch.tensor([[low * w, low * h, high * w, high * h] for w, h in pairs])


def by_loops(size_of, ratios_slowest=True):
    def cell(sizes, ratios):
        if ratios_slowest:
            return boxes([size_of(s, r) for r in ratios for s in sizes])
        return boxes([size_of(s, r) for s in sizes for r in ratios])

    return cell


def right(s, r):
    return s / r**0.5, s * r**0.5


def squares_for_all(sizes, ratios):
    return boxes([right(s, r) for s, r in zip(sizes, ratios, strict=False)])


WRONG_CELL = {
    "ratio as w / h, matterport (TRAPS 20)": (by_loops(lambda s, r: right(s, 1 / r)), "0.5 is a wide box"),
    "no square root": (by_loops(lambda s, r: (s / r, s * r)), "The square root belongs there"),
    "height alone": (by_loops(lambda s, r: (s, s * r)), "Only the height changes"),
    "width alone": (by_loops(lambda s, r: (s / r, s)), "Only the width changes"),
    "corner on the origin": (lambda s, r: boxes([right(a, b) for b in r for a in s], 0, 1), "a corner on the origin"),
    "twice as large": (lambda s, r: boxes([right(a, b) for b in r for a in s], -1, 1), "half a side each way"),
    "rounded, torchvision (TRAPS 19)": (lambda s, r: cell_anchors(s, r, rounded=True), "do not round"),
    "from -(side - 1) / 2, py-faster-rcnn (TRAPS 19)": (
        by_loops(lambda s, r: (s / r**0.5 - 1, s * r**0.5 - 1)),
        "one pixel short",
    ),
    "sizes slowest": (by_loops(right, ratios_slowest=False), "ratio by ratio, and the sizes"),
    "pairs only": (squares_for_all, "every size with every ratio"),
    "float64": (lambda s, r: cell_anchors(s, r).double(), "yours are float64"),
    "a list": (lambda s, r: cell_anchors(s, r).tolist(), "must be a tensor"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_CELL.values(), ids=list(WRONG_CELL))
def test_wrong_cell_anchors_fail_with_their_hint(wrong, hint):
    fails_with(check_cell_anchors, wrong, hint)


def by_cells(centre, order="HWA"):
    """Loops over cells; `centre` gives x, y of cell (i, j) with a stride (down, across)."""

    def grid(cell, height, width, stride):
        result = torch.zeros(height, width, len(cell), 4)
        for i in range(height):
            for j in range(width):
                x, y = centre(i, j, *stride)
                result[i, j] = cell + torch.tensor([x, y, x, y], dtype=torch.float32)
        return result.permute(*["HWA".index(axis) for axis in order], 3).reshape(-1, 4)

    return grid


def middle(i, j, down, across):
    return (j + 0.5) * across, (i + 0.5) * down


def adds_in_place(cell, height, width, stride):
    result = grid_anchors(cell, height, width, stride)
    cell += 1
    return result


WRONG_GRID = {
    "corner, torchvision (TRAPS 19)": (lambda *given: grid_anchors(*given, offset=0), "on the corner of their cell"),
    "(stride - 1) / 2 (TRAPS 19)": (
        by_cells(lambda i, j, down, across: (j * across + (across - 1) / 2, i * down + (down - 1) / 2)),
        "where pixels are points",
    ),
    "half a pixel": (by_cells(lambda i, j, down, across: (j * across + 0.5, i * down + 0.5)), "half a *cell*"),
    "strides swapped": (
        lambda cell, height, width, stride: grid_anchors(cell, height, width, stride[::-1]),
        "two strides have changed places",
    ),
    "x and y swapped": (by_cells(lambda *place: middle(*place)[::-1]), "columns give x and rows give y"),
    "all cells of an anchor first (TRAPS 21)": (by_cells(middle, "AHW"), "are to be neighbours"),
    "down the columns (TRAPS 21)": (by_cells(middle, "WHA"), "the order is row by row"),
    "one anchor too few": (lambda *given: grid_anchors(*given)[:-1], "must have shape"),
    "changes its argument": (adds_in_place, "changed the anchors that it was given"),
    "stops without cells": (lambda *given: torch.cat(list(grid_anchors(*given))).view(-1, 4), "no cells"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_GRID.values(), ids=list(WRONG_GRID))
def test_a_wrong_grid_fails_with_its_hint(wrong, hint):
    fails_with(check_grid_anchors, wrong, hint)


@pytest.mark.parametrize("seed", range(5))
def test_what_the_solutions_build_is_what_the_package_has(seed):
    my, g = solutions("02"), torch.Generator().manual_seed(seed)
    sizes = tuple((2 + 300 * torch.rand(3, generator=g)).tolist())
    ratios = tuple((0.1 + 5 * torch.rand(1 + seed, generator=g)).tolist())
    cell = cell_anchors(sizes, ratios)
    torch.testing.assert_close(my["my_cell_anchors"](sizes, ratios), cell)
    height, width, down, across = torch.randint(1, 30, (4,), generator=g).tolist()
    grid = my["my_grid_anchors"](cell, height, width, (down, across))
    torch.testing.assert_close(grid, grid_anchors(cell, height, width, (down, across)))


def test_the_bars_are_the_recall_and_the_curves_the_means():
    bars, curves = Figure().subplots(1, 2)
    best = {"one": torch.tensor([0.2, 0.5, 0.7, 0.9]), "two": torch.tensor([0.6, 0.6, 0.6, 0.1])}
    draw_recall(bars, best)
    assert [patch.get_width() for patch in bars.patches] == [0.75, 0.5, 0.75, 0.0]  # at 0.5 and 0.7, one by one
    draw_iou_by_size(curves, torch.tensor([16.0, 16.0, 64.0, 64.0]), best, bins=4)  # two of the bins are empty
    assert [line.get_label() for line in curves.lines] == ["one", "two"]
    assert [round(float(y), 3) for y in curves.lines[0].get_ydata()] == [0.35, 0.8]
    assert [round(float(x), 1) for x in curves.lines[0].get_xdata()] == [19.0, 53.8]  # the middles of 16-22.6, 45.3-64
    assert list(curves.get_xticks()) == [16, 32, 64]
