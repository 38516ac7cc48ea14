"""Greedy NMS compiled for the CPU: a kept box looks only at the boxes near it.

Boxes are put into the cells of a grid by their centres, one grid per group, and the boxes of a row of cells lie side
by side in memory. Boxes are then taken best first; each one that is still there compares itself with the rows of cells
around it, sixteen boxes at a time and without a branch. To compare too many boxes costs time and changes nothing. To
miss one would be an error, so what "near" means is proved at `_reach`. One thread does it all: the result cannot depend
on how many there are, and a forked worker may call it.

All boxes share one cell if a stray one lies very far out: still right, but every kept box then meets every other.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ._numba import compiled, run

BLOCK = 16  # boxes compared at a time: two AVX2 registers of float32


def keep(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor | None:
    """The boxes that greedy NMS keeps.

    Args:
        boxes: (R, 4) float32 or float64 xyxy, on the CPU.
        scores: (R,) float.
        groups: (R,) integers; only boxes of one group suppress each other. None: all are one group.
        threshold: a number that the boxes' dtype can hold; an IoU above it suppresses.
    Returns: (D,) int64 indices, best first; None if boxes or scores are not all finite.
    """
    boxes = boxes.contiguous().numpy()
    scores = (scores if scores.dtype == torch.float64 else scores.float()).numpy()
    R, order = len(boxes), best_first(scores)
    if R and not (math.isfinite(scores[order[0]]) and math.isfinite(scores[order[-1]])):
        return None  # of sorted scores, infinities and NaN are the first or the last
    codes, count = _codes(groups.numpy()) if groups is not None and R else (np.zeros(R, np.int32), 1)
    kept, kind = np.empty(R + 1, np.int64), np.finfo(boxes.dtype)
    limits = kind.dtype.type(threshold), float(kind.tiny) * 1e8
    run(_sweep, None, 0, boxes, order, codes, count, *limits, kept)  # 0: there is no parallel variant
    return torch.from_numpy(kept[: kept[-1]]) if kept[-1] >= 0 else None


def best_first(scores: np.ndarray) -> np.ndarray:
    """(R,) float32 or float64 -> (R,) int64, the order of descending scores; equal ones stay in order.

    NumPy sorts whole numbers several times faster than anybody argsorts floats. So: the bits of a float32, made to
    ascend as its value descends, above the index of the box, which also settles ties.
    """
    if scores.dtype == np.float64:
        return np.argsort(-scores, kind="stable")
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0 is 0.0: the two are equal
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats: larger bits mean a smaller value
    keys = (~ascending).astype(np.int64) << 32 | np.arange(len(bits))
    keys.sort()
    return keys & 0xFFFFFFFF


def _codes(groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Any whole numbers -> (R,) int32 from 0, and how many: of the order of R, since each becomes a grid."""
    low, high = int(groups.min()), int(groups.max())
    if high - low > len(groups) + 100:  # a few holes cost less than a sort
        names, codes = np.unique(groups, return_inverse=True)
        return codes.astype(np.int32), len(names)
    return (groups - low).astype(np.int32), high - low + 1


@compiled(error_model="numpy")
def _finite(boxes):
    wrong = 0  # counted, not returned at once: without a branch this is SIMD
    for r in range(len(boxes)):
        for k in range(4):
            wrong += not abs(boxes[r, k]) < np.inf
    return wrong == 0


@compiled(error_model="numpy")
def _reach(boxes, threshold, smallest):
    """Boxes whose IoU exceeds the threshold t have centres at most reach * (width of either) apart, and so in y.

    On one axis let two intervals of sizes a and b share o, with centres d apart. An IoU above t > 0 needs
    o > t (a + b - o) on each axis, since the other axis can only lower the ratio. Also o <= (a + b) / 2 - d, so
    d <= (a + b - 2 o) / 2 < (1 - t) / (2 t) * o <= (1 - t) / (2 t) * a.

    Rounding: an IoU computed in float32 lies within 1e-6 of the true ratio, relatively, unless areas are so small that
    they lose digits. Then, or for t near 0, the answer is infinite: `_sweep` relies on overlap alone.
    """
    if threshold < 1e-3:
        return np.inf
    for r in range(len(boxes)):
        width, height = np.float64(boxes[r, 2] - boxes[r, 0]), np.float64(boxes[r, 3] - boxes[r, 1])
        if width > 0 and height > 0 and width * height < smallest:
            return np.inf
    t = threshold * (1 - 1e-5)
    return (1 - t) / (2 * t)


@compiled(error_model="numpy")
def _axis(boxes, axis):
    """On one axis, in float64: the lowest and the highest centre, the mean and the largest size."""
    low, high, total, largest = np.inf, -np.inf, 0.0, 0.0
    for r in range(len(boxes)):
        start, end = np.float64(boxes[r, axis]), np.float64(boxes[r, axis + 2])
        centre, size = 0.5 * start + 0.5 * end, max(end - start, 0.0)
        low, high, total, largest = min(low, centre), max(high, centre), total + size, max(largest, size)
    return low, high, total / len(boxes), largest


@compiled(error_model="numpy")
def _cells(length, size, most):
    """How many cells of a size cover a length: a float from 1 to most, 1 where the quotient is no number."""
    wanted = length / size
    return min(wanted, most) if wanted > 1 else 1.0


@compiled(error_model="numpy")
def _cell(centre, low, per_pixel, count):
    """The cell of a centre, 0 to count - 1. It never falls as the centre grows, even where that overflows."""
    place = (centre - low) * per_pixel
    if not place > 0:
        return 0
    return count - 1 if place >= count - 1 else int(place)


