"""The CUDA kernels of the RoI ops on a GPU: the numbers. Against the reference, the CPU kernels and torchvision's CUDA
ops, and gradcheck.
"""

import pytest
import torch
import torchvision
from cuda_cases import (
    CONVENTIONS,
    DEVICE,
    LAYOUTS,
    TOLERANCE,
    by_cpu_kernels,
    by_reference,
    case,
    close,
    deterministic,
    laid_out,
    needs_gpu,
    on_gpu,
)

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp

pytestmark = needs_gpu


def check_all(features, boxes, bins, scale, ratio, convention, channels_last, truth):
    """Every function of the backend, with atomics and without."""
    x, shape, rule, dtype = (
        laid_out(features, channels_last),
        tuple(features.shape),
        (scale, ratio, convention),
        boxes.dtype,
    )
    close(on_gpu("roi_align_forward", x, boxes, bins, *rule), truth("roi_align_forward", x, boxes, bins, *rule), dtype)
    out, align_winner = truth("roi_align_max_forward", x, boxes, bins, *rule)
    close(on_gpu("roi_align_max_forward", x, boxes, bins, *rule)[0], out, dtype, channels_last)
    out, pool_winner = truth("roi_pool_forward", x, boxes, bins, scale)
    mine, winner = on_gpu("roi_pool_forward", x, boxes, bins, scale)
    assert torch.equal(mine.cpu(), out) and torch.equal(winner.cpu(), pool_winner)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    for function, arguments in (
        ("roi_align_backward", (grad, boxes, shape, *rule, channels_last)),
        ("roi_align_max_backward", (grad, align_winner, boxes, shape, *rule, channels_last)),
        ("roi_pool_backward", (grad, pool_winner, boxes, shape, channels_last)),
    ):
        theirs = truth(function, *arguments)
        for wanted in (False, True):
            with deterministic(wanted):
                close(on_gpu(function, *arguments), theirs, dtype, channels_last)
    for function, arguments in (
        ("roi_align_boxes_backward", (grad, x, boxes, *rule)),
        ("roi_align_max_boxes_backward", (grad, align_winner, x, boxes, *rule)),
    ):
        close(on_gpu(function, *arguments), truth(function, *arguments), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("ratio", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equals_the_reference(convention, ratio, channels_last, dtype):
    features, boxes = case(R=12, C=5, size=(7, 11), dtype=dtype)
    check_all(features, boxes, (2, 3), 0.25, ratio, convention, channels_last, by_reference)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("ratio, convention", [(2, "aligned"), (0, "aligned"), (2, "warp"), (0, "mnc")])
def test_equals_the_cpu_kernels(ratio, convention, channels_last, dtype):
    """Full warps, blocks and tiles: 700 RoIs of 7 x 7 bins, 300 channels, rows of 70 cells."""
    features, boxes = case(R=700, C=300, size=(40, 70), dtype=dtype)
    check_all(features, boxes, (7, 7), 0.25, ratio, convention, channels_last, by_cpu_kernels)


# ---- torchvision


def forward_backward(op, features, *arguments, **options):
    x = features.clone(memory_format=torch.preserve_format).requires_grad_()
    out = op(x, *arguments, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    (grad,) = torch.autograd.grad(out, x, weights)
    return out.detach(), grad


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 4])
def test_equals_torchvisions_cuda_op(ratio, aligned, channels_last, dtype):
    """RoIs without whole corners: torchvision's compiler may fuse a sum, and move a sample over a border's edge."""
    features, boxes = (a.to(DEVICE) for a in case(R=400, C=70, size=(40, 60), dtype=dtype, snapped=False))
    features = laid_out(features, channels_last)
    mine = forward_backward(roi_align, features, boxes, (7, 5), 0.25, ratio, aligned, backend="cuda")
    theirs = forward_backward(torchvision.ops.roi_align, features, boxes, (7, 5), 0.25, ratio, aligned)
    for a, b in zip(mine, theirs, strict=True):
        close(a, b.cpu(), dtype)


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_roi_pool_equals_torchvisions_cuda_op(channels_last):
    features, boxes = (a.to(DEVICE) for a in case(R=400, C=70, size=(40, 60), dtype=torch.float32, snapped=False))
    features = laid_out(features, channels_last)
    mine = forward_backward(roi_pool, features, boxes, (7, 5), 0.25, backend="cuda")
    theirs = forward_backward(torchvision.ops.roi_pool, features, boxes, (7, 5), 0.25)
    for a, b in zip(mine, theirs, strict=True):
        close(a, b.cpu(), torch.float32)


# ---- through torch


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("op", [roi_align, roi_warp])
def test_gradcheck(op, reduce, channels_last):
    """By the features, and by the boxes where the op is smooth in them; distinct values, far apart: no ties."""
    g = torch.Generator().manual_seed(0)
    x = torch.randperm(2 * 2 * 4 * 5, generator=g).double().view(2, 2, 4, 5).to(DEVICE)
    x = laid_out(x, channels_last).requires_grad_()
    boxes = torch.tensor([[0, 1.31, 0.72, 4.13, 3.11], [1, -1.2, 1.13, 2.24, 2.83]]).double().to(DEVICE)
    check = {"nondet_tol": 1e-9, "fast_mode": True}
    assert torch.autograd.gradcheck(lambda x: op(x, boxes, (2, 3), reduce=reduce, backend="cuda"), x, **check)
    if op is roi_align:
        corners = boxes[:, 1:].clone().requires_grad_()

        def by_corners(corners):
            rows = torch.cat([boxes[:, :1], corners], dim=1)
            return op(x.detach(), rows, (2, 3), reduce=reduce, backend="cuda", box_gradients=True)

        assert torch.autograd.gradcheck(by_corners, corners, **check)


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_gradcheck_of_roi_pool(channels_last):
    x = torch.randperm(2 * 2 * 4 * 5, generator=torch.Generator().manual_seed(0)).double().view(2, 2, 4, 5).to(DEVICE)
    boxes = torch.tensor([[0, 0.3, 0.2, 4.1, 3.1], [1, -2.2, 1.1, 2.2, 2.8]]).double().to(DEVICE)
    x = laid_out(x, channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, boxes, (2, 3), backend="cuda"), x, nondet_tol=1e-9)


def test_auto_takes_these_kernels():
    features, boxes = (a.to(DEVICE) for a in case(R=5, C=3, dtype=torch.float32))
    assert torch.equal(roi_align(features, boxes, 3, 0.25), roi_align(features, boxes, 3, 0.25, backend="cuda"))
    half = roi_align(features.half(), boxes, 3, 0.25)
    assert half.dtype == torch.float16 and (half - roi_align(features, boxes, 3, 0.25)).abs().max() < 0.02
