"""RoIPool, RoIWarp and RoIAlign as compiled CPU kernels: tensors in, tensors out.

What makes them fast, in this order:

1. *Channels last.* A cell is one run of C numbers, so the inner loop is over contiguous channels and becomes SIMD.
   Plain NCHW tensors are transposed into such a table and back, a run of channels at a time, so that the scratch
   stays in the cache; features, results and gradients that are channels_last are used as they are.
2. *Weights once*, for all channels of a bin: see `align`.
3. *Neighbours together*: RoIs are visited by place, so that one finds in the cache what the last one read.
4. *Backward without atomics*: a thread owns a band of rows, or a run of channels, of the gradient. No two write to one
   place, and what a place receives comes in the order of the RoIs: the result does not depend on the number of threads.

Tensors must be on the CPU, float32 or float64, and boxes valid: `roi_ops` sees to that. Every kernel has a body over
a range of work and two drivers: Numba's cache cannot tell a serial from a parallel variant of one function.
"""

import torch
from torch import Tensor

from ..._numba import run
from . import align, align_max, pool
from .geometry import place, touched_rows, visiting_order
from .layout import channel_runs, is_channels_last, laid_out, new, rows, scratch, to_planes, to_rows, whole
from .streaming import worth_streaming


def _pooled(kernel, features, output_size, order, touched, dtypes, arguments) -> list[Tensor]:
    """Run a forward kernel on channels-last arrays, whatever the features' layout, and give the results that layout.

    kernel: (serial, parallel), called with table (N, H*W, C), *arguments, order, and per dtype a result (R, h*w, C).
    """
    R, C, (h, w) = len(order), features.shape[1], output_size
    layout = is_channels_last(features)
    if layout or (C == 1 and features.is_contiguous()):  # one channel: both layouts are the same memory
        results = [new((R, C, h, w), dtype, layout) for dtype in dtypes]
        run(*kernel, R * C * h * w, rows(features), *arguments, order, *map(rows, results))
        return results
    planes = features.contiguous().flatten(2).numpy()  # (N, C, H*W)
    results = [new((R, C, h, w), dtype, False) for dtype in dtypes]
    N, _, P = planes.shape
    for run_ in channel_runs(C, max(N * P, R * h * w), planes.itemsize):
        width = run_.stop - run_.start
        table = scratch((N, P, width), planes.dtype)
        to_rows(planes[:, run_], table, *touched)
        tiles = [scratch((R, h * w, width), result.numpy().dtype) for result in results]
        run(*kernel, R * width * h * w, table, *arguments, order, *tiles)
        for tile, result in zip(tiles, results, strict=True):
            to_planes(tile, result.flatten(2).numpy()[:, run_], *whole(tile))
    return results


def roi_align_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> Tensor:
    """features (N, C, H, W), boxes (R, 5) of one dtype -> (R, C, h, w) in the features' layout."""
    size = tuple(features.shape[2:])
    places = place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    order = visiting_order(places, output_size, size)
    touched = touched_rows(places, output_size, size, features.shape[0])
    kernel = align.forward_serial, align.forward_parallel
    shape = len(boxes), features.shape[1], *output_size
    streaming = is_channels_last(features) and worth_streaming(shape, features.dtype)
    arguments = size, places, output_size, streaming
    return _pooled(kernel, features, output_size, order, touched, [features.dtype], arguments)[0]


