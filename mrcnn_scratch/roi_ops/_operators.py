"""The RoI ops of the reference and the compiled backends as torch operators: a forward and its backwards.

torch sees an operator with a shape (`register_fake`) and a derivative (`register_autograd`), so gradients,
`torch.compile` and `torch.export` work, whatever computes it. Boxes receive a gradient only where the caller lets them
require one: in the paper they do not, they are where we look, not what we see ("approximate joint training",
Faster R-CNN, section 3.2).

Results and gradients have the layout of the features, plain or channels_last.
"""

from importlib import import_module

import torch
from torch import Tensor

from ._validate import check_boxes

BACKENDS = {"numba": ".numba_cpu", "reference": ".reference", "cuda": ".numba_cuda"}


def _run(backend: str, function: str, *arguments):
    """Call a backend's function: the compiled ones take tensors, the reference NumPy arrays."""
    function = getattr(import_module(BACKENDS[backend], __package__), function)
    if backend != "reference":
        return function(*arguments)
    result = function(*(a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments))
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


def _like(result, channels_last: bool):
    """The reference knows no layouts: give its results the one that was promised."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if isinstance(result, tuple):
        return tuple(r.contiguous(memory_format=layout) for r in result)
    return result.contiguous(memory_format=layout)


def is_channels_last(x: Tensor) -> bool:
    """Whether results take the channels_last layout: where both layouts fit, as at C = 1, plain wins."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _check(x: Tensor, boxes: Tensor) -> None:
    """Not on a GPU: to read the values of the boxes would wait for the device. There a bad batch index gives NaN."""
    if not boxes.is_cuda:
        check_boxes(boxes, x.shape[0])


@torch.library.custom_op("mrcnn_scratch::roi_align", mutates_args=())
def align(x: Tensor, boxes: Tensor, h: int, w: int, scale: float, ratio: int, convention: str, backend: str) -> Tensor:
    _check(x, boxes)
    return _like(_run(backend, "roi_align_forward", x, boxes, (h, w), scale, ratio, convention), is_channels_last(x))


@torch.library.custom_op("mrcnn_scratch::roi_align_backward", mutates_args=())
def align_backward(
    grad: Tensor,
    boxes: Tensor,
    shape: list[int],
    scale: float,
    ratio: int,
    convention: str,
    channels_last: bool,
    backend: str,
) -> Tensor:
    options = tuple(shape), scale, ratio, convention, channels_last
    return _like(_run(backend, "roi_align_backward", grad, boxes, *options), channels_last)


@torch.library.custom_op("mrcnn_scratch::roi_align_boxes_backward", mutates_args=())
def align_boxes_backward(
    grad: Tensor, x: Tensor, boxes: Tensor, scale: float, ratio: int, convention: str, backend: str
) -> Tensor:
    return _run(backend, "roi_align_boxes_backward", grad, x, boxes, scale, ratio, convention)


@torch.library.custom_op("mrcnn_scratch::roi_align_max", mutates_args=())
def align_max(
    x: Tensor, boxes: Tensor, h: int, w: int, scale: float, ratio: int, convention: str, backend: str
) -> tuple[Tensor, Tensor]:
    _check(x, boxes)
    options = (h, w), scale, ratio, convention
    return _like(_run(backend, "roi_align_max_forward", x, boxes, *options), is_channels_last(x))


@torch.library.custom_op("mrcnn_scratch::roi_align_max_backward", mutates_args=())
def align_max_backward(
    grad: Tensor,
    winner: Tensor,
    boxes: Tensor,
    shape: list[int],
    scale: float,
    ratio: int,
    convention: str,
    channels_last: bool,
    backend: str,
) -> Tensor:
    options = tuple(shape), scale, ratio, convention, channels_last
    return _like(_run(backend, "roi_align_max_backward", grad, winner, boxes, *options), channels_last)


@torch.library.custom_op("mrcnn_scratch::roi_align_max_boxes_backward", mutates_args=())
def align_max_boxes_backward(
    grad: Tensor, winner: Tensor, x: Tensor, boxes: Tensor, scale: float, ratio: int, convention: str, backend: str
) -> Tensor:
    return _run(backend, "roi_align_max_boxes_backward", grad, winner, x, boxes, scale, ratio, convention)


