"""The gradient of the boxes' corners, for the mean and the max: a block per RoI, and sums in a fixed order.

With t in 0..1 the place of a sample between the RoI's ends, v = start + t * size: the low corner moves a sample by
1 - t, the high one by t; where the size is held at one cell, the low one by 1. Along one axis a sample's value changes
by the difference of the cells on both sides.
"""

import functools

import numpy as np
from numba import cuda

from ..._numba_cuda import device
from .geometry import box_region, cell_of, sample_count, sample_place, sample_share
from .threads import RUN, THREADS, channel_run, channel_step, memory, single_channel


@functools.cache
def slopes(T):
    """The four cells around a sample, in reading order -> the change of its value by y and by x."""
    one = T(1)

    @device
    def change(a, b, d, e, fy, fx):
        return (one - fx) * (d - a) + fx * (e - b), (one - fy) * (b - a) + fy * (e - d)

    return change


@functools.cache
def corner_gradients(T):
    """The threads' sums of dv, and of dv times t * parts, in y and in x -> the RoI's row [0, x1, y1, x2, y2].

    parts: samples of the RoI along an axis, so t * parts is the number of a sample, plus its offset.
    """
    zero, threads = T(0), THREADS

    @device
    def finish(target, r, factor, y, ty, parts_y, free_y, x, tx, parts_x, free_x):
        thread = np.int32(cuda.threadIdx.x)
        sums = cuda.shared.array((4, threads), T)
        sums[0, thread], sums[1, thread], sums[2, thread], sums[3, thread] = x, tx, y, ty
        half = threads // 2
        while half > 0:  # a tree: the order of the sums never changes
            cuda.syncthreads()
            if thread < half:
                for k in range(4):
                    sums[k, thread] += sums[k, thread + half]
            half = half // 2
        if thread == 0:  # it made the last sums itself
            row = np.int64(r) * np.int64(5)
            target[np.uint64(row)] = zero
            for axis in range(2):
                parts, free = (parts_y, free_y) if axis == 1 else (parts_x, free_x)
                low, high = sums[2 * axis, 0], zero  # of a size held at one cell
                if free and parts > 0:
                    high = sums[2 * axis + 1, 0] / T(parts)
                    low -= high
                target[np.uint64(row + 1 + axis)] = factor * low
                target[np.uint64(row + 3 + axis)] = factor * high

    return finish


