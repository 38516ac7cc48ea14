"""The gradient of the features without atomics: the same bits in every run.

A block owns `TILE` cells of one row of one image, and `THREADS` channels of them. It walks over the RoIs in their order
and adds what each contributes to sums in shared memory, where each thread has a column of its own; then it writes them.
So every sum is made by one thread, in one order.
"""

import functools

import numpy as np
from numba import cuda

from ..._numba_cuda import device
from .geometry import box_region, cell_of, rounded_product, sample_count, sample_place, sample_share
from .threads import THREADS, memory

TILE = 32  # a warp writes a line of plain tensors; in float64 the sums take 33 of the 48 KB of shared memory
PITCH = THREADS + 1  # of the sums: the lanes of a warp that writes a line read from different banks


@functools.cache
def may_reach(T):
    """Whether cells first..last can get something from samples between start and start + length; generous.

    Samples reach a cell from one cell off. The rest is room for rounding: bins and samples are placed by other sums.
    """
    zero, room, relative = T(0), T(2), T(1e-6)

    @device
    def reach(start, length, first, last):
        end = start + length
        low, high = (start, end) if start < end else (end, start)
        slack = room + relative * ((low if low >= zero else -low) + (high if high >= zero else -high))
        return high >= T(first) - slack and low <= T(last) + slack

    return reach


@functools.cache
def mean_contribution(T):
    """Add RoI's share of one row of cells: sums[x - x0, thread] += weight * gradient."""
    count, locate, at, reach, times = sample_count(T, 0), cell_of(T), sample_place(T), may_reach(T), rounded_product(T)
    average, zero, one, none = sample_share(T), T(0), T(1), np.int32(0)

    @device
    def add(grad, winner, corner, bin_, y, bin_y, x, bin_x, row, x0, sums, thread, sizes, rule):
        _, _, H, W, h, w, _, _, asked, _, _ = sizes
        _, offset, lowest, last_y, last_x = rule
        ny, nx = count(bin_y, asked), count(bin_x, asked)
        for p in range(h if ny > 0 and nx > 0 else none):
            weight = zero
            if reach(y + times(T(p), bin_y), bin_y, row, row):
                for i in range(ny):
                    counts, cell, fraction, _ = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
                    if counts and cell == row:
                        weight += one - fraction
                    elif counts and cell + 1 == row:
                        weight += fraction
            for q in range(w if weight != zero else none):
                if reach(x + times(T(q), bin_x), bin_x, x0, np.int32(x0 + (TILE - 1))):
                    g = grad[np.uint64(corner + np.int64(p * w + q) * np.int64(bin_))] * (weight * average(ny, nx))
                    for j in range(nx):
                        counts, cell, fraction, _ = locate(at(x, bin_x, q, j, nx, offset), lowest, last_x, W)
                        column = np.int32(cell - x0)
                        if counts and column >= 0 and column < TILE:
                            sums[column, thread] += (one - fraction) * g
                        if counts and fraction > zero and column + 1 >= 0 and column + 1 < TILE:
                            sums[column + 1, thread] += fraction * g

    return add


