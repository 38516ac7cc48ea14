"""Layouts: plain and channels_last tensors as tables with a row of channels per place, and transposes between them."""

import math

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from ..._numba import compiled, run
from .memory import take

LANES = 16  # a cache line of float32
RUN_BYTES = 32 << 20  # what the scratch of one run of channels may take: about a cache
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32}


def is_channels_last(x: Tensor) -> bool:
    """Whether results take the channels_last layout: where both layouts fit, as at C = 1, plain wins."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def new(shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An uninitialised tensor of (N, C, H, W) in either layout."""
    N, C, H, W = shape
    flat = torch.from_numpy(take(N * C * H * W, NUMPY[dtype]))
    return flat.view(N, H, W, C).permute(0, 3, 1, 2) if channels_last else flat.view(N, C, H, W)


def scratch(shape: tuple[int, int, int], dtype) -> np.ndarray:
    return take(math.prod(shape), dtype).reshape(shape)


def rows(x: Tensor) -> np.ndarray:
    """(N, C, H, W) that is channels_last, as (N, H * W, C): the same memory."""
    N, C, H, W = x.shape
    return x.permute(0, 2, 3, 1).view(N, H * W, C).numpy()


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def channel_runs(C: int, values_per_channel: int, itemsize: int) -> list[slice]:
    """Channels in equal runs, whole cache lines of them, whose scratch arrays fit `RUN_BYTES`."""
    fit = max(1, RUN_BYTES // max(1, values_per_channel * itemsize))
    length = -(-C // -(-C // fit)) if C else 1  # of the fewest runs that fit
    length = C if length >= C else -(-length // LANES) * LANES
    return [slice(c, min(c + length, C)) for c in range(0, C, max(1, length))]


# ---- transposes, in blocks of LANES x LANES


@intrinsic
def _transpose_block(typing_context, source, target):
    """target[i, j] = source[j, i] of (LANES, LANES) arrays, in SIMD registers: three times faster than one by one.

    log2(LANES) rounds; round d exchanges, between rows k and k + d, the halves of each 2d x 2d square that lie off its
    diagonal.
    """

    def generate(context, builder, signature, arguments):
        arrays = [context.make_array(t)(context, builder, a) for t, a in zip(signature.args, arguments, strict=True)]
        element = context.get_data_type(signature.args[0].dtype)
        vector, size = ir.VectorType(element, LANES), context.get_abi_sizeof(element)

        def row(array, k):  # rows are contiguous, and `strides[0]` bytes apart
            step = builder.extract_value(array.strides, 0)
            place = builder.add(builder.ptrtoint(array.data, step.type), builder.mul(step, step.type(k)))
            return builder.inttoptr(place, vector.as_pointer())

        rows = [builder.load(row(arrays[0], k), align=size) for k in range(LANES)]
        for d in (LANES >> s for s in range(1, LANES.bit_length())):
            lanes, mask = range(LANES), ir.VectorType(ir.IntType(32), LANES)
            low = mask([lane if not lane & d else LANES + (lane ^ d) for lane in lanes])
            high = mask([lane | d if not lane & d else LANES + lane for lane in lanes])
            for k in (k for k in lanes if not k & d):
                a, b = rows[k], rows[k + d]
                rows[k], rows[k + d] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
        for k in range(LANES):
            builder.store(rows[k], row(arrays[1], k), align=size)
        return context.get_dummy_value()

    return types.void(source, target), generate


@compiled
def _transpose(source, target):
    """target (P, C) = source (C, P), transposed; the rows of both are contiguous."""
    C, P = source.shape
    channels, places = C // LANES * LANES, P // LANES * LANES
    for i in range(0, places, LANES):
        for j in range(0, channels, LANES):
            _transpose_block(source[j : j + LANES, i : i + LANES], target[i : i + LANES, j : j + LANES])
    for i in range(P):  # what fills no block
        for c in range(channels if i < places else 0, C):
            target[i, c] = source[c, i]


@compiled
def _transpose_part(source, target, along_source, first, last, k, pieces):
    """Piece k of a transpose of the places first..last-1, which are columns of the source or else of the target."""
    length = last - first
    low = first + length * k // pieces // LANES * LANES
    high = first + length * (k + 1) // pieces // LANES * LANES if k + 1 < pieces else last
    if along_source:
        _transpose(source[:, low:high], target[low:high])
    else:
        _transpose(source[low:high], target[:, low:high])


@compiled
def _transpose_serial(source, target, along_source, first, last, pieces):
    for n in range(len(source)):
        _transpose_part(source[n], target[n], along_source, first[n], last[n], 0, 1)


@compiled(parallel=True)
def _transpose_parallel(source, target, along_source, first, last, pieces):
    for task in prange(len(source) * pieces):
        n, k = task // pieces, task % pieces
        _transpose_part(source[n], target[n], along_source, first[n], last[n], k, pieces)


def _transpose_all(source, target, along_source, first, last) -> None:
    pieces = max(1, 32 // max(1, len(source)))  # so that one image feeds all threads
    arguments = source, target, along_source, first, last, pieces
    run(_transpose_serial, _transpose_parallel, target.size, *arguments)


def to_rows(source: np.ndarray, target: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """target (N, P, C)[n, first[n]:last[n]] = source (N, C, P)[n, :, first[n]:last[n]], transposed."""
    _transpose_all(source, target, True, first, last)


def to_planes(source: np.ndarray, target: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """target (N, C, P)[n, :, first[n]:last[n]] = source (N, P, C)[n, first[n]:last[n]], transposed."""
    _transpose_all(source, target, False, first, last)


def whole(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first and last for all places of (N, P, C)."""
    N, P, _ = x.shape
    return np.zeros(N, np.int64), np.full(N, P, np.int64)
