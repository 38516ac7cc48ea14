"""RoIAlign with the largest of a bin's samples, forward, and backward with atomics (without them: `rows.py`).

winner: the number iy * nx + ix of the largest sample, the first where several are equal, -1 where there is none.
"""

import numpy as np
from numba import cuda

from .geometry import box_region, cell_of, sample_count, sample_place
from .threads import NOT_NEGATIVE, RUN, bins_of, channel_run, channel_step, memory, roi_share, single_channel


def max_kernel(T, channels_last: bool, ratio: int):
    """kernel(features, boxes, out, winner)."""
    share, work, bins, layout = roi_share(), channel_run(channels_last), bins_of(channels_last), memory(channels_last)
    box, count, locate, at = box_region(T), sample_count(T, ratio), cell_of(T), sample_place(T)
    zero, one, nan, run, step = T(0), T(1), T(np.nan), RUN, channel_step(channels_last)

    def kernel(features, boxes, out, winner, sizes, rule):
        N, C, H, W, h, w, _, stride, asked, convention, per_roi = sizes
        scale, offset, lowest, last_y, last_x = rule
        r, item = share(cuda.blockIdx.x, cuda.threadIdx.x, per_roi)
        place, c = work(item, C, h if channels_last else h * w)
        p, q_first, q_end = bins(place, w)
        if p >= h or c >= C:
            return
        y, bin_y, _, x, bin_x, _, image = box(boxes, r, N, h, w, scale, convention)
        ny, nx, left = count(bin_y, asked), count(bin_x, asked), np.int32(C - c)
        corner, cell, channel = layout(image, c, C, H * W, stride)
        out_corner, bin_, out_channel = layout(r, c, C, h * w, C)
        best, which = cuda.local.array(run, T), cuda.local.array(run, np.int32)
        for q in range(q_first, q_end):
            for k in range(run):
                best[k], which[k] = zero, np.int32(-1)
            for i in range(ny):
                in_y, top, fy, _ = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
                row, down = np.int32(top * W), np.int32(W if top < H - 1 else 0)
                for j in range(nx):
                    in_x, left_, fx, _ = locate(at(x, bin_x, q, j, nx, offset), lowest, last_x, W)
                    a = corner + np.int64(np.int32(row + left_)) * np.int64(cell)
                    b = a + np.int64(cell if left_ < W - 1 else 0)
                    d, e = a + np.int64(down) * np.int64(cell), b + np.int64(down) * np.int64(cell)
                    wa, wb, wd, we = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
                    for k in range(run):
                        value, add = zero, np.int64(k * step) * np.int64(channel)
                        if in_y and in_x and k * step < left:
                            value = wa * features[np.uint64(a + add)] + wb * features[np.uint64(b + add)]
                            value += wd * features[np.uint64(d + add)] + we * features[np.uint64(e + add)]
                        if which[k] < 0 or value > best[k]:
                            best[k], which[k] = value, np.int32(i * nx + j)
            out_at = out_corner + np.int64(np.int32(p * w + q)) * np.int64(bin_)
            for k in range(run):
                if k * step < left:
                    index = np.uint64(out_at + np.int64(k * step) * np.int64(out_channel))
                    out[index], winner[index] = best[k] if image >= 0 else nan, which[k] if image >= 0 else np.int32(-1)

    return kernel


def max_backward_kernel(T, channels_last: bool):
    """kernel(gradient of out, winner, boxes, gradient of the features, zeros): each output's goes to four cells."""
    share, work, layout = roi_share(), single_channel(channels_last), memory(channels_last)
    box, count, locate, at = box_region(T), sample_count(T, 0), cell_of(T), sample_place(T)
    zero, one, not_negative = T(0), T(1), NOT_NEGATIVE

    def kernel(grad, winner, boxes, target, sizes, rule):
        N, C, H, W, h, w, _, _, asked, convention, per_roi = sizes
        scale, offset, lowest, last_y, last_x = rule
        r, item = share(cuda.blockIdx.x, cuda.threadIdx.x, per_roi)
        place, c = work(item, C, h * w)
        if place >= h * w or c >= C:
            return
        index = np.uint64(np.int64(r) * np.int64(np.int32(h * w)) * np.int64(C) + np.int64(item))
        which = winner[index]
        y, bin_y, _, x, bin_x, _, image = box(boxes, r, N, h, w, scale, convention)
        ny, nx = count(bin_y, asked), count(bin_x, asked)
        if which < 0 or image < 0 or nx < 1:
            return
        i = np.int32(np.uint32(which) // np.uint32(nx))
        p = np.int32(np.uint32(place) // np.uint32(w))
        in_y, top, fy, _ = locate(at(y, bin_y, p, i, ny, offset), lowest, last_y, H)
        q, j = np.int32(place - p * w), np.int32(which - i * nx)
        in_x, left, fx, _ = locate(at(x, bin_x, q, j, nx, offset), lowest, last_x, W)
        if not (in_y and in_x):
            return
        corner, cell, _ = layout(image, c, C, H * W, C)
        for a in range(2):
            wy = fy if a else one - fy
            for b in range(2):
                weight = wy * (fx if b else one - fx)
                if weight != zero:
                    to = corner + np.int64(np.int32((top + a) * W + left + b)) * np.int64(cell)
                    cuda.atomic.add(target, np.int64(np.uint64(to) & not_negative), weight * grad[index])

    return kernel
