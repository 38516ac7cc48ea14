"""RoIAlign, RoIWarp and RoIPool as compiled CPU kernels, forward and backward.

What makes them fast, in this order:

1. *Channels last.* A cell is one run of C numbers, so the inner loop is over contiguous channels and becomes SIMD.
2. *Weights once.* Bilinear interpolation is separable, and all channels share it: a bin's samples shrink to a short
   list of rows with weights and one of columns; samples that fall between the same cells share an entry.
3. *Backward without atomics.* Each thread owns a band of rows of one image's gradient and adds what every RoI
   contributes to it, in RoI order: the result does not depend on the number of threads.

Tensors must be contiguous, on the CPU, float32 or float64, and boxes valid: `roi_ops.__init__` sees to that.
Every kernel has a body over a range of work, and two drivers: Numba's cache cannot tell a serial from a parallel
variant of one function. After a parallel kernel has run, a forked child must not run one: see `_numba.py`.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from .._numba import FASTMATH, compiled, run
from .vectorized import pool_geometry, sampling_geometry

BLOCK = 8  # RoIs that a thread takes at a time
SQUARE = 16  # a cache line of float32, and a power of two that no cache minds


# ---- layout


@compiled
def _transpose(source, target):
    """(A, B) into (B, A), in squares that stay in the cache: rows a power of two apart would evict each other."""
    A, B = source.shape
    for i in range(0, A, SQUARE):
        for j in range(0, B, SQUARE):
            for b in range(j, min(j + SQUARE, B)):
                for a in range(i, min(i + SQUARE, A)):
                    target[b, a] = source[a, b]


@compiled
def _transpose_all_serial(source, target):
    for n in range(len(source)):
        _transpose(source[n], target[n])


@compiled(parallel=True)
def _transpose_all_parallel(source, target):
    for n in prange(len(source)):
        _transpose(source[n], target[n])


# ---- geometry: no fastmath here, or a sample lands on the other side of the border rule's edge than torch's does


@compiled
def _sample(start, bin_size, r, axis, p, i, grid, length):
    """Sample i of bin p along one axis: (inside, cell, fraction towards the next cell).

    Every operation is rounded to the arrays' own precision, as torch and torchvision round it.
    """
    T = start.dtype.type
    bin_ = bin_size[r, axis]
    x = T(T(start[r, axis] + T(p * bin_)) + T(T((i + 0.5) * bin_) / grid))
    if x < -1.0 or x > length:
        return False, 0, T(0)
    if x <= 0:
        return True, 0, T(0)
    cell = int(x)
    if cell >= length - 1:
        return True, length - 1, T(0)
    return True, cell, T(x - cell)


@compiled
def _mean_entries(start, bin_size, r, axis, grid, length, counts, cells, weights):
    """Per bin p of one axis: cells[p, :counts[p]] and weights that average the bin's samples along this axis."""
    for p in range(len(counts)):
        n = 0
        for i in range(grid):
            inside, cell, fraction = _sample(start, bin_size, r, axis, p, i, grid, length)
            if not inside:
                continue
            if n > 0 and cells[p, n - 1] == cell:
                weights[p, n - 1] += (1 - fraction) / grid
            elif n > 1 and cells[p, n - 2] == cell:
                weights[p, n - 2] += (1 - fraction) / grid
            else:
                cells[p, n], weights[p, n] = cell, (1 - fraction) / grid
                n += 1
            if fraction > 0:
                if cells[p, n - 1] == cell + 1:
                    weights[p, n - 1] += fraction / grid
                else:
                    cells[p, n], weights[p, n] = cell + 1, fraction / grid
                    n += 1
        if n % 2 == 1:  # the loops take entries in pairs
            cells[p, n], weights[p, n] = cells[p, n - 1], 0
            n += 1
        counts[p] = n


@compiled
def _entry_arrays(dtype_like, bins, grid):
    capacity = max(1, 2 * grid)
    return np.empty(bins, np.int64), np.empty((bins, capacity), np.int64), np.empty((bins, capacity), dtype_like.dtype)