@compiled(error_model="numpy")
def _grid(boxes, reach, most):
    """Two tuples (x, y) for each of: lowest centre, cells per pixel, number of cells, largest size, slack in pixels."""
    left, right, width, widest = _axis(boxes, 0)
    top, bottom, height, highest = _axis(boxes, 1)
    near = min(reach, 1.0)
    columns = _cells(right - left, 0.25 * near * width, most)  # flat cells: a row of them is one run in memory
    rows = _cells(bottom - top, near * height, most)
    shrink = min(1.0, np.sqrt(most / (columns * rows)))
    columns, rows = max(int(columns * shrink), 1), max(int(rows * shrink), 1)
    across = columns / (right - left) if right > left else 0.0
    down = rows / (bottom - top) if bottom > top else 0.0
    slack = (2.0**-50 * max(abs(left), abs(right)) + 1e-300, 2.0**-50 * max(abs(top), abs(bottom)) + 1e-300)
    return (left, top), (across, down), (columns, rows), (widest, highest), slack


@compiled(error_model="numpy")
def _sort_into_cells(boxes, codes, count, low, per_pixel, shape):
    """Counting sort. -> end of each cell's boxes, the place of each box, and in that order [x1, y1, x2, y2, area]."""
    R, (columns, rows) = len(boxes), shape
    end, cell, place = np.zeros(count * columns * rows + 1, np.int32), np.empty(R, np.int32), np.empty(R, np.int32)
    for r in range(R):
        x = _cell(0.5 * np.float64(boxes[r, 0]) + 0.5 * np.float64(boxes[r, 2]), low[0], per_pixel[0], columns)
        y = _cell(0.5 * np.float64(boxes[r, 1]) + 0.5 * np.float64(boxes[r, 3]), low[1], per_pixel[1], rows)
        cell[r] = (codes[r] * rows + y) * columns + x
        end[cell[r] + 1] += 1
    for c in range(len(end) - 1):
        end[c + 1] += end[c]
    data, group = np.zeros((5, R + BLOCK), boxes.dtype), np.full(R + BLOCK, -1, np.int32)
    for r in range(R):
        p = end[cell[r]]
        end[cell[r]] += 1
        place[r], group[p] = p, codes[r]
        data[0, p], data[1, p], data[2, p], data[3, p] = boxes[r]
        data[4, p] = (boxes[r, 2] - boxes[r, 0]) * (boxes[r, 3] - boxes[r, 1])
    return end, place, data, group


@compiled(error_model="numpy")
def _suppress(data, group, mine, p, first, last, threshold):
    """Box p takes those of first..last that overlap it too much, and are of its group, out of their group.

    The last block may run over: then more boxes are compared. Boxes without area have no IoU: 0 / 0 exceeds nothing.
    """
    left, top, right, bottom, size = data[0, p], data[1, p], data[2, p], data[3, p], data[4, p]
    zero = data.dtype.type(0)
    for b in range(first, last, BLOCK):
        e = b + BLOCK  # views: for all the compiler knows, an index b + j could be negative, and that is no SIMD
        lefts, tops, rights, bottoms, sizes = data[0, b:e], data[1, b:e], data[2, b:e], data[3, b:e], data[4, b:e]
        groups = group[b:e]
        for j in range(BLOCK):
            width = (right if right < rights[j] else rights[j]) - (left if left > lefts[j] else lefts[j])
            height = (bottom if bottom < bottoms[j] else bottoms[j]) - (top if top > tops[j] else tops[j])
            shared = (width if width > zero else zero) * (height if height > zero else zero)
            over = shared / (size + sizes[j] - shared) > threshold
            groups[j] = np.int32(-1) if over & (groups[j] == mine) else groups[j]


@compiled(error_model="numpy")
def _sweep(boxes, order, codes, count, threshold, smallest, kept):
    """Fill kept (R + 1,) with the indices that stay, best first, and at its end how many: -1 if a box is not finite.

    A suppressed box has group -1.
    """
    finite, R = _finite(boxes), len(boxes)
    if R == 0 or not finite:
        kept[-1] = 0 if finite else -1
        return
    reach = _reach(boxes, threshold, smallest)
    low, per_pixel, shape, largest, slack = _grid(boxes, reach, max(1.0, R / count))
    end, place, data, group = _sort_into_cells(boxes, codes, count, low, per_pixel, shape)
    D, (columns, rows) = 0, shape
    for index in order:
        p = place[index]
        mine = group[p]
        if mine < 0:
            continue
        kept[D] = index
        D += 1
        left, top = np.float64(boxes[index, 0]), np.float64(boxes[index, 1])
        width, height = np.float64(boxes[index, 2]) - left, np.float64(boxes[index, 3]) - top
        x, y = left + 0.5 * width, top + 0.5 * height
        # to overlap at all, centres must be closer than the mean of both sizes
        near_x = min(reach * width, 0.5 * width + 0.5 * largest[0]) * (1 + 1e-9) + slack[0]
        near_y = min(reach * height, 0.5 * height + 0.5 * largest[1]) * (1 + 1e-9) + slack[1]
        west = _cell(x - near_x, low[0], per_pixel[0], columns)
        east = _cell(x + near_x, low[0], per_pixel[0], columns)
        last_row = _cell(y + near_y, low[1], per_pixel[1], rows)
        for row in range(_cell(y - near_y, low[1], per_pixel[1], rows), last_row + 1):
            c = (mine * rows + row) * columns
            first = end[c + west - 1] if c + west > 0 else 0
            _suppress(data, group, mine, p, first, end[c + east], threshold)
    kept[-1] = D
