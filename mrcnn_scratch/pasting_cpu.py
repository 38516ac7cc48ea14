"""Mask pasting compiled for the CPU: only the pixels of each box are computed.

Bilinear interpolation is separable: for each row of pixels two rows of the mask are blended into one `line`, which lies
in the innermost cache, and each pixel blends two of the line's values. Which two, and how much of each, depends on the
column alone and is computed once per box. That leaves the zeros around the boxes: 100 masks of 800 x 1333 are 427 MB,
and to write them takes several times longer than the boxes do. See `_canvas`.
"""

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ._numba import FASTMATH, compiled, run, threads
from .roi_ops.numba_cpu.streaming import LANES, LINE, end_of_stream, stream

LEAST = 1e-6  # as in pasting.py, which cannot be asked: it imports this file where there is Numba

SMALL = 16 << 20  # bytes; below this malloc does as well
KEEP = 512 << 20  # bytes; a larger canvas would be a burden to whoever does not paste again

_kept: list[np.ndarray] = []  # the memory of at most one canvas that nobody uses any more


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], ring: int, threshold: float | None) -> Tensor:
    """What `pasting.paste_masks` describes, with the boxes already made ready.

    Args:
        masks: (D, M, M) float32 or float64, on the CPU.
        boxes: (D, 4) float64 xyxy, pixels, finite.
        size: height and width of the image, pixels.
        ring: empty cells around the mask that the box covers too: 0, or 1 for legacy.
        threshold: None, or what a pixel must reach to be set.
    Returns: (D, H, W) in the masks' dtype, bool with a threshold.
    """
    out, lines = _canvas((len(masks), *size), masks.dtype if threshold is None else torch.bool)
    masks, boxes = masks.detach().contiguous().numpy(), boxes.contiguous().numpy()
    cut = None if threshold is None else masks.dtype.type(threshold)
    run(_serial, _parallel, _pixels(boxes, *size) + lines.size, masks, boxes, ring, cut, out.numpy(), lines, threads())
    return out


class _Loan:
    """What a canvas stands on. When the last view of it has gone, its memory is free, and kept for the next one."""

    def __init__(self, block: np.ndarray):
        self.block, self.__array_interface__ = block, block.__array_interface__

    def __del__(self):
        _kept[:] = [self.block]


