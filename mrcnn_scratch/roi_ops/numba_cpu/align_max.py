"""RoIAlign's largest sample on channels-last tables. winner: the number iy * gw + ix of the sample, -1 for none."""

import numpy as np
from numba import prange

from ..._numba import FASTMATH, compiled
from .align import BLOCK, add_corner_slopes
from .geometry import largest_grid, sample


@compiled
def _axis_samples(places, r, axis, bins, length, cells, weights):
    """All samples of RoI r along one axis, bin by bin: cells[s] and the next, and their two weights, 0 off the map."""
    _, start, bin_size, grids, _, corner = places
    grid = grids[r, axis]
    for p in range(bins):
        for i in range(grid):
            inside, cell, fraction, _ = sample(start, bin_size, r, axis, p, i, grid, length, corner)
            s = p * grid + i
            cells[s, 0], cells[s, 1] = cell, min(cell + 1, length - 1)
            weights[s, 0], weights[s, 1] = (1 - fraction, fraction) if inside else (fraction * 0, fraction * 0)


@compiled(fastmath=FASTMATH)
def _forward_roi(table, n, W, gh, ycells, yweights, gw, xcells, xweights, h, w, out, winner, r):
    """out[r], winner[r] (h*w, C): each bin's largest sample, the first where several are equal."""
    C = table.shape[2]
    for k in range(h * w):
        p, q = k // w, k % w
        if gh * gw == 0:
            for c in range(C):
                out[r, k, c], winner[r, k, c] = 0, -1
        for i in range(gh):
            y = p * gh + i
            top, low = ycells[y, 0] * W, ycells[y, 1] * W
            for j in range(gw):
                x, number = q * gw + j, i * gw + j
                s, t, u, v = top + xcells[x, 0], top + xcells[x, 1], low + xcells[x, 0], low + xcells[x, 1]
                ws, wt = yweights[y, 0] * xweights[x, 0], yweights[y, 0] * xweights[x, 1]
                wu, wv = yweights[y, 1] * xweights[x, 0], yweights[y, 1] * xweights[x, 1]
                if ws + wt + wu + wv == 0:  # off the map: a 0, and no cell is read, which may hold anything
                    for c in range(C):
                        larger = number == 0 or out[r, k, c] < 0
                        out[r, k, c] = 0 if larger else out[r, k, c]
                        winner[r, k, c] = number if larger else winner[r, k, c]
                    continue
                for c in range(C):
                    near, far = ws * table[n, s, c] + wt * table[n, t, c], wu * table[n, u, c] + wv * table[n, v, c]
                    larger = number == 0 or near + far > out[r, k, c]
                    out[r, k, c] = near + far if larger else out[r, k, c]
                    winner[r, k, c] = number if larger else winner[r, k, c]


@compiled(fastmath=FASTMATH)
def _forward_range(table, size, places, bins, order, out, winner, first, last):
    """table (N, H*W, C); out and winner (R, h*w, C): the RoIs order[first:last]."""
    (H, W), (h, w), (batch, _, _, grid, _, _) = size, bins, places
    most = largest_grid(grid)
    ycells, yweights = np.empty((h * most, 2), np.int64), np.empty((h * most, 2), table.dtype)
    xcells, xweights = np.empty((w * most, 2), np.int64), np.empty((w * most, 2), table.dtype)
    for k in range(first, last):
        r = order[k]
        _axis_samples(places, r, 0, h, H, ycells, yweights)
        _axis_samples(places, r, 1, w, W, xcells, xweights)
        gh, gw = grid[r, 0], grid[r, 1]
        _forward_roi(table, batch[r], W, gh, ycells, yweights, gw, xcells, xweights, h, w, out, winner, r)


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
