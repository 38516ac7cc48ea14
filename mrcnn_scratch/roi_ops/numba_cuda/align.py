"""RoIAlign with the mean of the samples, forward and backward.

Both walk the same cells with the same weights: forward reads a cell and adds to the output, backward reads the output's
gradient and adds to the cell, with atomics, since bins share cells (without them: `rows.py`).

A thread owns `RUN` channels of one bin (plain tensors) or of a row of bins (channels_last), so that finding a sample is
paid once for all of them. The cells of neighbouring samples are merged before they are read (`weighted_cells`).
"""

import functools

import numpy as np
from numba import cuda

from ..._numba_cuda import device
from .geometry import box_region, sample_count, sample_share, weighted_cells
from .threads import NOT_NEGATIVE, RUN, bins_of, channel_run, channel_step, memory, roi_share


@functools.cache
def transfer(T, channels_last: bool, backward: bool):
    """What is done with a thread's `values` (RUN,): when a bin begins, at each of its cells, and when it is done."""
    zero, step, run, not_negative = T(0), channel_step(channels_last), RUN, NOT_NEGATIVE

    @device
    def begin(source, at, channel, left, factor, values):
        for k in range(run):
            values[k] = zero
            if backward and k * step < left:
                values[k] = factor * source[np.uint64(at + np.int64(k * step) * np.int64(channel))]

    @device
    def visit(source, target, at, channel, left, weight, values):
        read = cuda.local.array(run, T)  # all loads first, so that they are under way together
        for k in range(run):
            read[k] = zero
            if k * step < left:
                cell = np.uint64(at + np.int64(k * step) * np.int64(channel))
                if backward:
                    cuda.atomic.add(target, np.int64(cell & not_negative), weight * values[k])
                else:
                    read[k] = source[cell]
        if not backward:
            for k in range(run):
                values[k] += weight * read[k]

    @device
    def finish(target, at, channel, left, factor, values):
        if not backward:
            for k in range(run):
                if k * step < left:
                    target[np.uint64(at + np.int64(k * step) * np.int64(channel))] = values[k] * factor

    return begin, visit, finish


def mean_kernel(T, channels_last: bool, ratio: int, backward: bool):
    """kernel(features, boxes, out), or backward: kernel(gradient of out, boxes, gradient of the features, zeros)."""
    # cells and weights of merged samples live in registers: two samples per axis at most
    group = ratio if ratio in (1, 2) else 2 if channels_last or backward else 1
    cells, hoisted = 2 * group, ratio == group
    share, work, bins, layout = roi_share(), channel_run(channels_last), bins_of(channels_last), memory(channels_last)
    box, count, fill = box_region(T), sample_count(T, ratio), weighted_cells(T, group, ratio)
    average, (begin, visit, finish) = sample_share(T), transfer(T, channels_last, backward)
    zero, nan, run = T(0), T(np.nan), RUN
    first, group_ = np.int32(0), np.int32(group)  # 32 bits, or a loop's counter and its end take two registers each

    def kernel(source, boxes, target, sizes, rule):
        N, C, H, W, h, w, _, stride, asked, convention, per_roi = sizes
        scale, offset, lowest, last_y, last_x = rule
        r, item = share(cuda.blockIdx.x, cuda.threadIdx.x, per_roi)
        place, c = work(item, C, h if channels_last else h * w)
        p, q_first, q_end = bins(place, w)
        if p >= h or c >= C:
            return
        y, bin_y, _, x, bin_x, _, image = box(boxes, r, N, h, w, scale, convention)
        ny, nx, left = count(bin_y, asked), count(bin_x, asked), np.int32(C - c)
        factor = average(ny, nx) if image >= 0 else nan
        corner, cell, channel = layout(image, c, C, H * W, stride)
        out_corner, bin_, out_channel = layout(r, c, C, h * w, C)
        row_cells, row_weights = cuda.local.array(cells, np.int32), cuda.local.array(cells, T)
        column_cells, column_weights = cuda.local.array(cells, np.int32), cuda.local.array(cells, T)
        values = cuda.local.array(run, T)
        if hoisted:
            fill(y, bin_y, p, first, ny, offset, lowest, last_y, H, row_cells, row_weights)
        for q in range(q_first, q_end):
            out_at = out_corner + np.int64(np.int32(p * w + q)) * np.int64(bin_)
            begin(source, out_at, out_channel, left, factor, values)
            for i in range(first, ny, group_):
                if not hoisted:
                    fill(y, bin_y, p, i, ny, offset, lowest, last_y, H, row_cells, row_weights)
                for j in range(first, nx, group_):
                    fill(x, bin_x, q, j, nx, offset, lowest, last_x, W, column_cells, column_weights)
                    for a in range(cells):
                        if row_weights[a] != zero:
                            row = np.int32(row_cells[a] * W)
                            for b in range(cells):
                                if column_weights[b] != zero:
                                    at = corner + np.int64(np.int32(row + column_cells[b])) * np.int64(cell)
                                    visit(source, target, at, channel, left, row_weights[a] * column_weights[b], values)
            finish(target, out_at, out_channel, left, factor, values)

    return kernel
