"""What a RoI of RoIAlign reads, as a table: right, and in the ways that are known to be wrong."""

import torch
from torch import Tensor

from ...roi_ops import roi_align
from ...roi_ops.reference import round_half_away
from .bilinear import evenly, four_cells, turned


def _axis(low, high, scale, region) -> tuple[float, float]:
    """Start and size of a RoI along one axis, in cells whose centres are whole numbers."""
    if region == "early":
        return (low - 0.5) * scale, (high - low) * scale
    low, high = (low, high) if region == "unscaled" else (low * scale, high * scale)
    if region == "rounded":
        low, high = round_half_away(low), round_half_away(high) + 1
    size = high - low
    return (low if region.startswith("legacy") else low - 0.5), max(size, 1) if "one cell" in region else size


def reads(
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
WAYS_TO_ERR = {  # hint -> what to change in reads
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