@functools.cache
def max_contribution(T):
    """As `mean_contribution`, of the samples that won."""
    count, locate, at, reach, times = sample_count(T, 0), cell_of(T), sample_place(T), may_reach(T), rounded_product(T)
    zero, one, none = T(0), T(1), np.int32(0)

    @device
    def add(grad, winner, corner, bin_, y, bin_y, x, bin_x, row, x0, sums, thread, sizes, rule):
        _, _, H, W, h, w, _, _, asked, _, _ = sizes
        _, offset, lowest, last_y, last_x = rule
        ny, nx = count(bin_y, asked), count(bin_x, asked)
        for p in range(h if nx > 0 else none):
            for q in range(w if reach(y + times(T(p), bin_y), bin_y, row, row) else none):
                which = np.int32(-1)
                index = np.uint64(corner + np.int64(p * w + q) * np.int64(bin_))
                if reach(x + times(T(q), bin_x), bin_x, x0, np.int32(x0 + (TILE - 1))):
                    which = winner[index]
                if which >= 0:
                    i = np.int32(np.uint32(which) // np.uint32(nx))
                    in_y, top, fy, _ = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
                    in_x, left, fx, _ = locate(at(x, bin_x, q, np.int32(which - i * nx), nx, offset), lowest, last_x, W)
                    weight, column = zero, np.int32(left - x0)
                    if top == row:
                        weight = one - fy
                    elif top + 1 == row:
                        weight = fy
                    if in_y and in_x and weight != zero:
                        g = weight * grad[index]
                        if column >= 0 and column < TILE:
                            sums[column, thread] += (one - fx) * g
                        if fx > zero and column + 1 >= 0 and column + 1 < TILE:
                            sums[column + 1, thread] += fx * g

    return add


@functools.cache
def pool_contribution(T):
    """As `mean_contribution`, of RoIPool: a bin gives its gradient to the one cell that won."""

    @device
    def add(grad, winner, corner, bin_, y, bin_y, x, bin_x, row, x0, sums, thread, sizes, rule):
        _, _, _, W, h, w, _, _, _, _, _ = sizes
        for place in range(np.int32(h * w)):
            index = np.uint64(corner + np.int64(place) * np.int64(bin_))
            column = np.int32(winner[index] - (row * W + x0))
            if column >= 0 and column < TILE:  # beyond the row's end, in the next row: never written out
                sums[column, thread] += grad[index]

    return add


CONTRIBUTIONS = {"mean": mean_contribution, "max": max_contribution, "pool": pool_contribution}


def blocks(shape: tuple[int, int, int, int]) -> int:
    """Blocks for a gradient (N, C, H, W)."""
    N, C, H, W = shape
    return N * H * -(-W // TILE) * -(-C // THREADS)


def rows_kernel(T, channels_last: bool, op: str):
    """kernel(gradient of out, winner, boxes, gradient of the features); every element of the last is written.

    op: "mean", which has no winner and takes the gradient twice, "max", or "pool", whose boxes are those of
    `pool.hull_kernel`, at scale 1.
    """
    box, reach, contribute, layout = box_region(T), may_reach(T), CONTRIBUTIONS[op](T), memory(channels_last)
    zero, tile, pitch, threads = T(0), TILE, PITCH, THREADS

    def kernel(grad, winner, boxes, target, sizes, rule):
        N, C, H, W, h, w, R, _, _, convention, _ = sizes
        block, thread = np.uint32(cuda.blockIdx.x), np.int32(cuda.threadIdx.x)
        tiles, runs = np.uint32((W + (tile - 1)) // tile), np.uint32((C + (threads - 1)) // threads)
        strip, line = np.uint32(block // runs), np.uint32(np.uint32(block // runs) // tiles)
        first_channel = np.int32((block - np.uint32(strip * runs)) * np.uint32(threads))
        x0, image = np.int32((strip - np.uint32(line * tiles)) * np.uint32(tile)), np.int32(line // np.uint32(H))
        row, c = np.int32(line - np.uint32(np.uint32(image) * np.uint32(H))), np.int32(first_channel + thread)
        sums = cuda.shared.array((tile, pitch), T)
        touched = cuda.shared.array(threads, np.int32)
        regions = cuda.shared.array((4, threads), T)
        for i in range(tile):
            sums[i, thread] = zero
        for first in range(0, R, threads):
            touched[thread] = 0
            if first + thread < R:  # each thread looks at one RoI for all of them
                y, bin_y, _, x, bin_x, _, n = box(boxes, first + thread, N, h, w, rule[0], convention)
                end = np.int32(x0 + (tile - 1))
                if n == image and reach(y, T(h) * bin_y, row, row) and reach(x, T(w) * bin_x, x0, end):
                    touched[thread] = 1
                regions[0, thread], regions[1, thread], regions[2, thread], regions[3, thread] = y, bin_y, x, bin_x
            cuda.syncthreads()
            for k in range(threads if c < C else 0):
                if touched[k] != 0:
                    corner, bin_, _ = layout(first + k, c, C, h * w, C)
                    region = regions[0, k], regions[1, k], regions[2, k], regions[3, k]
                    contribute(grad, winner, corner, bin_, *region, row, x0, sums, thread, sizes, rule)
            cuda.syncthreads()
        for i in range(tile):
            # channels_last: lanes over channels, each its own column; else over cells, each warp one channel
            column, channel = (i, thread) if channels_last else (thread % tile, thread // tile + i * (threads // tile))
            if x0 + column < W and first_channel + channel < C:
                corner, cell, _ = layout(image, first_channel + channel, C, H * W, C)
                target[np.uint64(corner + np.int64(row * W + x0 + column) * np.int64(cell))] = sums[column, channel]

    return kernel
