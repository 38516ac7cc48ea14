"""The check of notebook 08's `my_bilinear`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...roi_ops.reference.sampling import bilinear
from .kit import Wrong, check, expect_close
from .roi_cases import expect_case


def _as_map(got, H: int, W: int) -> Tensor:
    """A student's list of (row, column, weight) as an (H, W) map of weights."""
    if not isinstance(got, list | tuple):
        raise Wrong(f"the result must be a list of (row, column, weight), it is a {type(got).__name__}")
    weights = torch.zeros(H, W, dtype=torch.float64)
    for each in got:
        if not isinstance(each, list | tuple) or len(each) != 3:
            raise Wrong(f"each element must be (row, column, weight), one is {each!r}")
        y, x, weight = each
        if y != int(y) or x != int(x):
            raise Wrong(f"row and column are whole numbers, one pair is ({y}, {x})")
        if not (0 <= y < H and 0 <= x < W):
            raise Wrong(
                f"({int(y)}, {int(x)}) is no cell of a map of {H} rows and {W} columns. Beyond the outermost centres "
                "the outermost cell holds; and the order is row, column"
            )
        weights[int(y), int(x)] += float(weight)
    return weights


def four_cells(y, x, H, W, limit=1.0, border=True, nearest=False, open_end=False) -> list[tuple]:
    """The cells that a sample reads, and the ways to get them wrong."""
    off = not (-limit <= y <= H - 1 + limit and -limit <= x <= W - 1 + limit)
    if open_end:
        off = not (-limit < y < H - 1 + limit and -limit < x < W - 1 + limit)
    if border and off:
        return []
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    if nearest:
        return [(min(int(y + 0.5), H - 1), min(int(x + 0.5), W - 1), 1.0)]
    return bilinear(y, x, H, W, "aligned")


def turned(y, x, H, W) -> list[tuple]:
    """The far cell gets the weight of the near one."""
    cells = bilinear(y, x, H, W, "aligned")
    return [(*cells[i][:2], cells[3 - i][2]) for i in range(len(cells))]


def evenly(y, x, H, W) -> list[tuple]:
    return [(row, column, 0.25) for row, column, _ in bilinear(y, x, H, W, "aligned")]


POINT_WAYS = {
    "The cell that is near must weigh more than the one that is far: the fractions have changed sides": turned,
    "Only the nearest cell is read: a bilinear sample weighs four": partial(four_cells, nearest=True),
    "The four cells do not weigh a quarter each, but by how near they are": evenly,
    "These are the weights of the point half a cell further up and left: here the centre of cell 2 is at 2.0; the half "
    "is taken off once, in my_roi_align": lambda y, x, H, W: bilinear(y - 0.5, x - 0.5, H, W, "aligned"),
    "The point is (y, x), rows first; yours is (x, y)": lambda y, x, H, W: bilinear(x, y, H, W, "aligned"),
    "A sample more than a cell beyond the outermost centre reads nothing: an empty list": partial(
        four_cells, border=False
    ),
    "At exactly -1 and exactly H or W a sample still counts": partial(four_cells, open_end=True),
    "Up to a whole cell beyond the outermost centre the outermost cell holds; you stop at half a cell, the edge of the "
    "map": partial(four_cells, limit=0.5),
    "Up to a whole cell beyond the outermost centre the outermost cell holds; you stop at the centre": partial(
        four_cells, limit=0.0
    ),
}
POINT_PROBES = [(0.3, 2.6, 3, 5), (1.75, 0.4, 3, 5), (-0.75, 2.25, 3, 5), (-0.25, 2.25, 3, 5), (1.3, -1.0, 3, 5)]


def _mapped(function: Callable) -> Callable:
    """The function, its list of cells as an (H, W) map."""
    return lambda y, x, H, W: _as_map(function(y, x, H, W), H, W)


def _expect_cells(student, y, x, H, W) -> None:
    say = f"the weights around y = {y:g}, x = {x:g} on a map of {H} rows and {W} columns"
    wanted, ways = (
        _as_map(bilinear(y, x, H, W, "aligned"), H, W),
        {hint: _mapped(way) for hint, way in POINT_WAYS.items()},
    )
    expect_case(_mapped(student), (y, x, H, W), wanted, say, ways, POINT_PROBES)


def the_sample_by_hand(student) -> None:
    _expect_cells(student, 0.5, 1.25, 2, 3)
    _expect_cells(student, 1.25, 2.75, 3, 5)


def at_a_centre_one_cell_alone(student) -> None:
    for y, x in ((1.0, 3.0), (0.0, 0.0), (2.0, 4.0)):
        _expect_cells(student, y, x, 3, 5)


def a_slope_is_read_exactly(student) -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(7.0), indexing="ij")
    slope = (10 * rows + columns).double()
    for y, x in ((0.3, 5.6), (2.9, 0.1), (1.5, 3.5)):
        got = (_as_map(student(y, x, 4, 7), 4, 7) * slope).sum()
        expect_close(got, torch.tensor(10 * y + x), f"10 * row + column, read at y = {y:g}, x = {x:g}")


def beyond_the_outermost_centres(student) -> None:
    H, W = 3, 5
    for y in (-0.25, -0.75, H - 0.75, H - 0.25):
        _expect_cells(student, y, 1.5, H, W)
    for x in (-0.25, -0.75, W - 0.75, W - 0.25):
        _expect_cells(student, 1.5, x, H, W)


def the_edge_of_what_counts(student) -> None:
    H, W = 3, 5
    for y in (-1.0, H, -1.0001, H + 0.0001, -3.0, H + 9.0):
        _expect_cells(student, float(y), 2.5, H, W)
    for x in (-1.0, W, -1.0001, W + 0.0001, -3.0, W + 9.0):
        _expect_cells(student, 0.5, float(x), H, W)


def a_map_of_one_row(student) -> None:
    for y, x in ((0.0, 2.5), (-0.5, 0.5), (0.75, 3.75)):
        _expect_cells(student, y, x, 1, 5)


def random_points_against_the_package(student) -> None:
    g = torch.Generator().manual_seed(0)
    for H, W in ((3, 5), (7, 2), (4, 9)):
        for y, x in (torch.rand(40, 2, generator=g) * torch.tensor([H + 3.0, W + 3.0]) - 1.8).double().tolist():
            _expect_cells(student, y, x, H, W)


@check(
    the_sample_by_hand, at_a_centre_one_cell_alone, a_slope_is_read_exactly, beyond_the_outermost_centres,
    the_edge_of_what_counts, a_map_of_one_row, random_points_against_the_package,
)  # fmt: skip
def check_bilinear(student) -> None:
    """The four cells around a point: y, x, H, W -> list of (row, column, weight)."""
