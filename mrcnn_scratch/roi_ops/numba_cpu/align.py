"""RoIAlign's mean on channels-last tables: forward, gradient by the features, gradient by the boxes.

Bilinear interpolation is separable and all channels share it, so a bin's samples shrink to a short list of rows with
weights and one of columns, computed once; samples that fall between the same cells share an entry.
"""

import numpy as np
from numba import prange

from ..._numba import FASTMATH, compiled
from .geometry import axis_entries, entry_arrays, largest_grid, sample
from .streaming import end_of_stream, stream

BLOCK = 8  # RoIs that a thread takes at a time


# ---- forward


@compiled(fastmath=FASTMATH)
def _forward_roi(table, n, W, ny, yindex, yweights, ycells, nx, xindex, xweights, xcells, total, streaming, out, r):
    """out[r] (h*w, C): each bin the weighted sum of its rows and columns, two by two: one store for four loads.

    It is summed in total (C,), which stays in the innermost cache. All in one function, with arrays indexed down to the
    channel: a call, or a view of a row, for every bin would cost as much as half of what is done there.
    """
    w, bins, C = len(nx), out.shape[1], out.shape[2]
    for k in range(bins):
        p, q = k // w, k % w
        if ny[p] == 0 or nx[q] == 0:
            total[:] = 0
        for a in range(0, ny[p], 2):
            y, z, wy, wz = ycells[yindex[p, a]] * W, ycells[yindex[p, a + 1]] * W, yweights[p, a], yweights[p, a + 1]
            for b in range(0, nx[q], 2):
                left, right, wl, wr = xcells[xindex[q, b]], xcells[xindex[q, b + 1]], xweights[q, b], xweights[q, b + 1]
                s, t, u, v = y + left, y + right, z + left, z + right
                ws, wt, wu, wv = wy * wl, wy * wr, wz * wl, wz * wr
                if a == 0 and b == 0:
                    for c in range(C):
                        near = ws * table[n, s, c] + wt * table[n, t, c]
                        total[c] = near + wu * table[n, u, c] + wv * table[n, v, c]
                else:
                    for c in range(C):
                        near = ws * table[n, s, c] + wt * table[n, t, c]
                        total[c] += near + wu * table[n, u, c] + wv * table[n, v, c]
        if streaming:
            stream(total, out, (r * bins + k) * C)
        else:
            for c in range(C):
                out[r, k, c] = total[c]


@compiled(fastmath=FASTMATH)
def _forward_range(table, size, places, bins, streaming, order, out, first, last):
    """table (N, H*W, C), out (R, h*w, C): the RoIs order[first:last]. streaming: see `streaming`."""
    (H, W), (h, w), (batch, _, _, grid, _, _) = size, bins, places
    most = largest_grid(grid)
    ny, yindex, yweights, ycells = entry_arrays(table, h, most)
    nx, xindex, xweights, xcells = entry_arrays(table, w, most)
    total = np.empty(table.shape[2], table.dtype)
    for k in range(first, last):
        r, n = order[k], batch[order[k]]
        axis_entries(places, r, 0, H, ny, yindex, yweights, ycells)
        axis_entries(places, r, 1, W, nx, xindex, xweights, xcells)
        _forward_roi(table, n, W, ny, yindex, yweights, ycells, nx, xindex, xweights, xcells, total, streaming, out, r)
    if streaming:
        end_of_stream()


@compiled(fastmath=FASTMATH)
def forward_serial(table, size, places, bins, streaming, order, out):
    _forward_range(table, size, places, bins, streaming, order, out, 0, len(order))


