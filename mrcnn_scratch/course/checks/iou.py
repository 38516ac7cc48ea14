"""Check of notebook 01: `my_iou`; and boxes to try functions on."""

import torch
from torch import Tensor

from ...boxes import box_iou
from .kit import check, expect_close, expect_tensor, teacher

PLUS_ONE = (
    "These are the numbers of widths that count one pixel more, x2 - x1 + 1: with continuous coordinates it is x2 - x1"
)


def some_boxes(count: int, seed: int, size=(300.0, 120.0)) -> Tensor:
    """(count, 4) boxes of a wide image, so that a swapped x and y shows."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g) * torch.tensor(size) * 0.7
    sides = 4 + torch.rand(count, 2, generator=g) * torch.tensor(size) * 0.5
    return torch.cat([corner, corner + sides], dim=1)


def _iou_like(a: Tensor, b: Tensor, plus=0.0, clamp=True, joint="union") -> Tensor:
    """IoU, and the ways to get it wrong."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = high - low + plus
    shared = (sides.clamp(min=0) if clamp else sides).prod(dim=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2] + plus).prod(dim=1) for x in (a, b))
    total = area_a[:, None] + area_b[None, :]
    smaller = torch.minimum(area_a[:, None], area_b[None, :])
    return shared / {"union": total - shared, "sum": total, "smaller": smaller}[joint]


def _iou_mistakes(a: Tensor, b: Tensor) -> dict:
    return {
        PLUS_ONE: lambda: _iou_like(a, b, plus=1.0),
        "The union counts the shared part twice: take it off once": lambda: _iou_like(a, b, joint="sum"),
        "Two boxes that miss each other in x and in y have two negative sides, whose product is positive: clamp each "
        "side at 0 before you multiply": lambda: _iou_like(a, b, clamp=False),
        "You divide by the smaller box: that is another measure; IoU divides by the union": lambda: _iou_like(
            a, b, joint="smaller"
        ),
        "x and y seem to be swapped in one of the two arguments": lambda: _iou_like(a[:, [1, 0, 3, 2]], b),
        "Rows and columns are swapped: row i is the i-th of the first argument": lambda: _iou_like(b, a),
    }


def hand_numbers(iou) -> None:
    a, b = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]])
    say = "the IoU of [0, 0, 2, 1] and [1, 0, 3, 1], which share 1 of 3 pixels"
    expect_close(iou(a, b), torch.tensor([[1 / 3]]), say, _iou_mistakes(a, b))
    one = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    expect_close(iou(one, one), torch.ones(1, 1), "a pixel with itself", _iou_mistakes(one, one))


def boxes_that_miss_each_other(iou) -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[5.0, 0.0, 7.0, 2.0], [0.0, 5.0, 2.0, 7.0], [5.0, 5.0, 7.0, 7.0], [2.0, 0.0, 4.0, 2.0]])
    say = "boxes to the right, below, to the right and below, and touching"
    expect_close(iou(a, b), torch.zeros(1, 4), say, _iou_mistakes(a, b))


def every_pair(iou) -> None:
    a, b = some_boxes(3, 0), some_boxes(5, 1)
    got = iou(a, b)
    with teacher("Every box of the first argument meets every one of the second: a[:, None] against b[None]"):
        expect_tensor(got, (3, 5))
    expect_close(got, box_iou(a, b), "3 boxes against 5", _iou_mistakes(a, b))


def symmetric(iou) -> None:
    a, b = some_boxes(4, 2), some_boxes(6, 3)
    expect_close(iou(b, a), iou(a, b).T, "iou(b, a) beside iou(a, b), transposed", _iou_mistakes(b, a))


def another_scale_another_place(iou) -> None:
    a, b = some_boxes(4, 4), some_boxes(4, 5)
    wanted = iou(a, b)
    expect_close(
        iou(a * 3, b * 3), wanted, "all boxes 3 times as large", {PLUS_ONE: lambda: _iou_like(a * 3, b * 3, 1.0)}
    )
    expect_close(iou(a + 50, b + 50), wanted, "all boxes moved by 50 pixels")


def no_boxes(iou) -> None:
    none, b = torch.zeros(0, 4), some_boxes(5, 6)
    with teacher("An image without objects is an ordinary image: no loop, no special case is needed for it"):
        expect_tensor(iou(none, b), (0, 5))
        expect_tensor(iou(b, none), (5, 0))


def random_boxes_against_the_package(iou) -> None:
    for seed in range(10, 20):
        a, b = some_boxes(seed, seed), some_boxes(7, seed + 100)
        expect_close(iou(a, b), box_iou(a, b), f"{seed} boxes against 7", _iou_mistakes(a, b))


@check(
    hand_numbers, boxes_that_miss_each_other, every_pair, symmetric, another_scale_another_place, no_boxes,
    random_boxes_against_the_package,
)  # fmt: skip
def check_iou(student) -> None:
    """IoU of every pair: (A, 4) and (B, 4) xyxy -> (A, B)."""
