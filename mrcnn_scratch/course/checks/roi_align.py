"""Checks of notebook 08: `my_roi_align`, `my_roi_align_backward`; that of `my_bilinear` is in `bilinear.py`."""

from functools import partial

import torch
from torch import Tensor

from ...roi_ops import roi_align
from ...roi_ops.reference import round_half_away
from .bilinear import evenly, four_cells, turned
from .kit import check, expect_close, expect_tensor, teacher
from .roi_cases import distinct, expect_case, some_rois

# ---- what a RoI reads, as a table


def _axis(low, high, scale, region) -> tuple[float, float]:
    """Start and size of a RoI along one axis, in cells whose centres are whole numbers."""
    if region == "early":
        return (low - 0.5) * scale, (high - low) * scale
    low, high = (low, high) if region == "unscaled" else (low * scale, high * scale)
    if region == "rounded":
        low, high = round_half_away(low), round_half_away(high) + 1
    size = high - low
    return (low if region.startswith("legacy") else low - 0.5), max(size, 1) if "one cell" in region else size


def _reads(
    boxes, size, map_size, scale, n, region="aligned", offset=0.5, cells=four_cells, count="all", ends=False
) -> Tensor:
    """(R, h, w, H, W): how much each output reads of each cell. RoIAlign is this table times the features."""
    (h, w), (H, W) = size, map_size
    table = torch.zeros(len(boxes), h, w, H, W, dtype=torch.float64)

    def place(start, length, p, i, bins):
        step = length / bins
        return start + p * step + ((i / (n - 1) if n > 1 else 0.5) if ends else (i + offset) / n) * step

    for r, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
        if region == "swapped":
            x1, y1, x2, y2 = y1, x1, y2, x2
        (y0, tall), (x0, wide) = _axis(y1, y2, scale, region), _axis(x1, x2, scale, region)
        for p in range(h):
            for q in range(w):
                samples = [
                    cells(place(y0, tall, p, i, h), place(x0, wide, q, j, w), H, W) for i in range(n) for j in range(n)
                ]
                kept = {"all": n * n, "sum": 1, "on the map": max(1, sum(map(bool, samples)))}[count]
                for row, column, weight in (cell for sample in samples for cell in sample):
                    table[r, p, q, row, column] += weight / kept
    return table


def _nearest(y, x, H, W) -> list[tuple]:
    return four_cells(y, x, H, W, nearest=True)


def _everywhere(y, x, H, W) -> list[tuple]:
    return four_cells(y, x, H, W, border=False)


HALF = (
    "These are the numbers without the half cell. The centre of cell 0 lies at 0.5: what is at x, in cells, is read at "
    "x - 0.5"
)
WAYS_TO_ERR = {  # hint -> what to change in _reads
    HALF: {"region": "legacy"},
    HALF + ". And a RoI need not be a cell large": {"region": "legacy, one cell at least"},
    "The corners are rounded, or the region ends a cell late: that is RoIWarp. RoIAlign rounds nothing": {
        "region": "rounded"
    },
    "The half is taken off in pixels, before scaling: it is half a cell. Scale first": {"region": "early"},
    "The boxes seem not to be scaled: they are in pixels, the map has cells": {"region": "unscaled"},
    "x and y of the boxes are swapped": {"region": "swapped"},
    "Each of a bin's parts is read at its beginning; it is read at its middle": {"offset": 0.0},
    "The samples lie on the borders of the bin; they lie in the middle of its equal parts": {"ends": True},
    "The samples of a bin are added up: their mean is wanted": {"count": "sum"},
    "A sample off the map is a 0 that counts: divide by all samples, not by those on the map": {"count": "on the map"},
    "Only the nearest cell of each sample is used": {"cells": _nearest},
    "The four cells of a sample do not weigh a quarter each": {"cells": evenly},
    "The near and the far cell have changed their weights": {"cells": turned},
    "A sample more than a cell beyond the outermost centre is off the map: nothing is read there, and nothing is sent "
    "there": {"cells": _everywhere},
}


COUNT = "These are the numbers of {0} x {0} samples in each bin, whatever sampling_ratio says"