# ---- RoIAlign, mean


@compiled(fastmath=FASTMATH)
def _weighted_sum(table, base, W, ny, ycells, yweights, nx, xcells, xweights, total):
    """total[:] = the weighted sum of one bin's cells, two rows by two columns to a pass: one store for four loads."""
    if ny == 0 or nx == 0:
        total[:] = 0
    for a in range(0, ny, 2):
        y, z = base + ycells[a] * W, base + ycells[a + 1] * W
        wy, wz = yweights[a], yweights[a + 1]
        for b in range(0, nx, 2):
            s, t, u, v = table[y + xcells[b]], table[y + xcells[b + 1]], table[z + xcells[b]], table[z + xcells[b + 1]]
            ws, wt, wu, wv = wy * xweights[b], wy * xweights[b + 1], wz * xweights[b], wz * xweights[b + 1]
            if a == 0 and b == 0:
                for c in range(len(total)):
                    total[c] = ws * s[c] + wt * t[c] + wu * u[c] + wv * v[c]
            else:
                for c in range(len(total)):
                    total[c] += ws * s[c] + wt * t[c] + wu * u[c] + wv * v[c]


@compiled(fastmath=FASTMATH)
def _mean_forward_range(table, size, batch, start, bin_size, grid, out, first, last):
    H, W = size
    _, C, h, w = out.shape
    tile = np.empty((h * w, C), table.dtype)
    most = 1
    for r in range(first, last):
        most = max(most, grid[r, 0], grid[r, 1])
    ny, ycells, yweights = _entry_arrays(table, h, most)
    nx, xcells, xweights = _entry_arrays(table, w, most)
    for r in range(first, last):
        _mean_entries(start, bin_size, r, 0, grid[r, 0], H, ny, ycells, yweights)
        _mean_entries(start, bin_size, r, 1, grid[r, 1], W, nx, xcells, xweights)
        base = batch[r] * H * W
        for p in range(h):
            for q in range(w):
                y, x = (ny[p], ycells[p], yweights[p]), (nx[q], xcells[q], xweights[q])
                _weighted_sum(table, base, W, *y, *x, tile[p * w + q])
        _transpose(tile, out[r].reshape(C, h * w))


@compiled(fastmath=FASTMATH)
def _mean_forward_serial(table, size, batch, start, bin_size, grid, out):
    _mean_forward_range(table, size, batch, start, bin_size, grid, out, 0, len(out))


