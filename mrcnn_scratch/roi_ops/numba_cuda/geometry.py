"""Where samples lie: what every RoIAlign kernel asks of a box, as device functions for one precision T.

Every operation is rounded to T in the order in which torch, torchvision and the CPU kernels round it. The compiler
would fuse `start + p * bin` into one operation with one rounding, and a sample on the border rule's edge would land on
its other side: hence `rounded_product`.
"""

import functools

import numpy as np

from ..._numba_cuda import SIMULATED, device

CONVENTIONS = {"aligned": 0, "legacy": 1, "warp": 2, "mnc": 3}
ALIGNED, LEGACY, WARP = 0, 1, 2
FAR = 1e9  # cells; a box further off is an exploded one, and its adaptive samples would not fit an int32


@functools.lru_cache(256)
def sampling_rule(convention: str, size: tuple[int, int], spatial_scale: float, T) -> tuple:
    """What kernels need of a convention besides its number: scale, offset of a sample in its part of the bin, and the
    places v that count, lowest <= v <= last, with last for y and x; all in T. MNC's -0.5 < v < L - 0.5 is that, too.
    """
    if convention != "mnc":
        return T(spatial_scale), T(0.5), T(-1), T(size[0]), T(size[1])
    last = (np.nextafter(T(length - 0.5), T(0)) for length in size)
    return T(spatial_scale), T(0), np.nextafter(T(-0.5), T(0)), *last


@functools.cache
def rounded_product(T):
    """a * b, rounded before anything is added to it."""
    if SIMULATED:
        return lambda a, b: a * b
    from numba.cuda import libdevice

    return libdevice.fmul_rn if T is np.float32 else libdevice.dmul_rn


@functools.cache
def whole_part(T):
    """The whole part of x >= 0. From `limit` on every number is whole, and would not fit an integer for long."""
    limit = T(2**23 if T is np.float32 else 2**52)
    integer = np.int32 if T is np.float32 else np.int64

    @device
    def whole(x):
        return T(integer(x)) if x < limit else x

    return whole


@functools.cache
def half_away_rounding(T):
    """C's `round`: 0.5 -> 1 and -0.5 -> -1."""
    whole, zero, half, one = whole_part(T), T(0), T(0.5), T(1)

    @device
    def round_half_away(x):
        size = x if x >= zero else -x
        rounded = whole(size)
        if size - rounded >= half:
            rounded += one
        return rounded if x >= zero else -rounded

    return round_half_away


@functools.cache
def axis_region(T):
    """One axis of a box -> start and size of a bin in index space, and whether its size is free (not held at 1)."""
    times, rounded, half, one = rounded_product(T), half_away_rounding(T), T(0.5), T(1)

    @device
    def region(low, high, scale, bins, convention):
        low, high = times(low, scale), times(high, scale)
        if convention >= WARP:
            low, high = rounded(low), rounded(high)
        size = high - low
        if convention == ALIGNED:
            size = (high - half) - (low - half)  # torchvision's order: one ulp can be one adaptive sample more
        elif convention != LEGACY:
            size += one  # both cells belong to the RoI
        free = convention == ALIGNED or size >= one
        if not free:
            size = one
        start = low - half if convention == ALIGNED or convention == WARP else low
        return start, size / T(bins), free

    return region


@functools.cache
def image_of(T):
    """Box r of a flat (R * 5,) array -> its image, or -1 where its batch index is none of 0..N-1."""
    zero = T(0)

    @device
    def image(boxes, r, N):
        index = boxes[np.uint64(np.int64(r) * np.int64(5))]
        if index >= zero and index < T(N):  # not so if it is NaN
            whole = np.int32(index)
            return whole if T(whole) == index else np.int32(-1)
        return np.int32(-1)

    return image


