"""From tensors to a launch: layouts, flat views, sizes, grids, and the cases in which there is nothing to launch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._numba_cuda import launch
from .geometry import CONVENTIONS, sampling_rule
from .kernels import PRECISIONS, kernel, variant
from .rows import blocks as row_blocks
from .threads import THREADS, items


class Job(NamedTuple):
    """One call of an op, forward or backward.

    shape: (N, C, H, W) of the features; boxes (R, 5); bins (h, w); channels_last: the layout of features and outputs.
    """

    shape: tuple[int, int, int, int]
    boxes: Tensor
    bins: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    convention: str
    channels_last: bool

    @property
    def empty(self) -> bool:
        """Nothing to read or write: no images, channels or RoIs."""
        return self.shape[0] == 0 or self.shape[1] == 0 or len(self.boxes) == 0


def is_channels_last(x: Tensor) -> bool:
    """Whether results take the channels_last layout: where both layouts fit, as at C = 1, plain wins."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _format(channels_last: bool):
    return torch.channels_last if channels_last else torch.contiguous_format


def new(job: Job, shape, dtype: torch.dtype) -> Tensor:
    """A tensor of four dimensions in the job's layout, not filled."""
    return torch.empty(shape, dtype=dtype, device=job.boxes.device, memory_format=_format(job.channels_last))


def flat(x: Tensor, channels_last: bool) -> Tensor:
    """A tensor's memory in its order, one-dimensional; copied only where it lies in another layout."""
    if x.dim() != 4:
        return x.contiguous().view(-1)
    x = x.contiguous(memory_format=_format(channels_last))
    return (x.permute(0, 2, 3, 1) if channels_last else x).view(-1)


def per_bin(job: Job, op: str, source: Tensor, *outputs: Tensor) -> None:
    """Forward: a thread per `RUN` channels of a bin, or of a row of bins."""
    if job.empty:  # no image: no RoI has one
        for out in outputs:
            out.fill_(math.nan if out.is_floating_point() else -1)
        return
    _per_roi(op, job, _runs(job), source, job.boxes, *outputs)


def with_atomics(job: Job, op: str, *sources: Tensor) -> Tensor:
    """Backward: threads as in the forward, or, where every output has a winner of its own, one for each of them."""
    target = new(job, job.shape, job.boxes.dtype).zero_()
    if not job.empty:
        work = _runs(job) if op == "align_backward" else job.shape[1] * math.prod(job.bins)
        _per_roi(op, job, work, *sources, job.boxes, target)
    return target


def by_rows(job: Job, op: str, grad: Tensor, winner: Tensor) -> Tensor:
    """Backward without atomics: a block per strip of the gradient, see `rows.py`."""
    target = new(job, job.shape, job.boxes.dtype)
    if job.empty:
        return target.zero_()
    if op == "pool_rows":
        job = _hulls(job, winner)
    _start(op, job, row_blocks(job.shape), 0, grad, winner, job.boxes, target)
    return target


def _hulls(job: Job, winner: Tensor) -> Job:
    """The job with boxes that say where in each RoI the winners lie: that is all that `rows.py` asks of them."""
    hulls = torch.empty_like(job.boxes, memory_format=torch.contiguous_format)
    _start("pool_hulls", job, len(hulls), 0, winner, job.boxes, hulls)
    return job._replace(boxes=hulls)


def of_boxes(job: Job, op: str, *sources: Tensor) -> Tensor:
    """Gradient of the boxes: a block per RoI."""
    target = torch.empty(len(job.boxes), 5, dtype=job.boxes.dtype, device=job.boxes.device)
    if job.empty:
        return target.zero_()
    threads = items(job.shape[1], math.prod(job.bins), job.channels_last)
    _start(op, job, len(job.boxes), threads, *sources, job.boxes, target)
    return target


def _runs(job: Job) -> int:
    h, w = job.bins
    return items(job.shape[1], h if job.channels_last else h * w, job.channels_last)


def _per_roi(op: str, job: Job, work: int, *arrays: Tensor) -> None:
    per_roi = -(-work // THREADS)
    _start(op, job, len(job.boxes) * per_roi, per_roi, *arrays)


def _start(op: str, job: Job, blocks: int, share: int, *arrays: Tensor) -> None:
    (N, C, H, W), (h, w), R = job.shape, job.bins, len(job.boxes)
    for what, count in {"cells": H * W, "outputs per RoI": C * h * w, "blocks of threads": blocks}.items():
        if count >= 2**31:
            raise ValueError(f"{count} {what} are more than a CUDA kernel can count (2**31): take fewer RoIs at a time")
    dtype, ratio = job.boxes.dtype, max(job.sampling_ratio, 0)
    sizes = (N, C, H, W, h, w, R, C, ratio, CONVENTIONS[job.convention], share)
    rule = sampling_rule(job.convention, (H, W), job.spatial_scale, PRECISIONS[dtype])
    memory = [flat(a.detach(), job.channels_last) for a in arrays]
    launch(kernel(variant(op, dtype, job.channels_last, ratio)), blocks, THREADS, *memory, sizes, rule)