def mean_boxes_kernel(T, channels_last: bool):
    """kernel(gradient of out, features, boxes, gradient of boxes); the last size is `items` of a RoI, per bin."""
    work, layout, step = channel_run(channels_last), memory(channels_last), channel_step(channels_last)
    box, count, locate, at = box_region(T), sample_count(T, 0), cell_of(T), sample_place(T)
    change, finish, zero, run, threads = slopes(T), corner_gradients(T), T(0), RUN, np.int32(THREADS)
    average, none = sample_share(T), np.int32(0)

    def kernel(grad, features, boxes, target, sizes, rule):
        N, C, H, W, h, w, _, stride, asked, convention, items = sizes
        scale, offset, lowest, last_y, last_x = rule
        r, thread = np.int32(cuda.blockIdx.x), np.int32(cuda.threadIdx.x)
        y, bin_y, free_y, x, bin_x, free_x, image = box(boxes, r, N, h, w, scale, convention)
        ny, nx = count(bin_y, asked), count(bin_x, asked)
        sum_y, sum_ty, sum_x, sum_tx = zero, zero, zero, zero
        for item in range(thread, items if image >= 0 else none, threads):
            place, c = work(item, C, h * w)
            p = np.int32(np.uint32(place) // np.uint32(w))
            q = np.int32(place - p * w)
            corner, cell, channel = layout(image, c, C, H * W, stride)
            out_at, bin_, out_channel = layout(r, c, C, h * w, C)
            out_at, channels = out_at + np.int64(place) * np.int64(bin_), np.int32(C - c)
            for i in range(ny if c < C else none):
                in_y, top, fy, moves_y = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
                below = np.int32(W if top < H - 1 else 0)  # in cells
                row_y = zero
                for j in range(nx if in_y else none):
                    in_x, left, fx, moves_x = locate(at(x, bin_x, q, j, nx, offset), lowest, last_x, W)
                    right = np.int32(1 if left < W - 1 else 0)
                    here = corner + np.int64(np.int32(top * W + left)) * np.int64(cell)
                    a, b, d, e = zero, zero, zero, zero  # sums over channels of gradient times cell
                    for k in range(run):
                        if in_x and k * step < channels:
                            g = grad[np.uint64(out_at + np.int64(k * step) * np.int64(out_channel))]
                            at_k = here + np.int64(k * step) * np.int64(channel)
                            under_k = at_k + np.int64(below) * np.int64(cell)
                            aside = np.int64(right) * np.int64(cell)
                            a += g * features[np.uint64(at_k)]
                            b += g * features[np.uint64(at_k + aside)]
                            d += g * features[np.uint64(under_k)]
                            e += g * features[np.uint64(under_k + aside)]
                    dy, dx = change(a, b, d, e, fy, fx)
                    row_y += moves_y * dy
                    sum_x, sum_tx = sum_x + moves_x * dx, sum_tx + (T(np.int32(q * nx + j)) + offset) * (moves_x * dx)
                sum_y, sum_ty = sum_y + row_y, sum_ty + (T(np.int32(p * ny + i)) + offset) * row_y
        finish(target, r, scale * average(ny, nx), sum_y, sum_ty, ny * h, free_y, sum_x, sum_tx, nx * w, free_x)

    return kernel


def max_boxes_kernel(T, channels_last: bool):
    """kernel(gradient of out, winner, features, boxes, gradient of boxes): of the samples that won."""
    work, layout = single_channel(channels_last), memory(channels_last)
    box, count, locate, at = box_region(T), sample_count(T, 0), cell_of(T), sample_place(T)
    change, finish, zero, threads = slopes(T), corner_gradients(T), T(0), np.int32(THREADS)
    none = np.int32(0)

    def kernel(grad, winner, features, boxes, target, sizes, rule):
        N, C, H, W, h, w, _, _, asked, convention, _ = sizes
        scale, offset, lowest, last_y, last_x = rule
        r, thread = np.int32(cuda.blockIdx.x), np.int32(cuda.threadIdx.x)
        y, bin_y, free_y, x, bin_x, free_x, image = box(boxes, r, N, h, w, scale, convention)
        ny, nx = count(bin_y, asked), count(bin_x, asked)
        sum_y, sum_ty, sum_x, sum_tx = zero, zero, zero, zero
        items = np.int32(h * w * C)
        for item in range(thread, items if image >= 0 and nx > 0 else none, threads):
            index = np.uint64(np.int64(r) * np.int64(items) + np.int64(item))
            which = winner[index]
            if which >= 0:
                place, c = work(item, C, h * w)
                p = np.int32(np.uint32(place) // np.uint32(w))
                q, i = np.int32(place - p * w), np.int32(np.uint32(which) // np.uint32(nx))
                j = np.int32(which - i * nx)
                in_y, top, fy, moves_y = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
                in_x, left, fx, moves_x = locate(at(x, bin_x, q, j, nx, offset), lowest, last_x, W)
                if in_y and in_x:
                    corner, cell, _ = layout(image, c, C, H * W, C)
                    here = corner + np.int64(np.int32(top * W + left)) * np.int64(cell)
                    right = np.int64(cell if left < W - 1 else 0)
                    below = np.int64(W if top < H - 1 else 0) * np.int64(cell)
                    a, b = features[np.uint64(here)], features[np.uint64(here + right)]
                    d, e = features[np.uint64(here + below)], features[np.uint64(here + below + right)]
                    dy, dx = change(a, b, d, e, fy, fx)
                    dy, dx = moves_y * grad[index] * dy, moves_x * grad[index] * dx
                    sum_y, sum_ty = sum_y + dy, sum_ty + (T(np.int32(p * ny + i)) + offset) * dy
                    sum_x, sum_tx = sum_x + dx, sum_tx + (T(np.int32(q * nx + j)) + offset) * dx
        finish(target, r, scale, sum_y, sum_ty, ny * h, free_y, sum_x, sum_tx, nx * w, free_x)

    return kernel
