"""The work that a job cannot avoid, in bytes and floating point operations, and the time that it must take at least.

Compulsory traffic, float32, R RoIs of h x w bins, C channels; `touched`: cells (N, H, W) that any sample reads:

    align, warp forward   4 C (touched + R h w)                 each touched cell read once, the result written
    align, warp backward  4 C (R h w + N H W + 2 touched)       gradient read; result filled with 0, read and written
    pool forward          4 C (touched + 2 R h w)               also the int32 that says which cell won
    pool backward         4 C (2 R h w + N H W + 2 min(touched, R h w))

plus 20 R for the boxes. Operations: a bin of RoIAlign is a weighted sum of its distinct cells (weights of a cell that
several samples read are added first, once for all channels), a multiplication and an addition for each:

    align, warp, both directions   2 C * sum over bins of distinct cells
    pool forward                   C * sum over bins of cells (comparisons);  backward  C R h w (additions)

Roofline (Williams, Waterman, Patterson 2009): a job takes at least max(flops / peak, bytes / bandwidth). NMS is left
out: the pairs that have to be compared depend on the algorithm, so there is no such bound.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case


@dataclass(frozen=True)
class Work:
    bytes: int
    flops: int
    touched: int  # cells


def align_cells(low: float, high: float, bins: int, scale: float, sampling: int, length: int, warp: bool) -> np.ndarray:
    """Which cells each bin of RoIAlign (or RoIWarp) reads along one axis: (bins, length) bool. Contract as in roi_ops.

    The box [1, 3] in 2 bins with 2 samples each, on 5 cells, starts at index 0.5: samples at 0.75 and 1.25 read the
    cells 0, 1, 2; those at 1.75 and 2.25 the cells 1, 2, 3.
    """
    low, high = low * scale, high * scale
    if warp:
        low, high = np.floor(low + 0.5), np.floor(high + 0.5) + 1
    n = sampling or int(np.ceil((high - low) / bins))
    place = low - 0.5 + (np.arange(bins)[:, None] + (np.arange(n) + 0.5) / n) * ((high - low) / bins)  # (bins, n)
    counts = (place >= -1) & (place <= length)
    place = place.clip(0, length - 1)
    cell = np.floor(place + 1e-9).astype(np.int64)  # a cell that only rounding gives a weight is not needed
    reads = np.zeros((bins, length), dtype=bool)
    p = np.broadcast_to(np.arange(bins)[:, None], cell.shape)
    reads[p[counts], cell[counts]] = True
    between = counts & (place > cell + 1e-9)
    reads[p[between], cell[between] + 1] = True
    return reads


def pool_cells(low: float, high: float, bins: int, scale: float, length: int) -> np.ndarray:
    """The same for RoIPool: corners 1 and 3 are the cells 1, 2, 3, two bins of them [1, 2] and [2, 3]."""
    first, last = np.floor(low * scale + 0.5), np.floor(high * scale + 0.5)
    size = max(last - first + 1, 1) / bins
    start = np.floor(np.arange(bins) * size) + first
    end = np.ceil(np.arange(1, bins + 1) * size) + first
    cell = np.arange(length)
    return (cell >= start[:, None]) & (cell < end[:, None])


def work_of(case: Case, boxes: np.ndarray) -> Work | None:
    """Bytes and operations of a case; boxes (R, 5) float32 as its contestants get them. None for NMS."""
    if case.op == "nms":
        return None
    (N, C, H, W), R, bins = case.shape, case.rois, case.bins
    seen = np.zeros((N, H, W), dtype=bool)
    read = 0  # cells, summed over bins
    for index, x1, y1, x2, y2 in boxes.astype(np.float64):
        if case.op == "pool":
            axes = [pool_cells(*ends, bins, 1 / case.stride, L) for ends, L in (((y1, y2), H), ((x1, x2), W))]
        else:
            options = 1 / case.stride, case.sampling
            warp = case.op == "warp"
            axes = [align_cells(*ends, bins, *options, L, warp) for ends, L in (((y1, y2), H), ((x1, x2), W))]
        rows, columns = (axis.any(axis=0).nonzero()[0] for axis in axes)
        seen[int(index), rows[:, None], columns] = True
        read += int(axes[0].sum()) * int(axes[1].sum())
    return _count(case, C, R * bins * bins, N * H * W, int(seen.sum()), read)


def _count(case: Case, C: int, outputs: int, cells: int, touched: int, read: int) -> Work:
    forward, pool = case.direction == "forward", case.op == "pool"
    if pool:
        moved = touched + 2 * outputs if forward else 2 * outputs + cells + 2 * min(touched, outputs)
        flops = read if forward else outputs
    else:
        moved = touched + outputs if forward else outputs + cells + 2 * touched
        flops = 2 * read
    return Work(4 * C * moved + 20 * case.rois, C * flops, touched)


def least_seconds(work: Work, gb_s: float, gflop_s: float) -> float:
    """What the roofline allows; 1e9 bytes at 50 GB/s and 1e9 operations at 100 GFLOP/s take 0.02 s: bound by memory."""
    return max(work.bytes / (gb_s * 1e9), work.flops / (gflop_s * 1e9))
