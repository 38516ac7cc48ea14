"""Memory: channels-last tables, fresh arrays that cost few page faults, and the order in which RoIs are visited."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..._numba import compiled, run

SQUARE = 16  # a cache line of float32, and a power of two that no cache minds
RUN_BYTES = 16 << 20  # what a run of channels may take: stays in the cache, and malloc hands it out again and again
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32}


def is_channels_last(x: Tensor) -> bool:
    """Whether results take the channels_last layout: where both layouts fit, as at C = 1, plain wins."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def new(shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool, zero: bool = False) -> Tensor:
    """A tensor of (N, C, H, W) in either layout, in NumPy's memory.

    NumPy asks the system for huge pages, torch does not: the first write to 69 MB of 4 KB pages took 80 ms where the
    kernel itself takes 15. And zeros come from pages that the system has cleared, so nothing is written twice.
    """
    N, C, H, W = shape
    flat = torch.from_numpy((np.zeros if zero else np.empty)(N * C * H * W, NUMPY[dtype]))
    return flat.view(N, H, W, C).permute(0, 3, 1, 2) if channels_last else flat.view(N, C, H, W)


def rows(x: Tensor) -> np.ndarray:
    """(N, C, H, W) that is channels_last, as (N, H * W, C): the same memory."""
    N, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).view(N, H * W, C).numpy()


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def channel_runs(C: int, values_per_channel: int, itemsize: int) -> list[slice]:
    """Channels in runs whose scratch arrays fit `RUN_BYTES`; whole cache lines of them."""
    fit = RUN_BYTES // max(1, values_per_channel * itemsize)
    run_length = C if fit >= C else max(SQUARE, fit // SQUARE * SQUARE)
    return [slice(c, min(c + run_length, C)) for c in range(0, C, run_length)]


# ---- (A, B) -> (B, A), in squares that stay in the cache: rows a power of two apart would evict each other


@compiled
def _to_rows(source, target, first, last):
    """source (C, P), target (P, C): the places first..last-1 of every channel."""
    C = source.shape[0]
    for i in range(first, last, SQUARE):
        for j in range(0, C, SQUARE):
            for place in range(i, min(i + SQUARE, last)):
                for c in range(j, min(j + SQUARE, C)):
                    target[place, c] = source[c, place]


@compiled
def _to_planes(source, target, first, last):
    """source (P, C), target (C, P): the places first..last-1 of every channel."""
    C = target.shape[0]
    for j in range(0, C, SQUARE):
        for i in range(first, last, SQUARE):
            for c in range(j, min(j + SQUARE, C)):
                for place in range(i, min(i + SQUARE, last)):
                    target[c, place] = source[place, c]


@compiled
def _rows_serial(source, target, first, last):
    for n in range(len(source)):
        _to_rows(source[n], target[n], first[n], last[n])


@compiled(parallel=True)
def _rows_parallel(source, target, first, last):
    pieces = 16  # of every image, so that one image feeds all threads
    for task in prange(len(source) * pieces):
        n, k = task // pieces, task % pieces
        length = last[n] - first[n]
        low, high = first[n] + length * k // pieces, first[n] + length * (k + 1) // pieces
        _to_rows(source[n], target[n], low, high)


@compiled
def _planes_serial(source, target, first, last):
    for n in range(len(source)):
        _to_planes(source[n], target[n], first[n], last[n])


@compiled(parallel=True)
def _planes_parallel(source, target, first, last):
    pieces = 16
    for task in prange(len(source) * pieces):
        n, k = task // pieces, task % pieces
        length = last[n] - first[n]
        low, high = first[n] + length * k // pieces, first[n] + length * (k + 1) // pieces
        _to_planes(source[n], target[n], low, high)


def to_rows(source: np.ndarray, target: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """target (N, P, C)[n, first[n]:last[n]] = source (N, C, P), transposed."""
    run(_rows_serial, _rows_parallel, target.size, source, target, first, last)


def to_planes(source: np.ndarray, target: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """target (N, C, P)[n, :, first[n]:last[n]] = source (N, P, C), transposed."""
    run(_planes_serial, _planes_parallel, target.size, source, target, first, last)


def whole(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first and last for all places of (N, P, C)."""
    N, P, _ = x.shape
    return np.zeros(N, np.int64), np.full(N, P, np.int64)
