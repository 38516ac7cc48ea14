"""Checks of notebook 02: `my_cell_anchors`, `my_grid_anchors`."""

import torch
from torch import Tensor

from ...anchors import cell_anchors, grid_anchors
from .kit import Wrong, check, expect_close, expect_tensor, teacher

# ---- the anchors of one cell


def _cell_like(
    sizes, ratios, by="root", turned=False, low=-0.5, high=0.5, sizes_slowest=False, rounded=False, less=0.0
):
    """One cell's anchors, and the ways to get them wrong: low and high are the corners, in sides."""
    ratio = torch.tensor(ratios, dtype=torch.float64)[:, None].expand(len(ratios), len(sizes))
    size = torch.tensor(sizes, dtype=torch.float64)[None].expand(len(ratios), len(sizes))
    if sizes_slowest:
        ratio, size = ratio.T, size.T
    growth = {"root": ratio.sqrt(), "ratio": ratio, "height": ratio, "width": torch.ones_like(ratio)}[by]
    shrink = {"root": ratio.sqrt(), "ratio": ratio, "height": torch.ones_like(ratio), "width": ratio}[by]
    width, height = (size / shrink).flatten(), (size * growth).flatten()
    if turned:
        width, height = height, width
    width, height = width - less, height - less
    anchors = torch.stack([low * width, low * height, high * width, high * height], dim=1)
    return (anchors.round() if rounded else anchors).float()


def _cell_mistakes(sizes, ratios) -> dict:
    return {
        "You took the ratio for width / height; it is height / width, so that 0.5 is a wide box": lambda: _cell_like(
            sizes, ratios, turned=True
        ),
        "A side is multiplied by the ratio itself: then height / width is its square. The square root belongs there": (
            lambda: _cell_like(sizes, ratios, by="ratio")
        ),
        "Only the height changes with the ratio, so the area does, too: the area of each anchor is its size squared": (
            lambda: _cell_like(sizes, ratios, by="height")
        ),
        "Only the width changes with the ratio, so the area does, too: the area of each anchor is its size squared": (
            lambda: _cell_like(sizes, ratios, by="width")
        ),
        "These boxes have a corner on the origin (or are given as centre and sides); the centre is to be the origin": (
            lambda: _cell_like(sizes, ratios, low=0.0, high=1.0)
        ),
        "The sides are twice as long as they should be: from the centre it is half a side each way": lambda: _cell_like(
            sizes, ratios, low=-1.0, high=1.0
        ),
        "These sides are one pixel short: +- (side - 1) / 2 belongs to code that takes pixels for points": (
            lambda: _cell_like(sizes, ratios, less=1.0)
        ),
        "The corners are rounded to whole pixels, as torchvision rounds them: the areas then vary. Do not round": (
            lambda: _cell_like(sizes, ratios, rounded=True)
        ),
        "The boxes are right, their order is not: ratio by ratio, and the sizes of one ratio are neighbours": (
            lambda: _cell_like(sizes, ratios, sizes_slowest=True)
        ),
    }


def _every_pair(cell, sizes, ratios) -> Tensor:
    got, count = cell(sizes, ratios), len(sizes) * len(ratios)
    if isinstance(got, Tensor) and len(got) < count:
        raise Wrong(
            f"{len(sizes)} sizes and {len(ratios)} ratios are {count} anchors, every size with every ratio; you give "
            f"{len(got)}. Give ratios and sizes an axis each"
        )
    expect_tensor(got, (count, 4))
    return got


def the_square_one(cell) -> None:
    wanted = torch.tensor([[-16.0, -16.0, 16.0, 16.0]])
    expect_close(cell((32.0,), (1.0,)), wanted, "size 32, ratio 1", _cell_mistakes((32.0,), (1.0,)))


def the_wide_one_of_the_text(cell) -> None:
    wanted = torch.tensor([[-32.0, -8.0, 32.0, 8.0]])
    expect_close(cell((32.0,), (0.25,)), wanted, "size 32, ratio 0.25", _cell_mistakes((32.0,), (0.25,)))


