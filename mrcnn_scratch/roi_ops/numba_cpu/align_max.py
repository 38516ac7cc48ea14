"""RoIAlign's largest sample on channels-last tables. winner: the number iy * gw + ix of the sample, -1 for none."""

import numpy as np
from numba import prange

from ..._numba import FASTMATH, compiled
from .align import BLOCK, add_corner_slopes
from .geometry import sample


@compiled(fastmath=FASTMATH)
def _take_larger(a, b, d, e, wa, wb, wd, we, number, best, winner):
    for c in range(len(best)):
        value = wa * a[c] + wb * b[c] + wd * d[c] + we * e[c]
        larger = number == 0 or value > best[c]
        best[c] = value if larger else best[c]
        winner[c] = number if larger else winner[c]


@compiled(fastmath=FASTMATH)
def _forward_range(table, size, places, bins, order, out, winner, first, last):
    """table (N, H*W, C); out and winner (R, h*w, C): the RoIs order[first:last]."""
    (H, W), (h, w), (batch, start, bin_size, grid, _, corner) = size, bins, places
    for k in range(first, last):
        r = order[k]
        image, gh, gw = table[batch[r]], grid[r, 0], grid[r, 1]
        for p in range(h):
            for q in range(w):
                best, which = out[r, p * w + q], winner[r, p * w + q]
                if gh * gw == 0:
                    best[:] = 0
                    which[:] = -1
                for i in range(gh):
                    in_y, y, fy, _ = sample(start, bin_size, r, 0, p, i, gh, H, corner)
                    top, low = y * W, min(y + 1, H - 1) * W
                    for j in range(gw):
                        in_x, x, fx, _ = sample(start, bin_size, r, 1, q, j, gw, W, corner)
                        z, inside = min(x + 1, W - 1), table.dtype.type(1 if in_y and in_x else 0)
                        cells = image[top + x], image[top + z], image[low + x], image[low + z]
                        up, down = (1 - fy) * inside, fy * inside
                        weights = up * (1 - fx), up * fx, down * (1 - fx), down * fx
                        _take_larger(*cells, *weights, np.int32(i * gw + j), best, which)


@compiled(fastmath=FASTMATH)
def forward_serial(table, size, places, bins, order, out, winner):
    _forward_range(table, size, places, bins, order, out, winner, 0, len(order))


@compiled(fastmath=FASTMATH, parallel=True)
def forward_parallel(table, size, places, bins, order, out, winner):
    for block in prange((len(order) + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        _forward_range(table, size, places, bins, order, out, winner, first, min(first + BLOCK, len(order)))


# ---- backward: each task owns a run of channels of every image, so no two write to one place. The arrays come in any
# strides: (R, C, h*w) and (N, C, H*W)


@compiled(fastmath=FASTMATH)
def _backward_channels(grad, winner, size, places, bins, out, first, last):
    (H, W), (h, w), (batch, start, bin_size, grid, _, corner) = size, bins, places
    for r in range(len(grad)):
        gh, gw = grid[r, 0], grid[r, 1]
        for c in range(first, last):
            plane = out[batch[r], c]
            for p in range(h):
                for q in range(w):
                    number, g = winner[r, c, p * w + q], grad[r, c, p * w + q]
                    if number < 0:
                        continue
                    in_y, y, fy, _ = sample(start, bin_size, r, 0, p, number // gw, gh, H, corner)
                    in_x, x, fx, _ = sample(start, bin_size, r, 1, q, number % gw, gw, W, corner)
                    if in_y and in_x:
                        top, low, z = y * W, min(y + 1, H - 1) * W, min(x + 1, W - 1)
                        plane[top + x] += g * (1 - fy) * (1 - fx)
                        plane[top + z] += g * (1 - fy) * fx
                        plane[low + x] += g * fy * (1 - fx)
                        plane[low + z] += g * fy * fx


@compiled(fastmath=FASTMATH)
def backward_serial(grad, winner, size, places, bins, out, run_length):
    _backward_channels(grad, winner, size, places, bins, out, 0, out.shape[1])


@compiled(fastmath=FASTMATH, parallel=True)
def backward_parallel(grad, winner, size, places, bins, out, run_length):
    C = out.shape[1]
    for task in prange((C + run_length - 1) // run_length):
        first = task * run_length
        _backward_channels(grad, winner, size, places, bins, out, first, min(first + run_length, C))


# ---- gradient by the boxes: the place of the winning sample decides. features (N, C, H*W) in any strides


@compiled
def _boxes_range(grad, winner, features, size, places, bins, scale, total, first, last):
    (H, W), (h, w), (batch, start, bin_size, grid, free, corner) = size, bins, places
    offset = 0.0 if corner else 0.5
    for r in range(first, last):
        gh, gw = grid[r, 0], grid[r, 1]
        for c in range(features.shape[1]):
            plane = features[batch[r], c]
            for p in range(h):
                for q in range(w):
                    number, g = winner[r, c, p * w + q], grad[r, c, p * w + q]
                    if number < 0:
                        continue
                    i, j = number // gw, number % gw
                    in_y, y, fy, free_y = sample(start, bin_size, r, 0, p, i, gh, H, corner)
                    in_x, x, fx, free_x = sample(start, bin_size, r, 1, q, j, gw, W, corner)
                    if not (in_y and in_x):
                        continue
                    top, low, z = y * W, min(y + 1, H - 1) * W, min(x + 1, W - 1)
                    a, b, d, e = plane[top + x], plane[top + z], plane[low + x], plane[low + z]
                    dy = g * free_y * ((1 - fx) * (d - a) + fx * (e - b))
                    dx = g * free_x * ((1 - fy) * (b - a) + fy * (e - d))
                    add_corner_slopes(total, r, dy, 0, 2, (p + (i + offset) / gh) / h, free, scale)
                    add_corner_slopes(total, r, dx, 1, 1, (q + (j + offset) / gw) / w, free, scale)


@compiled
def boxes_serial(grad, winner, features, size, places, bins, scale, total):
    _boxes_range(grad, winner, features, size, places, bins, scale, total, 0, len(grad))


@compiled(parallel=True)
def boxes_parallel(grad, winner, features, size, places, bins, scale, total):
    for r in prange(len(grad)):
        _boxes_range(grad, winner, features, size, places, bins, scale, total, r, r + 1)
