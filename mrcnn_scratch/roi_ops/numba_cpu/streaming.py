"""Writing results past the cache, where they are larger than one.

An ordinary store first reads the line that it is about to overwrite, and throws out of the cache what the kernel will
need next. A result that will not stay in the cache anyway is better written with non-temporal stores: RoIAlign of 300
RoIs, 1024 channels and 14 x 14 bins, 240 MB, took 10 ms instead of 21 where this was measured.
"""

import math

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..._numba import compiled

LANES = 16  # values in one store
LINE = 64  # bytes, a cache line
LARGE = 64 << 20  # bytes; what is smaller the next layer may find in the cache. Above memory.SMALL, so: aligned


def worth_streaming(shape: tuple[int, int, int, int], dtype: torch.dtype) -> bool:
    """Whether a channels-last result (R, C, h, w) is large, and each of its cells whole cache lines."""
    return math.prod(shape) * dtype.itemsize >= LARGE and shape[1] % LANES == 0


@intrinsic
def _store_lanes(typing_context, source, target, i, j):
    """Elements j.. of target's memory = elements i.. of source's, LANES of them, not through the cache.

    target's memory begins at a cache line, and j is a multiple of LANES.
    """

    def generate(context, builder, signature, arguments):
        kinds, (source, target, i, j) = signature.args, arguments
        source = context.make_array(kinds[0])(context, builder, source)
        target = context.make_array(kinds[1])(context, builder, target)
        vector = ir.VectorType(context.get_data_type(kinds[0].dtype), LANES).as_pointer()
        value = builder.load(builder.bitcast(builder.gep(source.data, [i]), vector), align=4)
        store = builder.store(value, builder.bitcast(builder.gep(target.data, [j]), vector), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(source, target, i, j), generate


@compiled
def stream(source, target, j):
    """Elements j.. of target's memory = source (C,), C a multiple of LANES."""
    for i in range(0, len(source), LANES):
        _store_lanes(source, target, i, j + i)


@intrinsic
def end_of_stream(typing_context):
    """Non-temporal stores are not ordered: none may be under way when another thread is told that all is done."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
