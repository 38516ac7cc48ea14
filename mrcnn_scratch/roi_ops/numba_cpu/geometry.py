"""Where the samples of each RoI lie, and which cells a bin averages with which weights.

No fastmath here: every operation is rounded to the boxes' own precision in the order in which torch and torchvision
round it, or a sample would land on the other side of the border rule's edge.
"""

import math

import numpy as np
from torch import Tensor

from ..._numba import compiled

CONVENTIONS = {"aligned": 0, "legacy": 1, "warp": 2, "mnc": 3}
ALIGNED, LEGACY, WARP, MNC = 0, 1, 2, 3


@compiled
def round_half_away(x):
    """C's `round`: 0.5 -> 1 and -0.5 -> -1."""
    size = abs(x)
    whole = math.floor(size)
    whole += 1 if size - whole >= 0.5 else 0
    return whole if x >= 0 else -whole


@compiled
def _place_axis(boxes, low_column, scale, bins, ratio, convention, axis, start, bin_size, grid, free):
    T = boxes.dtype.type
    for r in range(len(boxes)):
        low, high = T(boxes[r, low_column] * T(scale)), T(boxes[r, low_column + 2] * T(scale))
        if convention == WARP or convention == MNC:
            low, high = T(round_half_away(low)), T(round_half_away(high))
        size = T(high - low)
        if convention == ALIGNED:
            size = T(T(high - T(0.5)) - T(low - T(0.5)))
        elif convention != LEGACY:
            size = T(size + T(1))
        free[r, axis] = convention == ALIGNED or size >= 1
        if convention != ALIGNED and size < 1:
            size = T(1)
        start[r, axis] = T(low - T(0.5)) if convention == ALIGNED or convention == WARP else low
        bin_size[r, axis] = T(size / T(bins))
        grid[r, axis] = ratio if ratio > 0 else max(math.ceil(bin_size[r, axis]), 0)


@compiled
def _place(boxes, scale, h, w, ratio, convention, batch, start, bin_size, grid, free):
    for r in range(len(boxes)):
        batch[r] = int(boxes[r, 0])
    _place_axis(boxes, 2, scale, h, ratio, convention, 0, start, bin_size, grid, free)
    _place_axis(boxes, 1, scale, w, ratio, convention, 1, start, bin_size, grid, free)


def place(boxes: Tensor, output_size, spatial_scale: float, sampling_ratio: int, convention: str):
    """boxes (R, 5) -> the tuple that every kernel takes, each axis as [y, x]:

    batch (R,) int64; start (R, 2), bin size (R, 2) in cells; grid (R, 2) int64, samples per bin; free (R, 2) bool,
    False where the size of the RoI is held at one cell; corner: samples lie at the corner of their part of a bin (MNC).
    """
    boxes, R = boxes.detach().contiguous().numpy(), len(boxes)
    batch, grid, free = np.empty(R, np.int64), np.empty((R, 2), np.int64), np.empty((R, 2), np.bool_)
    start, bin_size = np.empty((R, 2), boxes.dtype), np.empty((R, 2), boxes.dtype)
    code = CONVENTIONS[convention]
    _place(boxes, spatial_scale, *output_size, sampling_ratio, code, batch, start, bin_size, grid, free)
    return batch, start, bin_size, grid, free, code == MNC


