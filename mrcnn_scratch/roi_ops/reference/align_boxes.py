"""The gradient that a box receives from RoIAlign or RoIWarp: where would it have to move for its outputs to change?

The chain has two links. An output is a mean of samples (or one sample, the largest), and a sample is a weighted sum
of four cells, so its value changes with its place (y, x) as the weights do:

    dvalue/dx = sum over the four cells of dweight/dx * feature                                      `bilinear_slopes`

A sample's place is v = start + t * size along each axis, where t says how far along the RoI it lies. With the corners
in pixels, start = scale * low + constant and size = scale * (high - low) + constant, so

    dv/dlow = scale * (1 - t)        dv/dhigh = scale * t                                            `corner_slopes`

A sample at the low edge moves with the low corner alone, one in the middle moves half as far as either corner.

By hand: the ramp `arange(25)` in rows of 5 rises by 1 a column and by 5 a row. Pool the box [1, 1, 3, 3] into 1 bin of
2 x 2 samples: they lie at t = 1/4 and 3/4, so a corner that moves by a pixel moves them by half a cell on average, and
the gradient by the box is [1/2, 5/2, 1/2, 5/2]: on a ramp the mean is the value at the middle of the box.

Rounding, in RoIWarp, has the derivative 0 or none. As in MNC the gradient is passed straight through it: the corners
receive what the rounded region's would. How many samples an adaptive bin has counts as a constant.
"""

import numpy as np

from .sampling import align_region, axis_samples, counts, neighbours


def axis_slope(v: float, length: int) -> int:
    """1 where the value follows v, 0 where v was clamped to an outermost cell.

    The value has a kink at the centre of a cell: there it is the slope towards the next cell, as `neighbours` looks.
    """
    return int(0 < v < length - 1)


def bilinear_slopes(y, x, H, W, convention) -> list[tuple[int, int, float, float]]:
    """The four cells around a point and how their weights change with it: (row, column, dweight/dy, dweight/dx).

    The weight (1 - fy) * (1 - fx) of the cell at the top left changes by -(1 - fx) with y and by -(1 - fy) with x.
    """
    if not (counts(y, H, convention) and counts(x, W, convention)):
        return []
    top, bottom, fy = neighbours(y, H)
    left, right, fx = neighbours(x, W)
    dy, dx = axis_slope(y, H), axis_slope(x, W)
    return [
        (top, left, -(1 - fx) * dy, -(1 - fy) * dx),
        (top, right, -fx * dy, (1 - fy) * dx),
        (bottom, left, (1 - fx) * dy, -fy * dx),
        (bottom, right, fx * dy, fy * dx),
    ]


def corner_slopes(low, high, t, spatial_scale, convention) -> tuple[float, float]:
    """How far a sample moves along one axis, in cells, for each pixel that the low and the high corner move.

    Where the size is held at one cell the RoI moves as a whole, with its low corner.
    """
    _, _, free = align_region(low, high, spatial_scale, convention)
    return (spatial_scale * (1 - t), spatial_scale * t) if free else (spatial_scale, 0.0)


def bin_slopes(box, p, q, output_size, size, spatial_scale, sampling_ratio, convention) -> list[tuple]:
    """The samples of bin (p, q) of a box [x1, y1, x2, y2], in reading order, as (cells, by_corner):

    cells: list of (row, column, dweight/dy, dweight/dx); by_corner: [dx/dx1, dy/dy1, dx/dx2, dy/dy2] of the sample.
    """
    (x1, y1, x2, y2), (h, w), (H, W) = box, output_size, size
    slopes = []
    for y, ty in axis_samples(y1, y2, h, p, spatial_scale, sampling_ratio, convention):
        for x, tx in axis_samples(x1, x2, w, q, spatial_scale, sampling_ratio, convention):
            dy1, dy2 = corner_slopes(y1, y2, ty, spatial_scale, convention)
            dx1, dx2 = corner_slopes(x1, x2, tx, spatial_scale, convention)
            slopes.append((bilinear_slopes(y, x, H, W, convention), np.array([dx1, dy1, dx2, dy2])))
    return slopes


def roi_align_boxes_backward(grad, features, boxes, spatial_scale, sampling_ratio, convention) -> np.ndarray:
    """The gradient by the boxes of the mean: grad (R, C, h, w), features (N, C, H, W) -> (R, 5), its batch column 0."""
    (H, W), (h, w) = features.shape[2:], grad.shape[2:]
    out = np.zeros(boxes.shape, boxes.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_slopes(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for cells, by_corner in samples:
                    for y, x, by_y, by_x in cells:
                        along = grad[r, :, p, q] @ features[int(n), :, y, x] / len(samples)  # summed over the channels
                        out[r, 1:] += along * np.array([by_x, by_y, by_x, by_y]) * by_corner
    return out


def roi_align_max_boxes_backward(
    grad, winner, features, boxes, spatial_scale, sampling_ratio, convention
) -> np.ndarray:
    """The same for the maximum: winner (R, C, h, w) says which sample's place matters, -1 for none."""
    (C, H, W), (h, w) = features.shape[1:], grad.shape[2:]
    out = np.zeros(boxes.shape, boxes.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_slopes(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for c in range(C):
                    if winner[r, c, p, q] >= 0:
                        cells, by_corner = samples[winner[r, c, p, q]]
                        for y, x, by_y, by_x in cells:
                            along = grad[r, c, p, q] * features[int(n), c, y, x]
                            out[r, 1:] += along * np.array([by_x, by_y, by_x, by_y]) * by_corner
    return out
