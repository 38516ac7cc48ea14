"""RoIAlign, RoIWarp and RoIPool as CUDA kernels written with Numba, forward and backward.

What makes them fast:

1. *Lanes over what is contiguous*: over channels where tensors are channels_last, so that a warp reads a cell as one
   cache line; over bins where they are plain. There a warp's atomics go to 32 lines: RoIAlign's backward of many RoIs
   is faster by way of channels_last, with a transposition before and after (`THROUGH_CHANNELS_LAST`).
2. *Samples are found once* for four channels, and the cells that neighbouring samples share are read once.
3. *No copy, no wait*: torch's memory, torch's current stream, kernels compiled for known types.

Backward adds with atomics, in whatever order the GPU takes; with `torch.use_deterministic_algorithms(True)` each block
owns a strip of the gradient instead and takes the RoIs in their order, which gives the same bits in every run.

A check of the values in boxes would wait for the device. So a RoI whose batch index is none of 0..N-1, or whose corners
are not finite or more than 1e9 cells off, reads nothing: its output is NaN, it has no winner, and it gives no gradient.

Functions take CUDA tensors (in Numba's simulator, CPU tensors) of one dtype, float32 or float64; see `roi_ops`.
"""

import torch
from torch import Tensor

from .kernels import warm_up
from .launch import Job, by_rows, is_channels_last, new, of_boxes, per_bin, with_atomics

# With so many outputs to a cell of the features, or more, two transpositions cost less than scattered atomics. Measured
# on an H100, as a share of the direct way's time: 0.5 to 0.7 from 0.7 outputs a cell on, 1.5 and more below 0.3
THROUGH_CHANNELS_LAST = 0.5
POOL_REGION = "mnc"  # RoIPool's bins lie in the region from round(low) to round(high), as MNC's do

__all__ = [
    "roi_align_backward",
    "roi_align_boxes_backward",
    "roi_align_forward",
    "roi_align_max_backward",
    "roi_align_max_boxes_backward",
    "roi_align_max_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "warm_up",
]


def roi_align_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> Tensor:
    """Mean of the samples of each bin: features (N, C, H, W), boxes (R, 5) -> (R, C, h, w) in the features' layout."""
    job = _forward_job(features, boxes, output_size, spatial_scale, sampling_ratio, convention)
    out = _new_output(job)
    per_bin(job, "align", features, out)
    return out


def roi_align_backward(grad, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last) -> Tensor:
    """Gradient of the features, (N, C, H, W) = shape, from grad (R, C, h, w) in any strides."""
    job = Job(tuple(shape), boxes, tuple(grad.shape[2:]), spatial_scale, sampling_ratio, convention, channels_last)
    if torch.are_deterministic_algorithms_enabled():
        return by_rows(job, "align_rows", grad, grad)
    if not channels_last and _many_outputs(job):
        return with_atomics(job._replace(channels_last=True), "align_backward", grad).contiguous()
    return with_atomics(job, "align_backward", grad)


def roi_align_boxes_backward(grad, features, boxes, spatial_scale, sampling_ratio, convention) -> Tensor:
    """Gradient of the boxes, (R, 5) with 0 for the batch index; the same bits in every run."""
    job = _forward_job(features, boxes, grad.shape[2:], spatial_scale, sampling_ratio, convention)
    return of_boxes(job, "align_boxes", grad, features)


def roi_align_max_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention):
    """Largest sample of each bin, and its number iy * nx + ix: two (R, C, h, w), the second int32, -1: no samples."""
    job = _forward_job(features, boxes, output_size, spatial_scale, sampling_ratio, convention)
    out, winner = _new_output(job), _new_output(job, torch.int32)
    per_bin(job, "align_max", features, out, winner)
    return out, winner


def roi_align_max_backward(
    grad, winner, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last
) -> Tensor:
    """Gradient of the features, (N, C, H, W) = shape, from grad and winner (R, C, h, w) in any strides."""
    job = Job(tuple(shape), boxes, tuple(grad.shape[2:]), spatial_scale, sampling_ratio, convention, channels_last)
    return _winners_backward(job, "align_max", grad, winner)


def roi_align_max_boxes_backward(grad, winner, features, boxes, spatial_scale, sampling_ratio, convention) -> Tensor:
    """Gradient of the boxes, (R, 5) with 0 for the batch index; the same bits in every run."""
    job = _forward_job(features, boxes, grad.shape[2:], spatial_scale, sampling_ratio, convention)
    return of_boxes(job, "align_max_boxes", grad, winner, features)


def roi_pool_forward(features, boxes, output_size, spatial_scale):
    """Largest cell of each bin, and its number y * W + x: two (R, C, h, w), the second int32, -1: no cells."""
    job = _forward_job(features, boxes, output_size, spatial_scale, 0, POOL_REGION)
    out, winner = _new_output(job), _new_output(job, torch.int32)
    per_bin(job, "pool", features, out, winner)
    return out, winner


def roi_pool_backward(grad, winner, boxes, shape, channels_last) -> Tensor:
    """Gradient of the features, (N, C, H, W) = shape, from grad and winner (R, C, h, w) in any strides."""
    job = Job(tuple(shape), boxes, tuple(grad.shape[2:]), 1.0, 0, POOL_REGION, channels_last)
    return _winners_backward(job, "pool", grad, winner)


def _forward_job(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> Job:
    last = is_channels_last(features)
    return Job(tuple(features.shape), boxes, tuple(output_size), spatial_scale, sampling_ratio, convention, last)


def _new_output(job: Job, dtype: torch.dtype | None = None) -> Tensor:
    return new(job, (len(job.boxes), job.shape[1], *job.bins), dtype or job.boxes.dtype)


def _many_outputs(job: Job) -> bool:
    """Whether the plain layout loses: see `THROUGH_CHANNELS_LAST`."""
    N, _, H, W = job.shape
    return len(job.boxes) * job.bins[0] * job.bins[1] >= THROUGH_CHANNELS_LAST * N * H * W


def _winners_backward(job: Job, op: str, grad: Tensor, winner: Tensor) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        return by_rows(job, f"{op}_rows", grad, winner)
    return with_atomics(job, f"{op}_backward", grad, winner)