def visiting_order(places, output_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(R,) RoIs by image, strips of 16 rows, and from left to right: what one has read, the next finds in the cache."""
    batch, start, bin_size = places[:3]
    if len(batch) < 32:
        return np.arange(len(batch))
    centre = start + bin_size * (np.array(output_size) / 2)
    y, x = np.clip(centre[:, 0], 0, size[0] - 1), np.clip(centre[:, 1], 0, size[1] - 1)
    strips = size[0] // 16 + 1
    return np.argsort((batch * strips + y.astype(np.int64) // 16) * size[1] + x.astype(np.int64), kind="stable")


@compiled
def _touched(batch, start, bin_size, h, H, W, first, last):
    for r in range(len(batch)):
        n, one, other = batch[r], start[r, 0], start[r, 0] + h * bin_size[r, 0]  # a RoI may be upside down
        first[n] = min(first[n], int(min(max(min(one, other) - 1, 0), H)) * W)
        last[n] = max(last[n], int(min(max(max(one, other) + 2, 0), H - 1) + 1) * W)


def touched_rows(places, output_size: tuple[int, int], size: tuple[int, int], images: int):
    """first and last (images,): the cells first[n]..last[n]-1 of each image hold all that its RoIs read; whole rows."""
    H, W = size
    first, last = np.full(images, H * W), np.zeros(images, np.int64)
    _touched(*places[:3], output_size[0], H, W, first, last)
    return np.minimum(first, last), last


@compiled
def sample(start, bin_size, r, axis, p, i, grid, length, corner):
    """Sample i of bin p along one axis: (inside, cell, fraction towards the next cell, slope).

    slope is 1 where the value follows the place of the sample, and 0 where the sample is off the map or clamped.
    """
    T = start.dtype.type
    bin_ = bin_size[r, axis]
    offset = 0.0 if corner else 0.5
    x = T(T(start[r, axis] + T(p * bin_)) + T(T((i + offset) * bin_) / grid))
    inside = (x > -0.5 and x < length - 0.5) if corner else (x >= -1.0 and x <= length)
    if not inside:
        return False, 0, T(0), T(0)
    if x <= 0:
        return True, 0, T(0), T(0)
    cell = int(x)
    if cell >= length - 1:
        return True, length - 1, T(0), T(0)
    return True, cell, T(x - cell), T(1)


@compiled
def find_or_add(cells, used, cell):
    """The place of a cell in cells[:used], looked for among the last two, and how many are used now."""
    if used > 0 and cells[used - 1] == cell:
        return used - 1, used
    if used > 1 and cells[used - 2] == cell:
        return used - 2, used
    cells[used] = cell
    return used, used + 1


@compiled
def add_weight(index, weights, p, n, k, weight):
    """Add a weight for the RoI's k-th cell to bin p, which has n entries so far; returns how many it has now."""
    if n > 0 and index[p, n - 1] == k:
        weights[p, n - 1] += weight
    elif n > 1 and index[p, n - 2] == k:
        weights[p, n - 2] += weight
    else:
        index[p, n], weights[p, n] = k, weight
        n += 1
    return n


@compiled
def axis_entries(places, r, axis, length, counts, index, weights, cells):
    """One axis of RoI r, for the mean: the distinct cells that it reads, and for each bin which of them count how much.

    Fills cells[:used]; per bin p, counts[p] entries: index[p] into cells, and weights[p], which average the samples.
    Counts are even, since the loops take entries in pairs. Returns used.
    """
    _, start, bin_size, grids, _, corner = places
    grid, used = grids[r, axis], 0
    for p in range(len(counts)):
        n = 0
        for i in range(grid):
            inside, cell, fraction, _ = sample(start, bin_size, r, axis, p, i, grid, length, corner)
            if not inside:
                continue
            k, used = find_or_add(cells, used, cell)
            n = add_weight(index, weights, p, n, k, (1 - fraction) / grid)
            if fraction > 0:
                k, used = find_or_add(cells, used, cell + 1)
                n = add_weight(index, weights, p, n, k, fraction / grid)
        if n % 2 == 1:
            index[p, n], weights[p, n] = index[p, n - 1], 0
            n += 1
        counts[p] = n
    return used


@compiled
def entry_arrays(like, bins, grid):
    """Room for `axis_entries`: counts, index, weights, cells."""
    capacity = max(2, 2 * grid)
    weights = np.empty((bins, capacity), like.dtype)
    return np.empty(bins, np.int64), np.empty((bins, capacity), np.int64), weights, np.empty(bins * capacity, np.int64)


@compiled
def largest_grid(grid):
    most = 1
    for r in range(len(grid)):
        most = max(most, grid[r, 0], grid[r, 1])
    return most