@compiled(fastmath=FASTMATH, parallel=True)
def _mean_forward_parallel(table, size, batch, start, bin_size, grid, out):
    for block in prange((len(out) + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        _mean_forward_range(table, size, batch, start, bin_size, grid, out, first, min(first + BLOCK, len(out)))


@compiled(fastmath=FASTMATH)
def _mean_backward_band(grad, size, batch, start, bin_size, grid, bins, table, n, top, bottom):
    """Add to rows top..bottom-1 of image n's gradient what its RoIs contribute. grad (R, h*w, C)."""
    H, W = size
    h, w = bins
    C = table.shape[1]
    most = 0
    for r in range(len(grad)):
        most = max(most, grid[r, 0], grid[r, 1])
    ny, ycells, yweights = _entry_arrays(table, h, most)
    nx, xcells, xweights = _entry_arrays(table, w, most)
    for r in range(len(grad)):
        if batch[r] != n:
            continue
        low, high = start[r, 0], start[r, 0] + h * bin_size[r, 0]
        if min(low, high) > bottom or max(low, high) < top - 2:  # generous: entries are checked one by one below
            continue
        _mean_entries(start, bin_size, r, 0, grid[r, 0], H, ny, ycells, yweights)
        _mean_entries(start, bin_size, r, 1, grid[r, 1], W, nx, xcells, xweights)
        for p in range(h):
            for a in range(ny[p]):
                y, wy = ycells[p, a], yweights[p, a]
                if y < top or y >= bottom:
                    continue
                row = (n * H + y) * W
                for q in range(w):
                    g = grad[r, p * w + q]
                    for b in range(nx[q]):
                        weight, cell = wy * xweights[q, b], table[row + xcells[q, b]]
                        for c in range(C):
                            cell[c] += weight * g[c]


@compiled(fastmath=FASTMATH)
def _mean_backward_serial(grad, size, batch, start, bin_size, grid, bins, table, images, bands):
    for n in range(images):
        _mean_backward_band(grad, size, batch, start, bin_size, grid, bins, table, n, 0, size[0])


@compiled(fastmath=FASTMATH, parallel=True)
def _mean_backward_parallel(grad, size, batch, start, bin_size, grid, bins, table, images, bands):
    for task in prange(images * bands):
        n, k = task // bands, task % bands
        top, bottom = k * size[0] // bands, (k + 1) * size[0] // bands
        _mean_backward_band(grad, size, batch, start, bin_size, grid, bins, table, n, top, bottom)


# ---- RoIAlign, max: argmax is the number iy * gw + ix of the winning sample, -1 in a RoI without samples


@compiled(fastmath=FASTMATH)
def _max_forward_range(table, size, batch, start, bin_size, grid, out, argmax, first, last):
    H, W = size
    _, C, h, w = out.shape
    for r in range(first, last):
        base, gh, gw = batch[r] * H * W, grid[r, 0], grid[r, 1]
        for p in range(h):
            for q in range(w):
                best, winner = np.zeros(C, table.dtype), np.full(C, -1, np.int32)
                for iy in range(gh):
                    in_y, y, fy = _sample(start, bin_size, r, 0, p, iy, gh, H)
                    for ix in range(gw):
                        in_x, x, fx = _sample(start, bin_size, r, 1, q, ix, gw, W)
                        inside = 1 if in_y and in_x else 0
                        top, low = base + y * W, base + min(y + 1, H - 1) * W
                        x1 = min(x + 1, W - 1)
                        a, b, d, e = table[top + x], table[top + x1], table[low + x], table[low + x1]
                        wa, wb = (1 - fy) * (1 - fx) * inside, (1 - fy) * fx * inside
                        wd, we = fy * (1 - fx) * inside, fy * fx * inside
                        for c in range(C):
                            value = wa * a[c] + wb * b[c] + wd * d[c] + we * e[c]
                            if winner[c] < 0 or value > best[c]:
                                best[c], winner[c] = value, iy * gw + ix
                for c in range(C):
                    out[r, c, p, q], argmax[r, c, p, q] = best[c], winner[c]


@compiled(fastmath=FASTMATH)
def _max_forward_serial(table, size, batch, start, bin_size, grid, out, argmax):
    _max_forward_range(table, size, batch, start, bin_size, grid, out, argmax, 0, len(out))


@compiled(fastmath=FASTMATH, parallel=True)
def _max_forward_parallel(table, size, batch, start, bin_size, grid, out, argmax):
    for r in prange(len(out)):
        _max_forward_range(table, size, batch, start, bin_size, grid, out, argmax, r, r + 1)


@compiled(fastmath=FASTMATH)
def _max_backward_channel(grad, argmax, batch, start, bin_size, grid, out, c):
    """The gradient of channel c of every image; grad and argmax (R, C, h, w), out (N, C, H, W)."""
    R, _, h, w = grad.shape
    _, _, H, W = out.shape
    for r in range(R):
        plane, gh, gw = out[batch[r], c], grid[r, 0], grid[r, 1]
        for p in range(h):
            for q in range(w):
                winner = argmax[r, c, p, q]
                if winner < 0:
                    continue
                in_y, y, fy = _sample(start, bin_size, r, 0, p, winner // gw, gh, H)
                in_x, x, fx = _sample(start, bin_size, r, 1, q, winner % gw, gw, W)
                if in_y and in_x:
                    g, y1, x1 = grad[r, c, p, q], min(y + 1, H - 1), min(x + 1, W - 1)
                    plane[y, x] += g * (1 - fy) * (1 - fx)
                    plane[y, x1] += g * (1 - fy) * fx
                    plane[y1, x] += g * fy * (1 - fx)
                    plane[y1, x1] += g * fy * fx


@compiled(fastmath=FASTMATH)
def _max_backward_serial(grad, argmax, batch, start, bin_size, grid, out):
    for c in range(out.shape[1]):
        _max_backward_channel(grad, argmax, batch, start, bin_size, grid, out, c)


@compiled(fastmath=FASTMATH, parallel=True)
def _max_backward_parallel(grad, argmax, batch, start, bin_size, grid, out):
    for c in prange(out.shape[1]):
        _max_backward_channel(grad, argmax, batch, start, bin_size, grid, out, c)


# ---- RoIPool: argmax is the cell y * W + x that won, -1 in a bin without cells


@compiled
def _pool_forward_range(table, size, batch, top, bottom, left, right, out, argmax, first, last):
    H, W = size
    _, C, h, w = out.shape
    best, winner = np.empty((h * w, C), table.dtype), np.empty((h * w, C), np.int32)
    for r in range(first, last):
        base = batch[r] * H * W
        for p in range(h):
            for q in range(w):
                value, place = best[p * w + q], winner[p * w + q]
                empty = bottom[r, p] <= top[r, p] or right[r, q] <= left[r, q]
                value[:] = 0 if empty else -np.inf
                place[:] = -1
                for y in range(top[r, p], bottom[r, p]):
                    for x in range(left[r, q], right[r, q]):
                        cell, where = table[base + y * W + x], np.int32(y * W + x)
                        for c in range(C):
                            larger = cell[c] > value[c]
                            value[c] = cell[c] if larger else value[c]
                            place[c] = where if larger else place[c]
        _transpose(best, out[r].reshape(C, h * w))
        _transpose(winner, argmax[r].reshape(C, h * w))


@compiled
def _pool_forward_serial(table, size, batch, top, bottom, left, right, out, argmax):
    _pool_forward_range(table, size, batch, top, bottom, left, right, out, argmax, 0, len(out))


@compiled(parallel=True)
def _pool_forward_parallel(table, size, batch, top, bottom, left, right, out, argmax):
    for block in prange((len(out) + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        last = min(first + BLOCK, len(out))
        _pool_forward_range(table, size, batch, top, bottom, left, right, out, argmax, first, last)


@compiled
def _pool_backward_channel(grad, argmax, batch, out, c):
    """Fast R-CNN, eq. 4: an output's gradient goes to the cell that won; grad, argmax (R, C, h*w), out (N, C, H*W)."""
    for r in range(len(grad)):
        plane = out[batch[r], c]
        for k in range(grad.shape[2]):
            if argmax[r, c, k] >= 0:
                plane[argmax[r, c, k]] += grad[r, c, k]


@compiled
def _pool_backward_serial(grad, argmax, batch, out):
    for c in range(out.shape[1]):
        _pool_backward_channel(grad, argmax, batch, out, c)


@compiled(parallel=True)
def _pool_backward_parallel(grad, argmax, batch, out):
    for c in prange(out.shape[1]):
        _pool_backward_channel(grad, argmax, batch, out, c)


# ---- tensors in, tensors out


def _place(boxes: Tensor, output_size, spatial_scale, sampling_ratio, convention) -> tuple[np.ndarray, ...]:
    start, bin_size, grid = sampling_geometry(boxes, output_size, spatial_scale, sampling_ratio, convention)
    return boxes[:, 0].to(torch.int64).numpy(), start.numpy(), bin_size.numpy(), grid.numpy()


def _swap(x: Tensor) -> Tensor:
    """(N, A, B) -> (N, B, A), contiguous. torch's copy is slow where B is a power of two."""
    N, A, B = x.shape
    if 1 in (A, B):
        return x.reshape(N, B, A)
    out = x.new_empty(N, B, A)
    run(_transpose_all_serial, _transpose_all_parallel, x.numel(), x.numpy(), out.numpy())
    return out


def _table(features: Tensor) -> np.ndarray:
    N, C, H, W = features.shape
    if features.is_contiguous():
        return _swap(features.flatten(2)).view(N * H * W, C).numpy()
    return features.permute(0, 2, 3, 1).reshape(N * H * W, C).contiguous().numpy()  # channels_last: nothing to copy


def roi_align_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> Tensor:
    """features (N, C, H, W), boxes (R, 5) of one dtype -> (R, C, h, w)."""
    C, H, W = features.shape[1:]
    out = features.new_empty(len(boxes), C, *output_size)
    place = _place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    run(_mean_forward_serial, _mean_forward_parallel, out.numel(), _table(features), (H, W), *place, out.numpy())
    return out


def roi_align_backward(grad, boxes, shape, output_size, spatial_scale, sampling_ratio, convention) -> Tensor:
    """grad (R, C, h, w) -> (N, C, H, W), the gradient with respect to the features of that shape."""
    (N, C, H, W), (h, w) = shape, output_size
    table = grad.new_zeros(N * H * W, C)
    place = _place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    grad = _swap(grad.flatten(2).contiguous())  # (R, h*w, C)
    bands = min(H, max(1, -(-4 * torch.get_num_threads() // N)))
    arguments = (grad.numpy(), (H, W), *place, (h, w), table.numpy(), N, bands)
    run(_mean_backward_serial, _mean_backward_parallel, grad.numel(), *arguments)
    return _swap(table.view(N, H * W, C)).view(N, C, H, W)


def roi_align_max_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention):
    """As roi_align_forward, with each bin's largest sample; also which sample won, (R, C, h, w) int32."""
    C, H, W = features.shape[1:]
    out = features.new_empty(len(boxes), C, *output_size)
    argmax = torch.empty(out.shape, dtype=torch.int32)
    place = _place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    arguments = (_table(features), (H, W), *place, out.numpy(), argmax.numpy())
    run(_max_forward_serial, _max_forward_parallel, out.numel(), *arguments)
    return out, argmax


def roi_align_max_backward(grad, argmax, boxes, shape, output_size, spatial_scale, sampling_ratio, convention):
    """grad and argmax (R, C, h, w) -> (N, C, H, W)."""
    out = grad.new_zeros(shape)
    place = _place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    arguments = (grad.contiguous().numpy(), argmax.contiguous().numpy(), *place, out.numpy())
    run(_max_backward_serial, _max_backward_parallel, grad.numel(), *arguments)
    return out


def roi_pool_forward(features, boxes, output_size, spatial_scale) -> tuple[Tensor, Tensor]:
    """features (N, C, H, W), boxes (R, 5) of one dtype -> (R, C, h, w) and the cells that won, int32."""
    C, H, W = features.shape[1:]
    out = features.new_empty(len(boxes), C, *output_size)
    argmax = torch.empty(out.shape, dtype=torch.int32)
    edges = [e.numpy() for e in pool_geometry(boxes, output_size, spatial_scale, (H, W))]
    batch = boxes[:, 0].to(torch.int64).numpy()
    arguments = (_table(features), (H, W), batch, *edges, out.numpy(), argmax.numpy())
    run(_pool_forward_serial, _pool_forward_parallel, out.numel(), *arguments)
    return out, argmax


def roi_pool_backward(grad, argmax, boxes, shape) -> Tensor:
    """grad and argmax (R, C, h, w) -> (N, C, H, W)."""
    N, C, H, W = shape
    out = grad.new_zeros(N, C, H * W)
    batch = boxes[:, 0].to(torch.int64).numpy()
    arguments = (grad.flatten(2).contiguous().numpy(), argmax.flatten(2).contiguous().numpy(), batch, out.numpy())
    run(_pool_backward_serial, _pool_backward_parallel, grad.numel(), *arguments)
    return out.view(N, C, H, W)