def _canvas(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, np.ndarray]:
    """A tensor to paste into, and what of its memory is still to be cleared, as whole cache lines of float32.

    Fresh memory is zero, but the system gives and clears it page by page where it is first written: with the boxes of
    100 objects that took 28 ms. All 427 MB of memory that is there already are cleared past the cache in 16 (one
    thread). So a large canvas that nobody uses any more is kept: one, for images tend to be of a size. It is not left
    to `roi_ops.numba_cpu.memory`, whose blocks it would push out, and which does not say what is fresh.
    """
    count, nothing = math.prod(shape), np.empty(0, np.float32)
    nbytes = -(-count * dtype.itemsize // LINE) * LINE
    if nbytes < SMALL:
        return torch.zeros(shape, dtype=dtype), nothing
    if nbytes > KEEP:
        return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype)[:count].view(shape), nothing
    try:
        block = _kept.pop()
    except IndexError:
        block = nothing.view(np.uint8)
    if fresh := not nbytes <= len(block) <= 2 * nbytes:
        block = np.zeros(nbytes + nbytes // 8 + LINE, np.uint8)  # an eighth to spare: the number of objects varies
        block = block[-block.ctypes.data % LINE :]
    memory = torch.from_numpy(np.asarray(_Loan(block))[:nbytes])
    return memory.view(dtype)[:count].view(shape), nothing if fresh else memory.numpy().view(np.float32)


@compiled(error_model="numpy")
def _span(low, high, size):
    """Of the pixels 0 to size - 1, those that [low, high) reaches into: the first, and the first that it does not."""
    if not low < high:
        return 0, 0
    first, last = int(min(max(np.floor(low), 0), size)), int(max(min(np.ceil(high), size), 0))
    return first, max(first, last)


@compiled(error_model="numpy")
def _pixels(boxes, H, W):
    """How many pixels all boxes have in the image."""
    total = 0
    for d in range(len(boxes)):
        (left, right), (top, bottom) = _span(boxes[d, 0], boxes[d, 2], W), _span(boxes[d, 1], boxes[d, 3], H)
        total += (right - left) * (bottom - top)
    return total


@compiled(error_model="numpy")
def _taps(low, high, first, last, cells, ring, before, weight):
    """For each pixel from first on: the cell at or before its centre, and how much it takes of the next cell.

    The centres of cells lie at 0 to cells - 1. Cell -1 is empty, and so are the cell `cells` and all beyond: `before`
    counts from cell -1, and is at most cells + 1.
    """
    scale = (cells + 2 * ring) / max(high - low, LEAST)
    for i in range(last - first):
        place = min(max((first + i + 0.5 - low) * scale + (0.5 - ring), 0.0), cells + 1.0)
        before[i] = np.uint32(place)
        weight[i] = place - np.floor(place)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _paste_part(masks, boxes, ring, threshold, out, part, parts):
    """One of equal parts of all boxes' rows: threads have equal work, whatever the sizes of the boxes.

    A box belongs to one thread, or to two where a part ends: threads that write to one page at first both fetch it.
    """
    (D, M, N), (_, H, W) = masks.shape, out.shape
    rows = 0
    for d in range(D):
        top, bottom = _span(boxes[d, 1], boxes[d, 3], H)
        rows += bottom - top
    begin, end = rows * part // parts, rows * (part + 1) // parts
    column, right_weight = np.empty(W, np.uint32), np.empty(W, masks.dtype)
    row, lower_weight = np.empty(H, np.uint32), np.empty(H, masks.dtype)
    line, nothing = np.zeros(N + 3, masks.dtype), masks.dtype.type(0)  # an empty cell, N, and two empty ones
    rows = 0
    for d in range(D):
        (left, right), (top, bottom) = _span(boxes[d, 0], boxes[d, 2], W), _span(boxes[d, 1], boxes[d, 3], H)
        first, last = max(top, top + begin - rows), min(bottom, top + end - rows)
        rows += bottom - top
        if first >= last or left >= right:
            continue
        _taps(boxes[d, 0], boxes[d, 2], left, right, N, ring, column, right_weight)
        _taps(boxes[d, 1], boxes[d, 3], first, last, M, ring, row, lower_weight)
        for y in range(first, last):
            below, share = np.int64(row[y - first]), lower_weight[y - first]
            for c in range(N):
                upper = masks[d, below - 1, c] if 0 < below <= M else nothing
                lower = masks[d, below, c] if below < M else nothing
                line[c + 1] = upper + share * (lower - upper)
            target = out[d, y, left:right]  # one view for a whole row: from 0 on, indices are SIMD
            if threshold is None:
                for x in range(right - left):
                    before, after = line[column[x]], line[column[x] + np.uint32(1)]
                    target[x] = before + right_weight[x] * (after - before)
            else:
                for x in range(right - left):
                    before, after = line[column[x]], line[column[x] + np.uint32(1)]
                    target[x] = before + right_weight[x] * (after - before) >= threshold


@compiled
def _clear(lines, part, parts):
    """One of equal parts of the memory that is not yet zero, past the cache: what is so large does not stay there."""
    zeros, count = np.zeros(LANES, np.float32), len(lines) // LANES
    for i in range(count * part // parts, count * (part + 1) // parts):
        stream(zeros, lines, i * LANES)
    end_of_stream()


@compiled(fastmath=FASTMATH, error_model="numpy")
def _serial(masks, boxes, ring, threshold, out, lines, parts):
    _clear(lines, 0, 1)
    _paste_part(masks, boxes, ring, threshold, out, 0, 1)


@compiled(fastmath=FASTMATH, error_model="numpy", parallel=True)
def _parallel(masks, boxes, ring, threshold, out, lines, parts):
    for part in prange(parts):
        _clear(lines, part, parts)
    for part in prange(parts):
        _paste_part(masks, boxes, ring, threshold, out, part, parts)
