"""All kernels, and their compilation: each once per precision, layout and, where it pays, sampling ratio."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numba import types

from ..._numba_cuda import compiled
from .align import mean_kernel
from .align_max import max_backward_kernel, max_kernel
from .boxes import max_boxes_kernel, mean_boxes_kernel
from .pool import hull_kernel, pool_backward_kernel, pool_kernel
from .rows import rows_kernel

FROZEN = (1, 2, 4)  # sampling ratios with a kernel of their own, with loops unrolled; 0: the kernel for all others
PRECISIONS = {torch.float32: np.float32, torch.float64: np.float64}
NUMBERS = {np.float32: types.float32, np.float64: types.float64}
SIZES, RULE = 11, 5  # N, C, H, W, h, w, R, C, sampling ratio, convention, share of a RoI; `geometry.sampling_rule`


class Form(NamedTuple):
    """How to make a kernel: its arrays (f: the features' precision, i: int32), whether a sampling ratio can be frozen,
    and the factory."""

    arrays: str
    frozen: bool
    make: callable


KERNELS = {
    "align": Form("fff", True, lambda T, last, ratio: mean_kernel(T, last, ratio, backward=False)),
    "align_backward": Form("fff", True, lambda T, last, ratio: mean_kernel(T, last, ratio, backward=True)),
    "align_rows": Form("ffff", False, lambda T, last, _: rows_kernel(T, last, "mean")),
    "align_boxes": Form("ffff", False, lambda T, last, _: mean_boxes_kernel(T, last)),
    "align_max": Form("fffi", True, max_kernel),
    "align_max_backward": Form("fiff", False, lambda T, last, _: max_backward_kernel(T, last)),
    "align_max_rows": Form("fiff", False, lambda T, last, _: rows_kernel(T, last, "max")),
    "align_max_boxes": Form("fifff", False, lambda T, last, _: max_boxes_kernel(T, last)),
    "pool": Form("fffi", False, lambda T, last, _: pool_kernel(T, last)),
    "pool_backward": Form("fiff", False, lambda T, last, _: pool_backward_kernel(T, last)),
    "pool_hulls": Form("iff", False, lambda T, last, _: hull_kernel(T, last)),
    "pool_rows": Form("fiff", False, lambda T, last, _: rows_kernel(T, last, "pool")),
}


class Variant(NamedTuple):
    op: str
    T: type
    channels_last: bool
    ratio: int


def variant(op: str, dtype: torch.dtype, channels_last: bool, sampling_ratio: int) -> Variant:
    frozen = sampling_ratio if KERNELS[op].frozen and sampling_ratio in FROZEN else 0
    return Variant(op, PRECISIONS[dtype], channels_last, frozen)


def all_variants(dtype: torch.dtype) -> Iterator[Variant]:
    for op, form in KERNELS.items():
        for channels_last in (False, True):
            for ratio in (0, *FROZEN) if form.frozen else (0,):
                yield variant(op, dtype, channels_last, ratio)


def source(v: Variant):
    """The Python function of a kernel, and the Numba types of its arguments."""
    number = NUMBERS[v.T]
    array = {"f": number[::1], "i": types.int32[::1]}
    numbers = types.UniTuple(types.int32, SIZES), types.UniTuple(number, RULE)
    return KERNELS[v.op].make(v.T, v.channels_last, v.ratio), (*(array[a] for a in KERNELS[v.op].arrays), *numbers)


@functools.cache
def kernel(v: Variant):
    """The compiled kernel: the first call takes about half a second."""
    return compiled(*source(v))


def warm_up(dtype: torch.dtype = torch.float32, sampling_ratios: tuple[int, ...] = (0, *FROZEN)) -> int:
    """Compile all RoI kernels of a precision now, so that none stalls a training step; returns how many.

    Args:
        dtype: torch.float32 or torch.float64.
        sampling_ratios: those that will be used; 0: adaptive. All others than 1, 2 and 4 share the adaptive kernels.
    """
    wanted = {r if r in FROZEN else 0 for r in sampling_ratios}
    chosen = [v for v in all_variants(dtype) if v.ratio in wanted or not KERNELS[v.op].frozen]
    for v in chosen:
        kernel(v)
    return len(chosen)
