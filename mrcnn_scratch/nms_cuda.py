"""Greedy NMS on a GPU: every pair of boxes at once, then one pass over the answers.

Boxes are sorted by group, in a group best first, and cut into tiles of 64. `_overlaps` compares all pairs, a block of
64 threads for two tiles: a thread's answer for one box and the 64 of the other tile is the 64 bits of one word.
`_sweep`, a single block, then goes through the tiles in order: it decides the tile's 64 boxes one after the other, and
lets those that stay remove boxes from all later tiles, 64 with each word.

Everything runs on torch's current stream. The host waits once, for the number of boxes that stay; whether all values
were finite arrives with it.
"""

import functools

import numpy as np
import torch
from numba import cuda, float32, float64, int32, int64, uint8
from torch import Tensor

from ._numba_cuda import SIMULATED, compiled, launch

TILE = 64  # boxes: a word of bits
LANES = 32  # threads that read neighbouring words
THREADS = 64 if SIMULATED else 512  # of the sweep: LANES words by THREADS / LANES shares of the tile's boxes
WORDS = 1 << 23  # of bits held at a time, 64 MiB; more boxes than fill it are done in several rounds
SWEEP_TYPES = (int64[::1], int32[::1], int32, int32, int32, int64[::1], uint8[::1])


def keep(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor | None:
    """The boxes that greedy NMS keeps.

    Args:
        boxes: (R, 4) float32 or float64 xyxy, on a GPU.
        scores: (R,) float.
        groups: (R,) int64; only boxes of one group suppress each other. None: all are one group.
        threshold: a number that the boxes' dtype can hold; an IoU above it suppresses.
    Returns: (D,) int64 indices, best first; None if boxes or scores are not all finite.
    Raises: RuntimeError where Numba's CUDA does not work.
    """
    R = len(boxes)
    order = scores.argsort(descending=True, stable=True)
    if R == 0:
        return order
    if groups is None:
        stays = _decide(boxes[order], torch.zeros_like(order), threshold)
    else:
        by_group = groups[order].argsort(stable=True)
        rows = order[by_group]
        stays = torch.empty(R, dtype=torch.uint8, device=boxes.device)
        stays[by_group] = _decide(boxes[rows], groups[rows], threshold)
    # `order[stays]` would make the host wait for its size; so each goes to its place, those to be dropped to place R
    place = stays.cumsum(0, dtype=torch.int64)
    kept = order.new_empty(R + 1).scatter_(0, torch.where(stays > 0, place - 1, R), order)
    finite = (boxes.isfinite().all(dim=1) & scores.isfinite()).all()
    count, finite = torch.stack([place[-1], finite.to(torch.int64)]).tolist()
    return kept[:count] if finite else None


def _decide(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """boxes (R, 4), groups (R,) int64, by group and in it best first -> (R,) uint8, 1 for a box that stays."""
    R, tiles = len(boxes), -(-len(boxes) // TILE)
    last = (torch.arange(1, tiles + 1, device=boxes.device) * TILE - 1).clamp(max=R - 1)  # box of each tile
    # a tile has something to say to the tiles up to reach, where its last box's group ends
    reach = ((torch.searchsorted(groups, groups[last], right=True) + TILE - 1) // TILE).to(torch.int32)
    at_once = min(tiles, max(1, WORDS // (TILE * tiles)))  # tiles of boxes whose bits are held
    bits = groups.new_empty(at_once * TILE * tiles)
    removed, stays = groups.new_zeros(tiles), torch.empty(R, dtype=torch.uint8, device=boxes.device)
    overlaps, sweep = _kernels(boxes.dtype)
    boxes, threshold = boxes.view(-1), (np.float64 if boxes.dtype == torch.float64 else np.float32)(threshold)
    for first in range(0, tiles, at_once):
        count = min(at_once, tiles - first)
        span = (np.int32(first), np.int32(R))
        launch(overlaps, count * tiles, TILE, boxes, groups, reach, threshold, *span, bits)
        launch(sweep, 1, THREADS, bits, reach, *span, np.int32(first + count), removed, stays)
    return stays


@functools.cache
def _kernels(dtype: torch.dtype):
    real = float64 if dtype == torch.float64 else float32
    return compiled(overlaps_for(real), overlaps_types(real)), compiled(_sweep, SWEEP_TYPES)


def overlaps_types(real) -> tuple:
    return real[::1], int64[::1], int32[::1], real, int32, int32, int64[::1]


def overlaps_for(real):
    """The kernel `_overlaps` for boxes of the Numba type `real`."""
    zero = np.dtype(str(real)).type(0)

    def _overlaps(boxes, groups, reach, threshold, first, R, bits):
        """Of box i, the word for tile c: bit k says that box 64 c + k is a later one of its group, too much overlapped.

        boxes (R * 4,), groups (R,), reach (T,) for T tiles, bits (boxes from tile `first` on, T) flat. Block b takes
        row tile first + b // T and column tile b % T.
        """
        lefts = cuda.shared.array(TILE, real)
        tops = cuda.shared.array(TILE, real)
        rights = cuda.shared.array(TILE, real)
        bottoms = cuda.shared.array(TILE, real)
        sizes = cuda.shared.array(TILE, real)
        names = cuda.shared.array(TILE, int64)
        t, tiles = cuda.threadIdx.x, len(reach)
        row, column = first + cuda.blockIdx.x // tiles, cuda.blockIdx.x % tiles
        if column < row or column >= reach[row]:
            return
        j = column * TILE + t
        if j < R:
            lefts[t], tops[t] = boxes[4 * j], boxes[4 * j + 1]
            rights[t], bottoms[t] = boxes[4 * j + 2], boxes[4 * j + 3]
            # a * b as fma(a, b, 0): a bare product would be fused with the sum it goes into, and round differently
            sizes[t] = cuda.fma(rights[t] - lefts[t], bottoms[t] - tops[t], zero)
            names[t] = groups[j]
        cuda.syncthreads()
        word, i = np.int64(0), row * TILE + t
        if i < R:
            left, top, right, bottom = boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]
            size, name = cuda.fma(right - left, bottom - top, zero), groups[i]
            for k in range(t + 1 if column == row else 0, TILE if R - column * TILE > TILE else R - column * TILE):
                width = (right if right < rights[k] else rights[k]) - (left if left > lefts[k] else lefts[k])
                height = (bottom if bottom < bottoms[k] else bottoms[k]) - (top if top > tops[k] else tops[k])
                shared = cuda.fma(width if width > zero else zero, height if height > zero else zero, zero)
                union = size + sizes[k] - shared
                # rounding keeps order: shared < threshold * union implies shared / union <= threshold, and costs less
                if shared >= threshold * union and shared / union > threshold and names[k] == name:
                    word |= np.int64(1) << np.int64(k)
        bits[((row - first) * TILE + t) * tiles + column] = word

    return _overlaps


def _sweep(bits, reach, first, R, end, removed, stays):
    """Decide the boxes of tiles first to end - 1, whose bits these are; removed (T,) words of all tiles, kept between.

    One block. Thread t reads words at distance 32 from each other, for every 16th of the tile's 64 boxes.
    """
    diagonal = cuda.shared.array(TILE, int64)
    t, tiles = cuda.threadIdx.x, len(reach)
    lane, share = t % LANES, t // LANES
    for tile in range(first, end):
        base = (tile - first) * TILE * tiles
        if t < TILE:
            diagonal[t] = bits[base + t * tiles + tile]
        cuda.syncthreads()  # the diagonal is there, and so is what the tile before removed
        gone = removed[tile]
        for k in range(TILE):
            if (gone >> np.int64(k)) & np.int64(1) == np.int64(0):
                gone |= diagonal[k]
        if t < TILE and tile * TILE + t < R:
            stays[tile * TILE + t] = np.int64(1) - ((gone >> np.int64(t)) & np.int64(1))
        for w in range(tile + 1 + lane, reach[tile], LANES):
            word = np.int64(0)
            for k in range(share, TILE, THREADS // LANES):
                all_or_none = ((gone >> np.int64(k)) & np.int64(1)) - np.int64(1)  # a branch would wait for each word
                word |= bits[base + k * tiles + w] & all_or_none
            if word != np.int64(0):
                cuda.atomic.or_(removed, w, word)
        cuda.syncthreads()  # everybody is done with the diagonal
