"""RoIPool, RoIWarp and RoIAlign in plain loops, forward and backward: slow, and meant to be read.

Every function takes NumPy arrays: features (N, C, H, W), boxes (R, 5) [batch index, x1, y1, x2, y2] in image pixels.
Two coordinate systems meet here. *Continuous*: cell i covers [i, i + 1), its centre is at i + 0.5. *Index*: the centre
of cell i is at i, which is what interpolation wants. index = continuous - 0.5.
"""

import math

import numpy as np


def bilinear(y: float, x: float, H: int, W: int) -> list[tuple[int, int, float]]:
    """The up to four cells around a point in index space and their weights, as (row, column, weight).

    Halfway between the centres of cells (0, 0) and (0, 1): `bilinear(0, 0.5, 2, 2)` weighs both with 0.5. A point
    in the outer half of an edge cell, or up to half a cell off the map, takes that cell's value; one further off has
    no cells: its value is 0. (Spatial Transformer Networks, eq. 5, with RoIAlign's rule for the border.)
    """
    if y < -1 or y > H or x < -1 or x > W:
        return []
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    fy, fx = y - top, x - left
    return [
        (top, left, (1 - fy) * (1 - fx)),
        (top, right, (1 - fy) * fx),
        (bottom, left, fy * (1 - fx)),
        (bottom, right, fy * fx),
    ]


def round_half_away(x: float) -> int:
    """C's `round`: 0.5 -> 1 and -0.5 -> -1. Python's own rounds halves to the even neighbour."""
    whole = math.floor(abs(x))
    whole += abs(x) - whole >= 0.5
    return whole if x >= 0 else -whole


def align_region(low: float, high: float, spatial_scale: float, convention: str) -> tuple[float, float]:
    """Start and size of a RoI along one axis, in index space. low, high: x1, x2 or y1, y2 in image pixels.

    "aligned": [32, 80] at stride 16 is 2.0 to 5.0 continuous, so it starts at index 1.5 and is 3 cells long.
    "legacy": the 0.5 is forgotten, start 2.0; and a RoI is at least one cell long.
    "warp": cells 2 to 5 inclusive, as RoIPool rounds: start 1.5, 4 cells long.
    """
    low, high = low * spatial_scale, high * spatial_scale
    if convention == "aligned":
        return low - 0.5, high - low
    if convention == "legacy":
        return low, max(high - low, 1)
    first, last = round_half_away(low), round_half_away(high)
    return first - 0.5, max(last - first + 1, 1)


def align_samples(box, p, q, output_size, size, spatial_scale, sampling_ratio, convention) -> list[list[tuple]]:
    """The samples of bin (p, q) of one RoI, in reading order; each is a list of (row, column, weight)."""
    (h, w), (H, W) = output_size, size
    start_y, size_y = align_region(box[1], box[3], spatial_scale, convention)
    start_x, size_x = align_region(box[0], box[2], spatial_scale, convention)
    bin_y, bin_x = size_y / h, size_x / w
    ny = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_y)
    nx = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_x)
    samples = []
    for i in range(ny):
        for j in range(nx):
            y = start_y + p * bin_y + (i + 0.5) * bin_y / ny
            x = start_x + q * bin_x + (j + 0.5) * bin_x / nx
            samples.append(bilinear(y, x, H, W))
    return samples


def roi_align_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> np.ndarray:
    """RoIAlign: each bin is the mean of its samples (Mask R-CNN, section 3) -> (R, C, h, w)."""
    (C, H, W), (h, w) = features.shape[1:], output_size
    out = np.zeros((len(boxes), C, h, w), features.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = align_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for sample in samples:
                    for y, x, weight in sample:
                        out[r, :, p, q] += features[int(n), :, y, x] * weight / len(samples)
    return out


def roi_align_backward(grad, boxes, shape, output_size, spatial_scale, sampling_ratio, convention) -> np.ndarray:
    """The gradient with respect to the features: what the forward read with a weight receives with that weight.

    The forward is a weighted sum, out[r, p, q] = sum over cells of weight * features, so the derivative of out[r, p, q]
    by a cell is that weight, whatever the features hold: grad (R, C, h, w) -> (N, C, H, W).
    """
    (H, W), (h, w) = shape[2:], output_size
    out = np.zeros(shape, grad.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = align_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for sample in samples:
                    for y, x, weight in sample:
                        out[int(n), :, y, x] += grad[r, :, p, q] * weight / len(samples)
    return out


def roi_align_max_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention):
    """RoIAlign with the largest sample instead of the mean -> (R, C, h, w), and which sample won (-1: none)."""
    (C, H, W), (h, w) = features.shape[1:], output_size
    out = np.zeros((len(boxes), C, h, w), features.dtype)
    winner = np.full(out.shape, -1, np.int32)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = align_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for c in range(C):
                    values = [sum(features[int(n), c, y, x] * weight for y, x, weight in s) for s in samples]
                    if values:
                        winner[r, c, p, q] = np.argmax(values)  # the first, if several are equal
                        out[r, c, p, q] = max(values)
    return out, winner


def roi_align_max_backward(
    grad, winner, boxes, shape, output_size, spatial_scale, sampling_ratio, convention
) -> np.ndarray:
    """Only the sample that won receives the gradient, spread over its four cells."""
    (C, H, W), (h, w) = shape[1:], output_size
    out = np.zeros(shape, grad.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = align_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for c in range(C):
                    if winner[r, c, p, q] >= 0:
                        for y, x, weight in samples[winner[r, c, p, q]]:
                            out[int(n), c, y, x] += grad[r, c, p, q] * weight
    return out


def pool_bins(low: float, high: float, bins: int, spatial_scale: float, length: int) -> list[range]:
    """RoIPool's bins along one axis, as ranges of whole cells, cut off at the map.

    Corners 1 and 3 are cells 1, 2, 3: the end is *inclusive*. Two bins of 1.5 cells: floor and ceil make them
    range(1, 3) and range(2, 4), which share cell 2.
    """
    first, last = round_half_away(low * spatial_scale), round_half_away(high * spatial_scale)
    bin_size = max(last - first + 1, 1) / bins
    ranges = []
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


def roi_pool_backward(grad, winner, boxes, shape) -> np.ndarray:
    """Fast R-CNN, eq. 4: a cell collects the gradients of all the bins that it won."""
    W = shape[3]
    out = np.zeros(shape, grad.dtype)
    for r, c, p, q in np.ndindex(grad.shape):
        cell = winner[r, c, p, q]
        if cell >= 0:
            out[int(boxes[r, 0]), c, cell // W, cell % W] += grad[r, c, p, q]
    return out