@functools.cache
def box_region(T):
    """Box r -> start and bin size in y, in x, whether each size is free, and the image.

    Image -1: as in `image_of`, or a corner that is not finite or further than `FAR` off. All places are NaN then, so no
    sample counts.
    """
    region, image_index, far, nan = axis_region(T), image_of(T), T(FAR), T(np.nan)

    @device
    def box(boxes, r, N, h, w, scale, convention):
        row = np.int64(r) * np.int64(5)
        y, bin_y, free_y = region(boxes[np.uint64(row + 2)], boxes[np.uint64(row + 4)], scale, h, convention)
        x, bin_x, free_x = region(boxes[np.uint64(row + 1)], boxes[np.uint64(row + 3)], scale, w, convention)
        image = image_index(boxes, r, N)
        near = abs(y) < far and abs(x) < far and abs(bin_y) < far and abs(bin_x) < far  # not so if any is NaN
        if image < 0 or not near:
            image, y, bin_y, x, bin_x = np.int32(-1), nan, nan, nan, nan
        return y, bin_y, free_y, x, bin_x, free_x, image

    return box


@functools.cache
def sample_count(T, ratio: int):
    """Samples per bin on one axis: frozen, or as the launch says, or (0) as many as the bin has cells."""
    zero, one = np.int32(0), np.int32(1)
    frozen = np.int32(ratio)

    @device
    def count(bin_size, asked):
        if frozen > zero:
            return frozen
        if asked > zero:
            return asked
        if not bin_size > T(0):
            return zero
        cells = np.int32(bin_size)
        return np.int32(cells + one) if T(cells) < bin_size else cells

    return count


@functools.cache
def sample_share(T):
    """What each of a bin's samples counts in their mean; 0 where there are none."""
    zero, one = T(0), T(1)

    @device
    def share(ny, nx):
        samples = T(ny) * T(nx)
        return one / samples if samples > zero else zero

    return share


@functools.cache
def sample_place(T):
    """The place v of sample i of n in bin p."""
    times = rounded_product(T)

    @device
    def place(start, bin_size, p, i, n, offset):
        return (start + times(T(p), bin_size)) + times(T(i) + offset, bin_size) / T(n)

    return place


@functools.cache
def cell_of(T):
    """v -> whether it counts, its cell (floor), the fraction towards the next, and dv'/dv of v clamped to the map."""
    zero, one = T(0), T(1)

    @device
    def locate(v, lowest, last, length):
        counts = v >= lowest and v <= last
        cell, fraction, slope = np.int32(0), zero, zero
        if v > zero:
            edge = np.int32(length - 1)
            if v >= T(edge):
                cell = edge
            else:
                cell = np.int32(v)
                fraction, slope = v - T(cell), one
        return counts, cell, fraction, slope

    return locate


@functools.cache
def weighted_cells(T, group: int, ratio: int):
    """Samples i..i+group-1 of bin p as 2 * group cells with weights; a cell that two share gets the sum of theirs.

    Weight 0: read nothing there, it may be no cell at all.
    """
    place, locate, zero, one = sample_place(T), cell_of(T), T(0), T(1)
    all_counted = ratio > 0 and ratio % group == 0  # else the last group may reach beyond the samples

    @device
    def fill(start, bin_size, p, i, n, offset, lowest, last, length, cells, weights):
        for g in range(group):
            v = place(start, bin_size, p, np.int32(i + g), n, offset)
            counts, cell, fraction, _ = locate(v, lowest, last, length)
            near, far = zero, zero
            if counts and (all_counted or i + g < n):
                near, far = one - fraction, fraction
            if g > 0:
                if cells[2 * g - 2] == cell:  # the same two cells as the sample before
                    weights[2 * g - 2] += near
                    weights[2 * g - 1] += far
                    near, far = zero, zero
                elif cells[2 * g - 1] == cell:  # one cell further on
                    weights[2 * g - 1] += near
                    near = zero
            cells[2 * g], weights[2 * g] = cell, near
            cells[2 * g + 1], weights[2 * g + 1] = np.int32(cell + 1), far

    return fill