def packages(features: Tensor, boxes: Tensor, size, scale, n=2, **options) -> Tensor:
    """The package's RoIAlign of one image: (C, H, W), (R, 4) -> (R, C, h, w)."""
    return roi_align(features[None], [boxes.to(features.dtype)], size, scale, n, **options)


# ---- forward


def _forward(features: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("rpqyx,cyx->rcpq", table, features.double())


def _align_like(features, boxes, size, scale, n, only=None, **way) -> Tensor:
    return _forward(features, _reads(boxes, size, tuple(features.shape[1:]), scale, only or n, **way))


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


def no_RoIs(align) -> None:
    with teacher("An image without RoIs is an ordinary image"):
        expect_tensor(align(distinct(2, 5, 8, 7), torch.zeros(0, 4), (2, 3), 1 / 4, 2), (0, 2, 2, 3))


def random_RoIs_against_the_package(align) -> None:
    for seed, size, stride, n in ((10, (2, 2), 16, 2), (11, (3, 2), 16, 1), (12, (1, 3), 8, 3), (13, (2, 3), 4, 2)):
        features, boxes = distinct(2, 112 // stride, 176 // stride, seed), some_rois(4, seed)
        _expect_align(align, features, boxes, size, 1 / stride, n, f"4 RoIs at stride {stride}, {n} x {n} samples")


@check(
    the_ramp_of_Detectron2, a_slope_in_image_pixels, one_sample_or_three, the_features_of_four_cells,
    smaller_than_a_cell, over_the_border_and_off_the_map, several_RoIs_and_channels, no_RoIs,
    random_RoIs_against_the_package,
)  # fmt: skip
def check_roi_align(student) -> None:
    """RoIAlign of one image: (C, H, W), (R, 4) xyxy in pixels -> (R, C, h, w)."""


# ---- backward


def _backward(grad: Tensor, table: Tensor) -> Tensor:
    return torch.einsum("rcpq,rpqyx->cyx", grad.double(), table)


def _back_like(grad, boxes, map_size, scale, n, only=None, **way) -> Tensor:
    return _backward(grad, _reads(boxes, tuple(grad.shape[2:]), map_size, scale, only or n, **way))


def _overwritten(grad, boxes, map_size, scale, n) -> Tensor:
    """A cell keeps what the last output that read it has sent, the shares of its samples added or not."""
    out = grad.new_zeros(grad.shape[1], *map_size, dtype=torch.float64)
    table = _reads(boxes, tuple(grad.shape[2:]), map_size, scale, n)
    for r, p, q, y, x in table.nonzero().tolist():
        out[:, y, x] = grad[r, :, p, q].double() * table[r, p, q, y, x]
    return out


BACK_WAYS = {
    **{hint: partial(_back_like, **way) for hint, way in WAYS_TO_ERR.items()},
    **{COUNT.format(m): partial(_back_like, only=m) for m in (1, 2, 4)},
    "A cell that several outputs have read receives the gradients of all of them, added: yours keeps the last": (
        _overwritten
    ),
    "Every RoI sends its gradients to the same map: the first RoI alone is not enough": lambda grad, boxes, *rest: (
        _back_like(grad[:1], boxes[:1], *rest)
    ),
    "Each channel receives its own gradients": lambda grad, *rest: _back_like(
        grad.sum(dim=1, keepdim=True).expand_as(grad), *rest
    ),
}


def _back_probe(seed: int) -> tuple:
    grad = torch.randn(4, 3, 2, 3, generator=torch.Generator().manual_seed(seed))
    return grad, some_rois(4, seed), (7, 11), 1 / 16, 2


BACK_PROBES = [_back_probe(95), (_back_probe(96)[0], ALIGN_PROBES[1][1].repeat(2, 1), (5, 8), 1 / 4, 3)]


def _expect_back(backward, grad, boxes, map_size, scale, n, say) -> None:
    case = grad, boxes, map_size, scale, n
    expect_case(backward, case, _back_like(*case), say, BACK_WAYS, BACK_PROBES)


def one_sample_on_four_cells(backward) -> None:
    box = torch.tensor([[16.0, 24.0, 40.0, 40.0]])  # its centre, (28, 32), is at index y = 1.5, x = 1.25 at stride 16
    say = "a gradient of 8 of one sample at y = 1.5, x = 1.25 (cells, their centres are whole numbers)"
    _expect_back(backward, torch.full((1, 1, 1, 1), 8.0), box, (3, 5), 1 / 16, 1, say)


def four_samples_of_one_output(backward) -> None:
    box = torch.tensor([[16.0, 4.0, 59.0, 37.0]])
    _expect_back(backward, torch.ones(1, 1, 1, 1), box, (3, 5), 1 / 16, 2, "a gradient of 1 of a bin of 2 x 2 samples")


def neighbours_share_cells(backward) -> None:
    grad, box = torch.arange(1.0, 7.0).view(1, 1, 2, 3), torch.tensor([[10.0, 6.0, 71.0, 40.0]])
    _expect_back(backward, grad, box, (3, 5), 1 / 16, 2, "the gradients 1 to 6 of 2 x 3 bins")


def nothing_is_lost_inside(backward) -> None:
    g = torch.Generator().manual_seed(0)
    grad, box = torch.rand(1, 2, 2, 2, generator=g), torch.tensor([[20.0, 18.0, 90.0, 60.0]])
    got = backward(grad, box, (7, 11), 1 / 16, 2)
    with teacher("The weights of a sample sum to 1, so what goes in comes out"):
        expect_close(got.sum(dim=(1, 2)), grad.sum(dim=(0, 2, 3)), "the sum of each channel")


def what_lies_off_the_map(backward) -> None:
    """The first release of `aligned` in torchvision had the backward clamp unlike the forward (vision#2438)."""
    for box in ([-10.0, -6.0, 13.0, 9.0], [21.0, 11.0, 45.0, 30.0], [60.0, 40.0, 80.0, 50.0]):
        grad, say = torch.arange(1.0, 10.0).view(1, 1, 3, 3), f"the box {box} on a map of 32 x 20 pixels"
        _expect_back(backward, grad, torch.tensor([box]), (5, 8), 1 / 4, 2, say)


def several_RoIs_and_channels_at_once(backward) -> None:
    _expect_back(backward, *_back_probe(5), "4 RoIs, 3 channels")


def the_adjoint_of_the_forward(backward) -> None:
    """RoIAlign is linear in its features: <grad, A features> = <backward(grad), features>, for any two of them."""
    g = torch.Generator().manual_seed(2)
    features, boxes = torch.randn(2, 7, 11, generator=g, dtype=torch.float64), some_rois(5, 6)
    out = packages(features, boxes, (2, 3), 1 / 16, 3)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    got = (backward(grad, boxes, (7, 11), 1 / 16, 3) * features).sum()
    with teacher("Forward and backward must read and write the same cells with the same weights"):
        expect_close(got, (grad * out).sum(), "sum of gradient * output, beside sum of feature * its gradient")


def no_outputs(backward) -> None:
    got = backward(torch.zeros(0, 2, 3, 3), torch.zeros(0, 4), (4, 5), 1 / 16, 2)
    expect_close(got, torch.zeros(2, 4, 5), "without RoIs the features receive zeros")


def the_gradient_of_the_package(backward) -> None:
    for seed, size, stride, n in ((20, (2, 2), 16, 2), (21, (3, 2), 16, 1), (22, (1, 3), 8, 2)):
        map_size, boxes = (112 // stride, 176 // stride), some_rois(4, seed)
        leaf = torch.zeros(2, *map_size, dtype=torch.float64, requires_grad=True)
        out = packages(leaf, boxes, size, 1 / stride, n)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        (wanted,) = torch.autograd.grad(out, leaf, grad)
        case, say = (grad, boxes, map_size, 1 / stride, n), f"4 RoIs at stride {stride}, {n} x {n} samples"
        expect_case(backward, case, wanted, say, BACK_WAYS, BACK_PROBES)


@check(
    one_sample_on_four_cells, four_samples_of_one_output, neighbours_share_cells, what_lies_off_the_map,
    several_RoIs_and_channels_at_once, nothing_is_lost_inside, the_adjoint_of_the_forward, no_outputs,
    the_gradient_of_the_package,
)  # fmt: skip
def check_roi_align_backward(student) -> None:
    """RoIAlign's gradient: (R, C, h, w), (R, 4), (H, W) -> (C, H, W)."""
