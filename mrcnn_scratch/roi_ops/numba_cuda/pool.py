"""RoIPool, forward, and backward with atomics (without them: `rows.py`).

Its region is MNC's: from cell round(low) to round(high), both inclusive. winner: the cell y * W + x that is largest,
the first where several are equal, -1 in a bin without cells.
"""

import functools

import numpy as np
from numba import cuda

from ..._numba_cuda import device
from .geometry import box_region, image_of, rounded_product, whole_part
from .threads import NOT_NEGATIVE, RUN, THREADS, bins_of, channel_run, channel_step, memory, roi_share, single_channel


@functools.cache
def bin_cells(T):
    """Bin p along one axis -> its cells first..end-1, cut off at the map (Fast R-CNN, section 2.1)."""
    times, whole, zero, one = rounded_product(T), whole_part(T), T(0), T(1)

    @device
    def inside(place, length):
        if place < zero:
            return np.int32(0)
        return np.int32(place) if place < T(length) else np.int32(length)

    @device
    def cells(start, bin_size, p, length):
        low, high = times(T(p), bin_size), times(T(np.int32(p + 1)), bin_size)
        floor, ceiling = whole(low), whole(high)
        if ceiling < high:
            ceiling += one
        return inside(start + floor, length), inside(start + ceiling, length)

    return cells


def pool_kernel(T, channels_last: bool):
    """kernel(features, boxes, out, winner)."""
    share, work, bins, layout = roi_share(), channel_run(channels_last), bins_of(channels_last), memory(channels_last)
    box, cells, zero, nan, run, step = box_region(T), bin_cells(T), T(0), T(np.nan), RUN, channel_step(channels_last)

    def kernel(features, boxes, out, winner, sizes, rule):
        N, C, H, W, h, w, _, stride, _, convention, per_roi = sizes
        r, item = share(cuda.blockIdx.x, cuda.threadIdx.x, per_roi)
        place, c = work(item, C, h if channels_last else h * w)
        p, q_first, q_end = bins(place, w)
        if p >= h or c >= C:
            return
        y, bin_y, _, x, bin_x, _, image = box(boxes, r, N, h, w, rule[0], convention)
        corner, cell, channel = layout(image, c, C, H * W, stride)
        out_corner, bin_, out_channel = layout(r, c, C, h * w, C)
        top, bottom = cells(y, bin_y, p, H)
        left = np.int32(C - c)
        best, which = cuda.local.array(run, T), cuda.local.array(run, np.int32)
        for q in range(q_first, q_end):
            first, end = cells(x, bin_x, q, W)
            for k in range(run):
                best[k], which[k] = zero if image >= 0 else nan, np.int32(-1)
            for i in range(top, bottom if image >= 0 else top):
                for j in range(first, end):
                    index = np.int32(i * W + j)
                    at = corner + np.int64(index) * np.int64(cell)
                    for k in range(run):
                        if k * step < left:
                            value = features[np.uint64(at + np.int64(k * step) * np.int64(channel))]
                            if which[k] < 0 or value > best[k]:
                                best[k], which[k] = value, index
            out_at = out_corner + np.int64(np.int32(p * w + q)) * np.int64(bin_)
            for k in range(run):
                if k * step < left:
                    to = np.uint64(out_at + np.int64(k * step) * np.int64(out_channel))
                    out[to], winner[to] = best[k], which[k]

    return kernel


def pool_backward_kernel(T, channels_last: bool):
    """kernel(gradient of out, winner, boxes, gradient of the features, zeros): Fast R-CNN, eq. 4."""
    share, work, layout = roi_share(), single_channel(channels_last), memory(channels_last)
    image_index, not_negative = image_of(T), NOT_NEGATIVE

    def kernel(grad, winner, boxes, target, sizes, rule):
        N, C, H, W, h, w, _, _, _, _, per_roi = sizes
        r, item = share(cuda.blockIdx.x, cuda.threadIdx.x, per_roi)
        place, c = work(item, C, h * w)
        if place >= h * w or c >= C:
            return
        index = np.uint64(np.int64(r) * np.int64(np.int32(h * w)) * np.int64(C) + np.int64(item))
        image = image_index(boxes, r, N)
        if winner[index] >= 0 and image >= 0:
            corner, cell, _ = layout(image, c, C, H * W, C)
            to = corner + np.int64(winner[index]) * np.int64(cell)
            cuda.atomic.add(target, np.int64(np.uint64(to) & not_negative), grad[index])

    return kernel


def hull_kernel(T, channels_last: bool):
    """kernel(winner, boxes, hulls): the cells that won in each RoI lie in [image, x, y, last x, last y] = hulls (R, 5).

    Image -1: nothing won. A block per RoI; smallest and largest come out the same in any order.
    """
    image_index, threads = image_of(T), THREADS

    def kernel(winner, boxes, hulls, sizes, rule):
        N, C, H, W, h, w, _, _, _, _, _ = sizes
        r, thread, items = np.int32(cuda.blockIdx.x), np.int32(cuda.threadIdx.x), np.int32(h * w * C)
        low_x, low_y, high_x, high_y = np.int32(W), np.int32(H), np.int32(-1), np.int32(-1)
        for item in range(thread, items, threads):
            cell = winner[np.uint64(np.int64(r) * np.int64(items) + np.int64(item))]
            if cell >= 0:
                y = np.int32(np.uint32(cell) // np.uint32(W))
                x = np.int32(cell - y * W)
                low_x, high_x = x if x < low_x else low_x, x if x > high_x else high_x
                low_y, high_y = y if y < low_y else low_y, y if y > high_y else high_y
        ends = cuda.shared.array((4, threads), np.int32)
        ends[0, thread], ends[1, thread], ends[2, thread], ends[3, thread] = low_x, low_y, high_x, high_y
        half = threads // 2
        while half > 0:
            cuda.syncthreads()
            if thread < half:
                for k in range(4):
                    mine, other = ends[k, thread], ends[k, thread + half]
                    if (other < mine) == (k < 2):  # smallest of the low ends, largest of the high ones
                        ends[k, thread] = other
            half = half // 2
        if thread == 0:
            row = np.int64(r) * np.int64(5)
            hulls[np.uint64(row)] = T(image_index(boxes, r, N) if ends[2, 0] >= 0 else -1)
            for k in range(4):
                hulls[np.uint64(row + 1 + k)] = T(ends[k, 0])

    return kernel
