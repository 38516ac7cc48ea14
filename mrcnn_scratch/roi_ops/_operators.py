"""The RoI ops of the compiled and the reference backend as torch operators: a forward and a backward each.

torch sees an operator with a shape (`register_fake`) and a derivative (`register_autograd`), so gradients,
`torch.compile` and `torch.export` work, whatever computes it. Boxes never receive a gradient: they are where we
look, not what we see ("approximate joint training", Faster R-CNN, section 3.2).
"""

from importlib import import_module

import torch
from torch import Tensor

from ._validate import check_boxes

BACKENDS = {"numba": ".numba_cpu", "reference": ".reference"}


def _run(backend: str, function: str, *arguments):
    """Call a backend's function: the compiled ones take tensors, the reference NumPy arrays."""
    function = getattr(import_module(BACKENDS[backend], __package__), function)
    if backend == "numba":
        return function(*arguments)
    result = function(*(a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments))
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


@torch.library.custom_op("mrcnn_scratch::roi_align", mutates_args=())
def align(x: Tensor, boxes: Tensor, h: int, w: int, scale: float, ratio: int, convention: str, backend: str) -> Tensor:
    check_boxes(boxes, x.shape[0])
    return _run(backend, "roi_align_forward", x, boxes, (h, w), scale, ratio, convention)


@torch.library.custom_op("mrcnn_scratch::roi_align_backward", mutates_args=())
def align_backward(
    grad: Tensor, boxes: Tensor, shape: list[int], scale: float, ratio: int, convention: str, backend: str
) -> Tensor:
    size = tuple(grad.shape[2:])
    return _run(backend, "roi_align_backward", grad, boxes, tuple(shape), size, scale, ratio, convention)


@torch.library.custom_op("mrcnn_scratch::roi_align_max", mutates_args=())
def align_max(
    x: Tensor, boxes: Tensor, h: int, w: int, scale: float, ratio: int, convention: str, backend: str
) -> tuple[Tensor, Tensor]:
    check_boxes(boxes, x.shape[0])
    return _run(backend, "roi_align_max_forward", x, boxes, (h, w), scale, ratio, convention)


@torch.library.custom_op("mrcnn_scratch::roi_align_max_backward", mutates_args=())
def align_max_backward(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    shape: list[int],
    scale: float,
    ratio: int,
    convention: str,
    backend: str,
) -> Tensor:
    size = tuple(grad.shape[2:])
    options = (tuple(shape), size, scale, ratio, convention)
    return _run(backend, "roi_align_max_backward", grad, argmax, boxes, *options)


@torch.library.custom_op("mrcnn_scratch::roi_pool", mutates_args=())
def pool(x: Tensor, boxes: Tensor, h: int, w: int, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    check_boxes(boxes, x.shape[0])
    return _run(backend, "roi_pool_forward", x, boxes, (h, w), scale)


@torch.library.custom_op("mrcnn_scratch::roi_pool_backward", mutates_args=())
def pool_backward(grad: Tensor, argmax: Tensor, boxes: Tensor, shape: list[int], backend: str) -> Tensor:
    return _run(backend, "roi_pool_backward", grad, argmax, boxes, tuple(shape))


# ---- shapes


def _empty(x, boxes, h, w):
    return x.new_empty(boxes.shape[0], x.shape[1], h, w)


align.register_fake(lambda x, boxes, h, w, *rest: _empty(x, boxes, h, w))
align_backward.register_fake(lambda grad, boxes, shape, *rest: grad.new_empty(shape))
align_max_backward.register_fake(lambda grad, argmax, boxes, shape, *rest: grad.new_empty(shape))
pool_backward.register_fake(lambda grad, argmax, boxes, shape, *rest: grad.new_empty(shape))


def _empty_with_argmax(x, boxes, h, w, *rest):
    out = _empty(x, boxes, h, w)
    return out, torch.empty_like(out, dtype=torch.int32)


align_max.register_fake(_empty_with_argmax)
pool.register_fake(_empty_with_argmax)


# ---- derivatives


def _align_context(ctx, inputs, output):
    x, boxes, _, _, *ctx.options = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(boxes)


def _align_derivative(ctx, grad):
    (boxes,) = ctx.saved_tensors
    return align_backward(grad, boxes, ctx.shape, *ctx.options), *(None,) * 7


def _align_backward_context(ctx, inputs, output):
    grad, boxes, _, *ctx.options = inputs
    ctx.size = grad.shape[2:]
    ctx.save_for_backward(boxes)


def _align_backward_derivative(ctx, grad):
    """RoIAlign is linear in the features, so the derivative of its backward is the forward."""
    (boxes,) = ctx.saved_tensors
    return align(grad, boxes, *ctx.size, *ctx.options), *(None,) * 6


def _max_context(ctx, inputs, output):
    x, boxes, _, _, *ctx.options = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(boxes, output[1])
    ctx.mark_non_differentiable(output[1])


def _align_max_derivative(ctx, grad, _):
    boxes, argmax = ctx.saved_tensors
    return align_max_backward(grad, argmax, boxes, ctx.shape, *ctx.options), *(None,) * 7


def _pool_derivative(ctx, grad, _):
    boxes, argmax = ctx.saved_tensors
    (_, backend) = ctx.options
    return pool_backward(grad, argmax, boxes, ctx.shape, backend), *(None,) * 5


align.register_autograd(_align_derivative, setup_context=_align_context)
align_backward.register_autograd(_align_backward_derivative, setup_context=_align_backward_context)
align_max.register_autograd(_align_max_derivative, setup_context=_max_context)
pool.register_autograd(_pool_derivative, setup_context=_max_context)