@torch.library.custom_op("mrcnn_scratch::roi_pool", mutates_args=())
def pool(x: Tensor, boxes: Tensor, h: int, w: int, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    _check(x, boxes)
    return _like(_run(backend, "roi_pool_forward", x, boxes, (h, w), scale), is_channels_last(x))


@torch.library.custom_op("mrcnn_scratch::roi_pool_backward", mutates_args=())
def pool_backward(
    grad: Tensor, winner: Tensor, boxes: Tensor, shape: list[int], channels_last: bool, backend: str
) -> Tensor:
    return _like(_run(backend, "roi_pool_backward", grad, winner, boxes, tuple(shape), channels_last), channels_last)


# ---- shapes and layouts


def _new(like: Tensor, shape, channels_last: bool, dtype=None) -> Tensor:
    N, C, H, W = shape
    if channels_last:
        return like.new_empty(N, H, W, C, dtype=dtype or like.dtype).permute(0, 3, 1, 2)
    return like.new_empty(N, C, H, W, dtype=dtype or like.dtype)


def _fake_forward(x, boxes, h, w, *rest):
    return _new(x, (boxes.shape[0], x.shape[1], h, w), is_channels_last(x))


def _fake_forward_with_winner(x, boxes, h, w, *rest):
    shape, layout = (boxes.shape[0], x.shape[1], h, w), is_channels_last(x)
    return _new(x, shape, layout), _new(x, shape, layout, torch.int32)


def _fake_boxes(boxes):
    return boxes.new_empty(boxes.shape)


align.register_fake(_fake_forward)
align_max.register_fake(_fake_forward_with_winner)
pool.register_fake(_fake_forward_with_winner)
align_backward.register_fake(
    lambda grad, boxes, shape, scale, ratio, convention, channels_last, backend: _new(grad, shape, channels_last)
)
align_max_backward.register_fake(
    lambda grad, winner, boxes, shape, scale, ratio, convention, channels_last, backend: _new(
        grad, shape, channels_last
    )
)
pool_backward.register_fake(
    lambda grad, winner, boxes, shape, channels_last, backend: _new(grad, shape, channels_last)
)
align_boxes_backward.register_fake(lambda grad, x, boxes, *rest: _fake_boxes(boxes))
align_max_boxes_backward.register_fake(lambda grad, winner, x, boxes, *rest: _fake_boxes(boxes))


# ---- derivatives


def _context(ctx, inputs, output):
    x, boxes, _, _, *ctx.options = inputs
    ctx.shape, ctx.channels_last = x.shape, is_channels_last(x)
    ctx.save_for_backward(boxes, x if ctx.needs_input_grad[1] else None)


def _context_with_winner(ctx, inputs, output):
    x, boxes, _, _, *ctx.options = inputs
    ctx.shape, ctx.channels_last = x.shape, is_channels_last(x)
    ctx.save_for_backward(boxes, x if ctx.needs_input_grad[1] else None, output[1])
    ctx.mark_non_differentiable(output[1])


def _align_derivative(ctx, grad):
    (boxes, x), (*geometry, backend) = ctx.saved_tensors, ctx.options
    to_features = to_boxes = None
    if ctx.needs_input_grad[0]:
        to_features = align_backward(grad, boxes, ctx.shape, *geometry, ctx.channels_last, backend)
    if ctx.needs_input_grad[1]:
        to_boxes = align_boxes_backward(grad, x, boxes, *geometry, backend)
    return to_features, to_boxes, *(None,) * 6


def _align_backward_context(ctx, inputs, output):
    grad, boxes, _, *ctx.options = inputs
    ctx.size = grad.shape[2:]
    ctx.save_for_backward(boxes, grad if ctx.needs_input_grad[1] else None)


def _align_backward_derivative(ctx, outer):
    """RoIAlign is linear in the features, so <outer, A' grad> = <grad, A outer>: its derivatives are A outer, and
    what the boxes receive when `outer` is pooled."""
    (boxes, grad), (*geometry, _, backend) = ctx.saved_tensors, ctx.options
    to_grad = to_boxes = None
    if ctx.needs_input_grad[0]:
        to_grad = align(outer, boxes, *ctx.size, *geometry, backend)
    if ctx.needs_input_grad[1]:
        to_boxes = align_boxes_backward(grad, outer, boxes, *geometry, backend)
    return to_grad, to_boxes, *(None,) * 6


def _align_max_derivative(ctx, grad, _):
    (boxes, x, winner), (*geometry, backend) = ctx.saved_tensors, ctx.options
    to_features = to_boxes = None
    if ctx.needs_input_grad[0]:
        to_features = align_max_backward(grad, winner, boxes, ctx.shape, *geometry, ctx.channels_last, backend)
    if ctx.needs_input_grad[1]:
        to_boxes = align_max_boxes_backward(grad, winner, x, boxes, *geometry, backend)
    return to_features, to_boxes, *(None,) * 6


def _pool_derivative(ctx, grad, _):
    (boxes, _, winner), (_, backend) = ctx.saved_tensors, ctx.options
    return pool_backward(grad, winner, boxes, ctx.shape, ctx.channels_last, backend), *(None,) * 5


align.register_autograd(_align_derivative, setup_context=_context)
align_backward.register_autograd(_align_backward_derivative, setup_context=_align_backward_context)
align_max.register_autograd(_align_max_derivative, setup_context=_context_with_winner)
pool.register_autograd(_pool_derivative, setup_context=_context_with_winner)
