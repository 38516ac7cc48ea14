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
def _largest(image, W, top, bottom, left, right, value, place):
    """value, place (C,): the largest of the cells of one bin, the first where several are equal."""
    value[:] = image[top * W + left]
    place[:] = top * W + left
    for y in range(top, bottom):
        for x in range(left, right):
            cell, where = image[y * W + x], np.int32(y * W + x)
            for c in range(len(value)):
                larger = cell[c] > value[c]
                value[c] = cell[c] if larger else value[c]
                place[c] = where if larger else place[c]


@compiled
def _forward_range(table, size, boxes, scale, bins, order, out, winner, first, last):
    """table (N, H*W, C); out and winner (R, h*w, C): the RoIs order[first:last]."""
    (H, W), (h, w) = size, bins
    top, bottom, left, right = np.empty(h, np.int64), np.empty(h, np.int64), np.empty(w, np.int64), np.empty(w, np.int64)
    for k in range(first, last):
        r = order[k]
        axis_bins(boxes, r, 2, scale, h, H, top, bottom)
        axis_bins(boxes, r, 1, scale, w, W, left, right)
        image = table[int(boxes[r, 0])]
        for p in range(h):
            for q in range(w):
                value, place = out[r, p * w + q], winner[r, p * w + q]
                if bottom[p] <= top[p] or right[q] <= left[q]:
                    value[:] = 0
                    place[:] = -1
                else:
                    _largest(image, W, top[p], bottom[p], left[q], right[q], value, place)


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