@compiled(fastmath=FASTMATH, parallel=True)
def forward_parallel(table, size, places, bins, streaming, order, out):
    for block in prange((len(order) + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        _forward_range(table, size, places, bins, streaming, order, out, first, min(first + BLOCK, len(order)))


# ---- gradient by the features: each task owns a band of rows of one image, so no two write to one place, and adds
# what every RoI contributes in the order of the RoIs: the result does not depend on the number of threads


@compiled(fastmath=FASTMATH)
def _spread_row(grad, r, p, nx, xindex, xweights, columns, lines):
    """lines[:columns] = row p of the bins of RoI r, spread over the columns that it was read from."""
    w, C = len(nx), grad.shape[2]
    lines[:columns] = 0
    for q in range(w):
        for b in range(0, nx[q], 2):
            k, m, wl, wr = xindex[q, b], xindex[q, b + 1], xweights[q, b], xweights[q, b + 1]
            for c in range(C):
                lines[k, c] += wl * grad[r, p * w + q, c]
            if wr != 0:
                for c in range(C):
                    lines[m, c] += wr * grad[r, p * w + q, c]


@compiled(fastmath=FASTMATH)
def _backward_roi(grad, r, W, y_entries, x_entries, columns, lines, table, n, top, bottom):
    """Add to rows top..bottom-1 of image n what RoI r contributes: row by row of bins, along x and then along y."""
    (ny, yindex, yweights, ycells), (nx, xindex, xweights, xcells) = y_entries, x_entries
    for p in range(len(ny)):
        spread = False
        for a in range(ny[p]):
            y, weight = ycells[yindex[p, a]], yweights[p, a]
            if y < top or y >= bottom or weight == 0:
                continue
            if not spread:
                _spread_row(grad, r, p, nx, xindex, xweights, columns, lines)
                spread = True
            for k in range(columns):
                cell = y * W + xcells[k]
                for c in range(table.shape[2]):
                    table[n, cell, c] += weight * lines[k, c]


@compiled(fastmath=FASTMATH)
def _backward_band(grad, size, places, bins, table, n, top, bottom):
    """Rows top..bottom-1 of image n, table (N, H*W, C): zero, and what its RoIs contribute. grad (R, h*w, C)."""
    (H, W), (h, w), (batch, start, bin_size, grid, _, _) = size, bins, places
    table[n, top * W : bottom * W] = 0
    most = largest_grid(grid)
    ny, yindex, yweights, ycells = entry_arrays(table, h, most)
    nx, xindex, xweights, xcells = entry_arrays(table, w, most)
    lines = np.empty((len(xcells), table.shape[2]), table.dtype)
    for r in range(len(grad)):
        one, other = start[r, 0], start[r, 0] + h * bin_size[r, 0]
        # generous, and clamped like samples: the exact rows are compared below
        if batch[r] != n or min(one, other, H - 1) > bottom or max(one, other, 0) < top - 2:
            continue
        axis_entries(places, r, 0, H, ny, yindex, yweights, ycells)
        columns = axis_entries(places, r, 1, W, nx, xindex, xweights, xcells)
        y, x = (ny, yindex, yweights, ycells), (nx, xindex, xweights, xcells)
        _backward_roi(grad, r, W, y, x, columns, lines, table, n, top, bottom)


@compiled(fastmath=FASTMATH)
def backward_serial(grad, size, places, bins, table, bands):
    for n in range(len(table)):
        _backward_band(grad, size, places, bins, table, n, 0, size[0])


@compiled(fastmath=FASTMATH, parallel=True)
def backward_parallel(grad, size, places, bins, table, bands):
    for task in prange(len(table) * bands):
        n, k = task // bands, task % bands
        top, bottom = k * size[0] // bands, (k + 1) * size[0] // bands
        _backward_band(grad, size, places, bins, table, n, top, bottom)


# ---- gradient by the boxes


REDUCTION = FASTMATH | {"reassoc"}  # a sum over channels in the order of the SIMD lanes, the same in every run


@compiled(fastmath=REDUCTION)
def _slopes(g, a, b, d, e, fy, fx):
    """d<g, value>/dy and /dx for the cells a b (this row) and d e (the next): differences along one axis,
    interpolated along the other."""
    on_a, on_b, on_d, on_e = g[0] * 0, g[0] * 0, g[0] * 0, g[0] * 0
    for c in range(len(g)):
        on_a += g[c] * a[c]
        on_b += g[c] * b[c]
        on_d += g[c] * d[c]
        on_e += g[c] * e[c]
    along_y = (1 - fx) * (on_d - on_a) + fx * (on_e - on_b)
    along_x = (1 - fy) * (on_b - on_a) + fy * (on_e - on_d)
    return along_y, along_x


@compiled
def add_corner_slopes(total, r, slope, axis, low, position, free, scale):
    """Pass a slope at a sample on to the two coordinates that place it: total (R, 5), columns low and low + 2."""
    if free[r, axis]:
        total[r, low] += slope * scale * (1 - position)
        total[r, low + 2] += slope * scale * position
    else:
        total[r, low] += slope * scale


@compiled
def _boxes_range(grad, table, size, places, bins, scale, total, first, last):
    (H, W), (h, w), (batch, start, bin_size, grid, free, corner) = size, bins, places
    offset = 0.0 if corner else 0.5
    for r in range(first, last):
        gh, gw, image = grid[r, 0], grid[r, 1], table[batch[r]]
        for p in range(h):
            for q in range(w):
                g = grad[r, p * w + q]
                for i in range(gh):
                    in_y, y, fy, free_y = sample(start, bin_size, r, 0, p, i, gh, H, corner)
                    top, low = y * W, min(y + 1, H - 1) * W
                    for j in range(gw):
                        in_x, x, fx, free_x = sample(start, bin_size, r, 1, q, j, gw, W, corner)
                        if not (in_y and in_x):
                            continue
                        z = min(x + 1, W - 1)
                        dy, dx = _slopes(g, image[top + x], image[top + z], image[low + x], image[low + z], fy, fx)
                        dy, dx = dy * free_y / (gh * gw), dx * free_x / (gh * gw)
                        add_corner_slopes(total, r, dy, 0, 2, (p + (i + offset) / gh) / h, free, scale)
                        add_corner_slopes(total, r, dx, 1, 1, (q + (j + offset) / gw) / w, free, scale)


@compiled
def boxes_serial(grad, table, size, places, bins, scale, total):
    _boxes_range(grad, table, size, places, bins, scale, total, 0, len(grad))


@compiled(parallel=True)
def boxes_parallel(grad, table, size, places, bins, scale, total):
    for r in prange(len(grad)):
        _boxes_range(grad, table, size, places, bins, scale, total, r, r + 1)