def roi_align_backward(grad, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last) -> Tensor:
    """grad (R, C, h, w) -> (N, C, H, W), the gradient with respect to the features of that shape."""
    (N, C, H, W), bins = shape, tuple(grad.shape[2:])
    places = place(boxes, bins, spatial_scale, sampling_ratio, convention)
    bands = min(H, max(1, -(-4 * torch.get_num_threads() // max(N, 1))))
    out = new(shape, grad.dtype, channels_last)
    grad = laid_out(grad, channels_last)
    kernel = align.backward_serial, align.backward_parallel
    if channels_last:
        run(*kernel, grad.numel(), rows(grad), (H, W), places, bins, rows(out), bands)
        return out
    planes, target = grad.flatten(2).numpy(), out.flatten(2).numpy()
    for run_ in channel_runs(C, max(N * H * W, planes.shape[0] * planes.shape[2]), planes.itemsize):
        width = run_.stop - run_.start
        tile = scratch((len(planes), planes.shape[2], width), planes.dtype)
        table = scratch((N, H * W, width), planes.dtype)
        to_rows(planes[:, run_], tile, *whole(tile))
        run(*kernel, tile.size, tile, (H, W), places, bins, table, bands)
        to_planes(table, target[:, run_], *whole(table))
    return out


def roi_align_boxes_backward(grad, features, boxes, spatial_scale, sampling_ratio, convention) -> Tensor:
    """grad (R, C, h, w), features (N, C, H, W) -> (R, 5), the gradient of [batch index, x1, y1, x2, y2]."""
    bins = tuple(grad.shape[2:])
    places = place(boxes, bins, spatial_scale, sampling_ratio, convention)
    total = torch.zeros_like(boxes, memory_format=torch.contiguous_format)
    arrays = (rows(laid_out(x, True)) for x in (grad, features))
    arguments = (*arrays, tuple(features.shape[2:]), places, bins, spatial_scale, total.numpy())
    run(align.boxes_serial, align.boxes_parallel, grad.numel(), *arguments)
    return total


def roi_align_max_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention):
    """As roi_align_forward, with each bin's largest sample; also which sample won, (R, C, h, w) int32."""
    size = tuple(features.shape[2:])
    places = place(boxes, output_size, spatial_scale, sampling_ratio, convention)
    order = visiting_order(places, output_size, size)
    touched = touched_rows(places, output_size, size, features.shape[0])
    kernel, dtypes = (align_max.forward_serial, align_max.forward_parallel), [features.dtype, torch.int32]
    return tuple(_pooled(kernel, features, output_size, order, touched, dtypes, (size, places, output_size)))


def _scattered(kernel, grad, winner, shape, channels_last, arguments) -> Tensor:
    """Run a backward kernel that sends each output's gradient to its winner."""
    out = new(shape, grad.dtype, channels_last).zero_()
    planes = (laid_out(x, channels_last).flatten(2).numpy() for x in (grad, winner))  # (R, C, h*w), in either layout
    run_length = 16 if channels_last else 1  # threads must not share a cache line
    run(*kernel, grad.numel(), *planes, *arguments, out.flatten(2).numpy(), run_length)
    return out


def roi_align_max_backward(
    grad, winner, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last
) -> Tensor:
    """grad and winner (R, C, h, w) -> (N, C, H, W)."""
    bins = tuple(grad.shape[2:])
    places = place(boxes, bins, spatial_scale, sampling_ratio, convention)
    kernel = align_max.backward_serial, align_max.backward_parallel
    return _scattered(kernel, grad, winner, shape, channels_last, (tuple(shape[2:]), places, bins))


def roi_align_max_boxes_backward(grad, winner, features, boxes, spatial_scale, sampling_ratio, convention) -> Tensor:
    """grad and winner (R, C, h, w), features (N, C, H, W) -> (R, 5)."""
    bins = tuple(grad.shape[2:])
    places = place(boxes, bins, spatial_scale, sampling_ratio, convention)
    total = torch.zeros_like(boxes, memory_format=torch.contiguous_format)
    arrays = (x.contiguous().flatten(2).numpy() for x in (grad, winner, features))
    arguments = (*arrays, tuple(features.shape[2:]), places, bins, spatial_scale, total.numpy())
    run(align_max.boxes_serial, align_max.boxes_parallel, grad.numel(), *arguments)
    return total


def roi_pool_forward(features, boxes, output_size, spatial_scale) -> tuple[Tensor, Tensor]:
    """features (N, C, H, W), boxes (R, 5) of one dtype -> (R, C, h, w) and the cells that won, int32."""
    size = tuple(features.shape[2:])
    places = place(boxes, output_size, spatial_scale, 1, "warp")  # RoIWarp reads the cells that RoIPool reads
    order = visiting_order(places, output_size, size)
    touched = touched_rows(places, output_size, size, features.shape[0])
    kernel, dtypes = (pool.forward_serial, pool.forward_parallel), [features.dtype, torch.int32]
    arguments = (size, boxes.contiguous().numpy(), spatial_scale, output_size)
    return tuple(_pooled(kernel, features, output_size, order, touched, dtypes, arguments))


def roi_pool_backward(grad, winner, boxes, shape, channels_last) -> Tensor:
    """grad and winner (R, C, h, w) -> (N, C, H, W)."""
    batch = boxes[:, 0].to(torch.int64).numpy()
    return _scattered((pool.backward_serial, pool.backward_parallel), grad, winner, shape, channels_last, (batch,))