def every_area_is_its_size_squared(cell) -> None:
    sizes, ratios = (10.0, 32.0), (0.5, 2.0)
    got = _every_pair(cell, sizes, ratios)
    areas = ((got[:, 2:] - got[:, :2]).prod(dim=1)).sort().values
    rounded = bool((got == got.round()).all())
    hint = "Your corners are whole numbers: rounding changes the area, do not round" if rounded else "Mind the area"
    with teacher(hint):
        expect_close(areas, torch.tensor([100.0, 100.0, 1024.0, 1024.0]), "areas of sizes 10 and 32")


def every_size_with_every_ratio_in_order(cell) -> None:
    sizes, ratios = (16.0, 48.0), (0.5, 1.0, 2.0)
    got = _every_pair(cell, sizes, ratios)
    expect_close(got, _cell_like(sizes, ratios), "sizes 16, 48 and ratios 0.5, 1, 2", _cell_mistakes(sizes, ratios))


def float32_as_features_are(cell) -> None:
    got = cell((32.0,), (1.0,))
    if got.dtype != torch.float32:
        raise Wrong(f"anchors are float32, as images and features are; yours are {str(got.dtype).split('.')[-1]}")


def random_shapes_against_the_package(cell) -> None:
    for seed in range(10, 16):
        g = torch.Generator().manual_seed(seed)
        sizes = tuple((4 + 200 * torch.rand(1 + seed % 3, generator=g)).tolist())
        ratios = tuple((0.2 + 4 * torch.rand(1 + seed % 4, generator=g)).tolist())
        say = f"{len(sizes)} sizes, {len(ratios)} ratios"
        expect_close(cell(sizes, ratios), cell_anchors(sizes, ratios), say, _cell_mistakes(sizes, ratios))


@check(
    the_square_one, the_wide_one_of_the_text, every_area_is_its_size_squared, every_size_with_every_ratio_in_order,
    float32_as_features_are, random_shapes_against_the_package,
)  # fmt: skip
def check_cell_anchors(student) -> None:
    """The anchors of one cell around the origin: sizes, ratios h / w -> (A, 4) xyxy, ratios slowest."""


# ---- the anchors of a map


def _grid_like(cell: Tensor, height, width, stride, at=None, turned=False, order="HWA", swapped=False) -> Tensor:
    """Anchors of a map, and the ways to get them wrong: `at` says where in its cell an anchor lies, pixels."""
    down, across = stride[::-1] if turned else stride
    at_down, at_across = (down / 2, across / 2) if at is None else at
    y = (torch.arange(height) * down + at_down)[:, None].expand(height, width)
    x = (torch.arange(width) * across + at_across)[None].expand(height, width)
    shifts = torch.stack([y, x, y, x] if swapped else [x, y, x, y], dim=-1)  # (H, W, 4)
    anchors = shifts[:, :, None] + cell  # (H, W, A, 4)
    return anchors.permute(*["HWA".index(axis) for axis in order], 3).reshape(-1, 4)


def _grid_mistakes(cell, height, width, stride) -> dict:
    down, across = stride

    def like(**how):
        return lambda: _grid_like(cell, height, width, stride, **how)

    return {
        "The anchors lie on the corner of their cell, not on its centre: half a stride is missing": like(at=(0, 0)),
        "The anchors lie on (stride - 1) / 2, the centre where pixels are points; with continuous coordinates the "
        "centre of a cell is half a stride from its corner": like(at=((down - 1) / 2, (across - 1) / 2)),
        "The anchors are half a pixel from the corner: 0.5 is half a *cell*, so it belongs inside the brackets, before "
        "the multiplication by the stride": like(at=(0.5, 0.5)),
        "The two strides have changed places: stride is (down, across), the first one is for rows, y": like(
            turned=True
        ),
        "A cell's shift went to the wrong corners: boxes are x1, y1, x2, y2, columns give x and rows give y": like(
            swapped=True
        ),
        "The boxes are right, their order is not. You go through all cells for the first anchor, then for the second; "
        "the anchors of one cell are to be neighbours": like(order="AHW"),
        "The boxes are right, their order is not. You go down the columns; the order is row by row": like(order="WHA"),
        "The boxes are right, their order is not. Rows are slowest, then columns, then the anchors of a cell": like(
            order="AWH"
        ),
    }


def _kept(grid):
    """The student's function, which must leave the anchors that it is given as they are."""

    def call(cell, *where) -> Tensor:
        before = cell.clone()
        got = grid(cell, *where)
        if not torch.equal(cell, before):
            raise Wrong("your function changed the anchors that it was given: add into a new tensor, not with +=")
        return got

    return call


