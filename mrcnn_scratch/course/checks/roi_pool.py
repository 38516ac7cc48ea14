"""Check of notebook 07: `my_roi_pool`."""

import math
from functools import partial

import torch
from torch import Tensor

from ...roi_ops import roi_pool
from ...roi_ops.reference import round_half_away
from .kit import check, expect_close, expect_tensor, teacher
from .roi_cases import distinct, expect_case, some_rois


def packages(features: Tensor, boxes: Tensor, size, scale) -> Tensor:
    """The package's RoIPool of one image: (C, H, W), (R, 4) -> (R, C, h, w)."""
    return roi_pool(features[None], [boxes.to(features.dtype)], size, scale)


def _spans(low, high, bins, length, inclusive, end, first_cut, wraps) -> list[slice]:
    """The cells of the bins along one axis, and the ways to get them wrong."""
    if first_cut:
        low, high = min(max(low, 0), length - 1), min(max(high, 0), length - 1)
    step = (high - low + inclusive) / bins
    spans = [(low + math.floor(p * step), low + end((p + 1) * step)) for p in range(bins)]
    return [slice(*span) if wraps else slice(max(span[0], 0), max(span[1], 0)) for span in spans]


def _pool_like(
    features, boxes, size, scale, rounding=round_half_away, inclusive=1, end=math.ceil, first_cut=False, wraps=False,
    reduce=lambda cells: cells.amax(1), columns=(0, 1, 2, 3), scaled=True,
) -> Tensor:  # fmt: skip
    """RoIPool, and the ways to get it wrong."""
    (C, H, W), (h, w) = features.shape, size
    out = features.new_zeros(len(boxes), C, h, w)
    for r, box in enumerate(boxes.double()[:, columns].tolist()):
        x1, y1, x2, y2 = (int(rounding(v * (scale if scaled else 1))) for v in box)
        options = (inclusive, end, first_cut, wraps)
        for p, down in enumerate(_spans(y1, y2, h, H, *options)):
            for q, across in enumerate(_spans(x1, x2, w, W, *options)):
                cells = features[:, down, across].flatten(1)
                if cells.numel():
                    out[r, :, p, q] = reduce(cells)
    return out


WAYS = {
    "These are halves rounded to the even neighbour, as Python's round and torch.round do it: 0.5 becomes 0 and 2.5 "
    "becomes 2. RoIPool rounds halves away from zero": partial(_pool_like, rounding=round),
    "The corners are cut off, not rounded: 2.8 is nearer to cell 3": partial(_pool_like, rounding=math.floor),
    "Minus a half goes to minus one, away from zero: adding 0.5 and rounding down is right for positive corners "
    "only": partial(_pool_like, rounding=lambda v: math.floor(v + 0.5)),
    "Both corners belong to the RoI: from cell 1 to cell 3 are three cells": partial(_pool_like, inclusive=0),
    "A bin that ends inside of a cell takes all of it: it ends at the ceil, and neighbours share that cell": partial(
        _pool_like, end=math.floor
    ),
    "An output is not compared with 0: where every feature is negative the largest is negative, too": partial(
        _pool_like, reduce=lambda cells: cells.amax(1).clamp(min=0)
    ),
    "A slice that starts below 0 counts from the far end of the map: cut each bin off at 0 first": partial(
        _pool_like, wraps=True
    ),
    "The RoI is cut off at the map before it is divided, which moves all bins: divide first, then cut off each "
    "bin": partial(_pool_like, first_cut=True),
    "This is the mean of each bin; RoIPool takes the largest": partial(_pool_like, reduce=lambda cells: cells.mean(1)),
    "spatial_scale is cells per pixel, 1 / 16 at stride 16: multiply by it": lambda features, boxes, size, scale: (
        _pool_like(features, boxes, size, 1 / scale)
    ),
    "The boxes seem not to be scaled: they are in pixels, the map has cells": partial(_pool_like, scaled=False),
    "x and y of the boxes are swapped: a box is x1, y1, x2, y2, the map is [channel, row, column]": partial(
        _pool_like, columns=(1, 0, 3, 2)
    ),
}
PROBES = [
    (distinct(2, 7, 11, 90), some_rois(9, 91), (2, 3), 1 / 16),
    (distinct(1, 7, 11, 92) - 1000, some_rois(6, 93), (3, 2), 1 / 16),
    (distinct(2, 7, 11, 94), torch.tensor([[1.0, 1.0, 5.0, 4.0], [0.0, 2.0, 9.0, 6.0]]), (2, 2), 1 / 4),
]


def _expect_pool(pool, features, boxes, size, scale, say) -> None:
    case = features, boxes, size, scale
    expect_case(pool, case, packages(*case), say, WAYS, PROBES)


