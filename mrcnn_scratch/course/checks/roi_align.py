"""Check of notebook 08: `my_roi_align`."""

from functools import partial

import torch
from torch import Tensor

from .kit import check, expect_tensor, teacher
from .roi_cases import distinct, expect_case, expect_same_precision, some_rois
from .roi_reads import COUNT, WAYS_TO_ERR, packages, reads


def _forward(features: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("rpqyx,cyx->rcpq", table, features.double())


def _align_like(features, boxes, size, scale, n, only=None, **way) -> Tensor:
    return _forward(features, reads(boxes, size, tuple(features.shape[1:]), scale, only or n, **way))


ALIGN_WAYS = {
    **{hint: partial(_align_like, **way) for hint, way in WAYS_TO_ERR.items()},
    **{COUNT.format(m): partial(_align_like, only=m) for m in (1, 2, 4)},
    "This is the largest sample of each bin; the mean is wanted": lambda *case: packages(*case, reduce="max"),
}
ALIGN_PROBES = [
    (distinct(2, 7, 11, 90), some_rois(6, 91), (2, 3), 1 / 16, 2),
    (distinct(1, 7, 11, 92), torch.tensor([[1.0, 1.0, 5.0, 4.0], [-2.0, 2.0, 9.0, 6.0]]), (2, 2), 1 / 4, 3),
]


def _expect_align(align, features, boxes, size, scale, n, say) -> None:
    case = features, boxes, size, scale, n
    expect_case(align, case, packages(*case), say, ALIGN_WAYS, ALIGN_PROBES)


def the_ramp_of_Detectron2(align) -> None:
    ramp, box = torch.arange(25.0).view(1, 5, 5), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    wanted = torch.tensor([4.5, 7.0, 9.5, 12.0])[:, None] + torch.tensor([0.0, 0.5, 1.0, 1.5])
    say = "arange(25) in rows of 5, the box [1, 1, 3, 3] in 4 x 4 bins, which begins 4.5, 5.0, 5.5, 6.0"
    expect_case(align, (ramp, box, (4, 4), 1.0, 2), wanted[None, None], say, ALIGN_WAYS, ALIGN_PROBES)


def a_slope_in_image_pixels(align) -> None:
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(11.0), indexing="ij")
    slope = (100 * (rows + 0.5) + (columns + 0.5)).double()[None]  # what it holds at each centre, in cells
    boxes = torch.tensor([[33.0, 20.0, 97.0, 61.0], [41.5, 17.0, 59.0, 90.0]])
    _expect_align(align, slope, boxes, (2, 3), 1 / 16, 2, "100 * y + x in cells, at stride 16, in 2 x 3 bins")


def one_sample_or_three(align) -> None:
    features, boxes = distinct(1, 7, 11, 0), torch.tensor([[40.0, 17.0, 121.0, 66.0]])
    for n in (1, 3):
        _expect_align(align, features, boxes, (2, 3), 1 / 16, n, f"2 x 3 bins of {n} x {n} samples")


def the_features_of_four_cells(align) -> None:
    features, boxes = distinct(1, 7, 11, 1), torch.tensor([[37.0, 21.0, 83.0, 47.0]])
    _expect_align(align, features, boxes, (2, 2), 1 / 16, 2, "2 x 2 bins on features without any order")


def smaller_than_a_cell(align) -> None:
    features, boxes = distinct(1, 7, 11, 2), torch.tensor([[50.0, 35.0, 55.0, 44.0]])
    _expect_align(align, features, boxes, (2, 2), 1 / 16, 2, "a RoI of 5 x 9 pixels at stride 16")


def over_the_border_and_off_the_map(align) -> None:
    features = distinct(2, 5, 8, 3)
    boxes = {
        "over the left and the upper border": [-10.0, -6.0, 13.0, 9.0],
        "over the right and the lower border": [21.0, 11.0, 45.0, 30.0],
        "far off the map": [60.0, 40.0, 80.0, 50.0],
    }
    for where, box in boxes.items():
        _expect_align(align, features, torch.tensor([box]), (3, 3), 1 / 4, 2, f"a RoI {where}")


def several_RoIs_and_channels(align) -> None:
    features, boxes = distinct(3, 7, 11, 4), some_rois(4, 5)
    with teacher("R RoIs of C channels in h x w bins: (R, C, h, w)"):
        expect_tensor(align(features, boxes, (2, 3), 1 / 16, 2), (4, 3, 2, 3))
    _expect_align(align, features, boxes, (2, 3), 1 / 16, 2, "4 RoIs, 3 channels")


def float64_stays_float64(align) -> None:
    features, box = distinct(2, 5, 8, 8), torch.tensor([[3.0, 2.0, 19.0, 11.0]])  # float64
    expect_same_precision(align(features, box, (2, 3), 1 / 4, 2), features, "features")


def no_RoIs(align) -> None:
    with teacher("An image without RoIs is an ordinary image"):
        expect_tensor(align(distinct(2, 5, 8, 7), torch.zeros(0, 4), (2, 3), 1 / 4, 2), (0, 2, 2, 3))


def random_RoIs_against_the_package(align) -> None:
    for seed, size, stride, n in ((10, (2, 2), 16, 2), (11, (3, 2), 16, 1), (12, (1, 3), 8, 3), (13, (2, 3), 4, 2)):
        features, boxes = distinct(2, 112 // stride, 176 // stride, seed), some_rois(4, seed)
        _expect_align(align, features, boxes, size, 1 / stride, n, f"4 RoIs at stride {stride}, {n} x {n} samples")


@check(
    the_ramp_of_Detectron2, a_slope_in_image_pixels, one_sample_or_three, the_features_of_four_cells,
    smaller_than_a_cell, over_the_border_and_off_the_map, several_RoIs_and_channels,
    float64_stays_float64, no_RoIs, random_RoIs_against_the_package,
)  # fmt: skip
def check_roi_align(student) -> None:
    """RoIAlign of one image: (C, H, W), (R, 4) xyxy in pixels -> (R, C, h, w)."""