def one_cell(grid) -> None:
    cell = torch.tensor([[-4.0, -2.0, 4.0, 2.0]])
    wanted = torch.tensor([[4.0, 6.0, 12.0, 10.0]])
    mistakes = _grid_mistakes(cell, 1, 1, (16, 16))
    expect_close(_kept(grid)(cell, 1, 1, (16, 16)), wanted, "a map of one cell of 16 x 16 pixels", mistakes)


def the_cell_of_the_text(grid) -> None:
    """Row 1, column 2 of a map with stride 8 down and 16 across."""
    cell = torch.tensor([[-4.0, -2.0, 4.0, 2.0]])
    got = _kept(grid)(cell, 2, 3, (8, 16))
    mistakes = {hint: lambda way=way: way()[5:] for hint, way in _grid_mistakes(cell, 2, 3, (8, 16)).items()}
    expect_tensor(got, (6, 4))
    expect_close(got[5:], torch.tensor([[36.0, 10.0, 44.0, 14.0]]), "the last of 2 x 3 cells", mistakes)


def row_by_row_and_a_cells_anchors_together(grid) -> None:
    cell = _cell_like((8.0, 20.0), (0.5, 2.0))
    wanted = _grid_like(cell, 3, 5, (4, 8))
    expect_close(
        _kept(grid)(cell, 3, 5, (4, 8)), wanted, "3 x 5 cells, 4 anchors each", _grid_mistakes(cell, 3, 5, (4, 8))
    )


def as_far_over_the_left_border_as_over_the_right(grid) -> None:
    cell, (height, width), (down, across) = _cell_like((30.0,), (1.0,)), (4, 7), (8, 4)
    got = _kept(grid)(cell, height, width, (down, across))
    expect_tensor(got, (height * width, 4))
    limit = torch.tensor([float(width * across), float(height * down)])
    before, after = -got[:, :2].amin(dim=0), (got[:, 2:] - limit).amax(dim=0)
    with teacher("A layout in the middle of the cells reaches over opposite borders by the same"):
        expect_close(after, before, "pixels over the right and bottom border, against left and top")


def a_score_finds_its_anchor(grid) -> None:
    """A convolution's output is (A, H, W); the RPN reads it cell by cell, anchors fastest."""
    cell = _cell_like((8.0,), (0.5, 1.0, 2.0))
    got = _kept(grid)(cell, 4, 6, (8, 16))
    expect_tensor(got, (72, 4))
    for a, i, j in ((2, 0, 5), (0, 3, 1), (1, 2, 4)):
        scores = torch.zeros(3, 4, 6)
        scores[a, i, j] = 1.0
        found = got[scores.permute(1, 2, 0).flatten().argmax()]
        shift = torch.tensor([(j + 0.5) * 16, (i + 0.5) * 8] * 2)
        with teacher("The list must be in the order in which the scores are read: rows, columns, anchors"):
            expect_close(found, cell[a] + shift, f"the anchor of a high score for shape {a} in row {i}, column {j}")


def no_cells(grid) -> None:
    cell = _cell_like((8.0,), (0.5, 1.0))
    expect_tensor(grid(cell, 0, 3, (8, 8)), (0, 4))
    expect_tensor(grid(cell, 3, 0, (8, 8)), (0, 4))


def random_maps_against_the_package(grid) -> None:
    for seed in range(10, 16):
        g = torch.Generator().manual_seed(seed)
        height, width, down, across = torch.randint(1, 9, (4,), generator=g).tolist()
        cell, stride = torch.randn(1 + seed % 4, 4, generator=g) * 20, (down * 4, across * 2)
        wanted = grid_anchors(cell, height, width, stride)
        mistakes = _grid_mistakes(cell, height, width, stride)
        say = f"{height} x {width} cells with strides {stride}"
        expect_close(_kept(grid)(cell, height, width, stride), wanted, say, mistakes)


@check(
    one_cell, the_cell_of_the_text, row_by_row_and_a_cells_anchors_together,
    as_far_over_the_left_border_as_over_the_right, a_score_finds_its_anchor, no_cells,
    random_maps_against_the_package,
)  # fmt: skip
def check_grid_anchors(student) -> None:
    """One cell's anchors at every cell: (A, 4), H, W, stride (down, across) -> (H * W * A, 4) xyxy, pixels."""