def the_row_by_hand(pool) -> None:
    row = torch.tensor([[[3.0, 1.0, 4.0, 2.0, 5.0, 9.0]]])  # (1, 1, 6)
    box = torch.tensor([[20.0, 0.0, 45.0, 4.0]])
    say = "the box from 20 to 45 pixels at stride 16, in 2 bins: cells 1, 2 and 2, 3 of the row 3, 1, 4, 2, 5, 9"
    expect_case(pool, (row, box, (1, 2), 1 / 16), torch.tensor([[[[4.0, 4.0]]]]), say, WAYS, PROBES)
    _expect_pool(pool, row.flip(2), box, (1, 3), 1 / 16, "the same box in 3 bins of the row 9, 5, 2, 4, 1, 3")


def corners_halfway_between_two_cells(pool) -> None:
    features = distinct(1, 7, 11, 0)
    for box in ([8.0, 40.0, 72.0, 72.0], [40.0, 8.0, 104.0, 56.0], [24.0, 24.0, 88.0, 88.0]):
        scaled = ", ".join(f"{v / 16:g}" for v in box)
        say = f"the box {box}, which is {scaled} in cells, in 2 x 3 bins"
        _expect_pool(pool, features, torch.tensor([box]), (2, 3), 1 / 16, say)


def bins_that_share_cells(pool) -> None:
    features = distinct(1, 7, 11, 1)
    _expect_pool(pool, features, torch.tensor([[32.0, 16.0, 96.0, 64.0]]), (3, 2), 1 / 16, "4 x 5 cells in 3 x 2 bins")
    say = "one cell in 2 x 3 bins: it belongs to all of them"
    _expect_pool(pool, features, torch.tensor([[33.0, 17.0, 35.0, 18.0]]), (2, 3), 1 / 16, say)


def features_that_are_all_negative(pool) -> None:
    features = -1 - distinct(2, 5, 8, 2).abs()
    _expect_pool(pool, features, torch.tensor([[4.0, 0.0, 20.0, 12.0]]), (2, 2), 1 / 4, "RoIs on negative features")


def over_the_border_and_off_the_map(pool) -> None:
    features = distinct(1, 5, 8, 3)
    boxes = {
        "over the left and the upper border": [-10.0, -6.0, 13.0, 9.0],
        "over the right and the lower border": [21.0, 11.0, 45.0, 30.0],
        "with corners at minus a half and minus one and a half": [-2.0, -6.0, 14.0, 10.0],
        "far off the map, whose bins have no cell and give 0": [60.0, 40.0, 80.0, 50.0],
        "far off on the other side": [-80.0, -50.0, -60.0, -40.0],
    }
    for where, box in boxes.items():
        _expect_pool(pool, features, torch.tensor([box]), (3, 3), 1 / 4, f"a RoI {where}")


def several_RoIs_and_channels(pool) -> None:
    features, boxes = distinct(3, 7, 11, 4), some_rois(4, 5)
    with teacher("R RoIs of C channels in h x w bins: (R, C, h, w)"):
        expect_tensor(pool(features, boxes, (2, 3), 1 / 16), (4, 3, 2, 3))
    _expect_pool(pool, features, boxes, (2, 3), 1 / 16, "4 RoIs, 3 channels")


def a_move_that_crosses_no_rounding_edge(pool) -> None:
    features, box = distinct(2, 7, 11, 6), torch.tensor([[33.0, 18.0, 98.0, 70.0]])
    for move in (1.0, 3.0, 5.0):
        with teacher("A corner that stays nearest to the same cell changes nothing: is everything rounded?"):
            say = f"the box {box[0].tolist()} moved right by {move:g} pixels at stride 16"
            expect_close(pool(features, box + torch.tensor([move, 0, move, 0]), (2, 3), 1 / 16),
                         pool(features, box, (2, 3), 1 / 16), say)  # fmt: skip


def no_RoIs(pool) -> None:
    with teacher("An image without RoIs is an ordinary image"):
        expect_tensor(pool(distinct(2, 5, 8, 7), torch.zeros(0, 4), (2, 3), 1 / 4), (0, 2, 2, 3))


def random_RoIs_against_the_package(pool) -> None:
    for seed, size, stride in ((10, (2, 2), 16), (11, (3, 4), 16), (12, (4, 3), 8), (13, (2, 5), 4)):
        features, boxes = distinct(2, 112 // stride, 176 // stride, seed), some_rois(6, seed)
        _expect_pool(
            pool, features, boxes, size, 1 / stride, f"6 RoIs at stride {stride} in {size[0]} x {size[1]} bins"
        )


@check(
    the_row_by_hand, corners_halfway_between_two_cells, bins_that_share_cells, features_that_are_all_negative,
    over_the_border_and_off_the_map, several_RoIs_and_channels, a_move_that_crosses_no_rounding_edge, no_RoIs,
    random_RoIs_against_the_package,
)  # fmt: skip
def check_roi_pool(student) -> None:
    """RoIPool of one image: (C, H, W), (R, 4) xyxy in pixels -> (R, C, h, w)."""
