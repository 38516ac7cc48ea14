"""RoIPool on channels-last tables. winner: the cell y * W + x that is largest, -1 in a bin without cells."""

import math

import numpy as np
from numba import prange

from ..._numba import compiled
from .align import BLOCK
from .geometry import round_half_away


@compiled
def axis_bins(boxes, r, low_column, scale, bins, length, first_cells, end_cells):
    """RoIPool's bins along one axis: cells first..end-1, cut off at the map (Fast R-CNN, section 2.1)."""
    T = boxes.dtype.type
    first = round_half_away(T(boxes[r, low_column] * T(scale)))
    last = round_half_away(T(boxes[r, low_column + 2] * T(scale)))
    bin_size = T(T(max(last - first + 1, 1)) / T(bins))
    for p in range(bins):
        first_cells[p] = min(max(first + math.floor(T(T(p) * bin_size)), 0), length)
        end_cells[p] = min(max(first + math.ceil(T(T(p + 1) * bin_size)), 0), length)


@compiled
def _forward_roi(table, n, W, top, bottom, left, right, out, winner, r):
    """out[r], winner[r] (h*w, C): the largest cell of each bin, the first where several are equal.

    Arrays are indexed down to the channel: a view of a row, made anew for every cell, would cost as much as reading it.
    """
    w, C = len(left), table.shape[2]
    for k in range(len(top) * w):
        p, q = k // w, k % w
        empty = bottom[p] <= top[p] or right[q] <= left[q]
        first = top[p] * W + left[q]
        for c in range(C):
            out[r, k, c] = 0 if empty else table[n, first, c]
            winner[r, k, c] = -1 if empty else first
        for y in range(top[p], bottom[p]):
            for x in range(left[q], right[q]):
                cell = y * W + x
                for c in range(C):
                    larger = table[n, cell, c] > out[r, k, c]
                    out[r, k, c] = table[n, cell, c] if larger else out[r, k, c]
                    winner[r, k, c] = cell if larger else winner[r, k, c]


@compiled
def _forward_range(table, size, boxes, scale, bins, order, out, winner, first, last):
    """table (N, H*W, C); out and winner (R, h*w, C): the RoIs order[first:last]."""
    (H, W), (h, w) = size, bins
    top, bottom = np.empty(h, np.int64), np.empty(h, np.int64)
    left, right = np.empty(w, np.int64), np.empty(w, np.int64)
    for k in range(first, last):
        r = order[k]
        axis_bins(boxes, r, 2, scale, h, H, top, bottom)
        axis_bins(boxes, r, 1, scale, w, W, left, right)
        _forward_roi(table, int(boxes[r, 0]), W, top, bottom, left, right, out, winner, r)


@compiled
def forward_serial(table, size, boxes, scale, bins, order, out, winner):
    _forward_range(table, size, boxes, scale, bins, order, out, winner, 0, len(order))


@compiled(parallel=True)
def forward_parallel(table, size, boxes, scale, bins, order, out, winner):
    for block in prange((len(order) + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        _forward_range(table, size, boxes, scale, bins, order, out, winner, first, min(first + BLOCK, len(order)))


# ---- backward (Fast R-CNN, eq. 4): an output's gradient goes to the cell that won. Each task owns a run of channels.
# The arrays come in any strides: (R, C, h*w) and (N, C, H*W)


@compiled
def _backward_channels(grad, winner, batch, out, first, last):
    for r in range(len(grad)):
        for c in range(first, last):
            plane = out[batch[r], c]
            for k in range(grad.shape[2]):
                if winner[r, c, k] >= 0:
                    plane[winner[r, c, k]] += grad[r, c, k]


@compiled
def backward_serial(grad, winner, batch, out, run_length):
    _backward_channels(grad, winner, batch, out, 0, out.shape[1])


@compiled(parallel=True)
def backward_parallel(grad, winner, batch, out, run_length):
    C = out.shape[1]
    for task in prange((C + run_length - 1) // run_length):
        first = task * run_length
        _backward_channels(grad, winner, batch, out, first, min(first + run_length, C))
