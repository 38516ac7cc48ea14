"""Which thread does what, and where that lies in memory, for either layout of features and outputs.

A block works on one RoI, and several blocks share one. Lanes of a warp run over what is contiguous: over channels where
tensors are channels_last, over the bins where they are not. Tensors are flat; sizes beyond 2**31 elements are fine.

Kernels take functions and constants from here as variables of the factory that makes them, never as globals: Numba's
cache on disk looks at a kernel's file and at those variables only, so a change here would not reach it.
"""

import functools

import numpy as np

from ..._numba_cuda import SIMULATED, device

THREADS = 64 if SIMULATED else 128  # per block; in the simulator each takes a thread of Python
WARP = 32
RUN = 4  # channels per thread: they share the work of finding the samples
NOT_NEGATIVE = np.uint64(2**63 - 1)  # index & this: Numba's atomics ask whether an index counts from the end, or see so


def channel_step(channels_last: bool) -> int:
    """How far a thread's channels lie apart. Lanes of a warp take neighbours, so that each load is one cache line."""
    return WARP if channels_last else 1


def items(C: int, places: int, channels_last: bool) -> int:
    """Threads that a RoI of C channels and so many places (bins, or rows of bins) needs; see `channel_run`."""
    return places * WARP * -(-C // (WARP * RUN)) if channels_last else places * -(-C // RUN)


@functools.cache
def roi_share():
    """-> the RoI of this thread, and the number of the thread among those of that RoI."""

    @device
    def share(block, thread, blocks_per_roi):
        block, per_roi = np.uint32(block), np.uint32(blocks_per_roi)
        roi = np.uint32(block // per_roi)
        piece = np.uint32(block - np.uint32(roi * per_roi))
        return np.int32(roi), np.uint32(np.uint32(piece * np.uint32(THREADS)) + np.uint32(thread))

    return share


@functools.cache
def channel_run(channels_last: bool):
    """Thread -> its place and the first of its RUN channels; too large a place or channel: nothing to do."""

    @device
    def work(item, C, places):
        if channels_last:
            runs = np.uint32((np.uint32(C) + np.uint32(WARP * RUN - 1)) // np.uint32(WARP * RUN))
            warp, lane = np.uint32(item // np.uint32(WARP)), np.uint32(item % np.uint32(WARP))
            place = np.uint32(warp // runs)
            run = np.uint32(warp - np.uint32(place * runs))
            return np.int32(place), np.int32(np.uint32(run * np.uint32(WARP * RUN)) + lane)
        run = np.uint32(item // np.uint32(places))
        place = np.uint32(item - np.uint32(run * np.uint32(places)))
        return np.int32(place), np.int32(run * np.uint32(RUN))

    return work


@functools.cache
def bins_of(channels_last: bool):
    """The place of `channel_run` -> row p of bins, and the columns first..end-1 of it that the thread works on."""

    @device
    def bins(place, w):
        if channels_last:
            return np.int32(place), np.int32(0), np.int32(w)
        p = np.uint32(np.uint32(place) // np.uint32(w))
        q = np.int32(np.uint32(place) - np.uint32(p * np.uint32(w)))
        return np.int32(p), q, np.int32(q + 1)

    return bins


@functools.cache
def single_channel(channels_last: bool):
    """Thread -> its place and its one channel, in the order of memory."""

    @device
    def work(item, C, places):
        inner = np.uint32(C) if channels_last else np.uint32(places)
        outer = np.uint32(item // inner)
        rest = np.int32(item - np.uint32(outer * inner))
        return (np.int32(outer), rest) if channels_last else (rest, np.int32(outer))

    return work


@functools.cache
def memory(channels_last: bool):
    """-> index of the first place of channel c of image (or RoI) n, step to the next place, step to the next channel.

    stride: C, again. As a number of its own the compiler can't factor it out of a 64-bit sum and so multiplies 32 bits.
    """

    @device
    def layout(n, c, C, places, stride):
        if channels_last:
            return np.int64(n) * np.int64(places) * np.int64(C) + np.int64(c), np.int32(stride), np.int32(1)
        return (np.int64(n) * np.int64(C) + np.int64(c)) * np.int64(places), np.int32(1), np.int32(places)

    return layout
