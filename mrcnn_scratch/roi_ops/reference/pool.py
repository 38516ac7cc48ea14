"""RoIPool: corners and bins rounded to whole cells, of which the largest counts."""

import math

import numpy as np

from .sampling import round_half_away


def pool_bins(low: float, high: float, bins: int, spatial_scale: float, length: int) -> list[range]:
    """RoIPool's bins along one axis, as ranges of whole cells, cut off at the map.

    Corners 1 and 3 are cells 1, 2, 3: the end is *inclusive*. Two bins of 1.5 cells: floor and ceil make them
    range(1, 3) and range(2, 4), which share cell 2.
    """
    first, last = round_half_away(low * spatial_scale), round_half_away(high * spatial_scale)
    bin_size = np.maximum(last - first + 1, 1) / bins
    first, ranges = int(first), []
    for p in range(bins):
        start, end = first + math.floor(p * bin_size), first + math.ceil((p + 1) * bin_size)
        ranges.append(range(min(max(start, 0), length), min(max(end, 0), length)))
    return ranges


def roi_pool_forward(features, boxes, output_size, spatial_scale) -> tuple[np.ndarray, np.ndarray]:
    """RoIPool: each bin is its largest cell (Fast R-CNN, section 2.1) -> out (R, C, h, w), and the cell y * W + x.

    A bin without cells gives 0 and the cell -1, also where every feature is negative.
    """
    (C, H, W), (h, w) = features.shape[1:], output_size
    out = np.zeros((len(boxes), C, h, w), features.dtype)
    winner = np.full(out.shape, -1, np.int32)
    for r, (n, x1, y1, x2, y2) in enumerate(boxes):
        for p, rows in enumerate(pool_bins(y1, y2, h, spatial_scale, H)):
            for q, columns in enumerate(pool_bins(x1, x2, w, spatial_scale, W)):
                for c in range(C):
                    for y in rows:
                        for x in columns:
                            value = features[int(n), c, y, x]
                            if winner[r, c, p, q] < 0 or value > out[r, c, p, q]:
                                out[r, c, p, q], winner[r, c, p, q] = value, y * W + x
    return out, winner


def roi_pool_backward(grad, winner, boxes, shape, channels_last) -> np.ndarray:
    """Fast R-CNN, eq. 4: a cell collects the gradients of all the bins that it won."""
    W = shape[3]
    out = np.zeros(shape, grad.dtype)
    for r, c, p, q in np.ndindex(grad.shape):
        cell = winner[r, c, p, q]
        if cell >= 0:
            out[int(boxes[r, 0]), c, cell // W, cell % W] += grad[r, c, p, q]
    return out
