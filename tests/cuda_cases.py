"""Cases and comparisons for the tests of the CUDA kernels on a GPU. Where there is none this imports all the same."""

import contextlib

import pytest
import torch

from mrcnn_scratch.roi_ops import numba_cpu, numba_cuda, reference, roi_align, roi_pool, roi_warp

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICE = "cuda"
CONVENTIONS, LAYOUTS = ("aligned", "legacy", "warp", "mnc"), (False, True)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


def case(R: int, C: int, size=(13, 22), dtype=torch.float64, snapped=True, seed=0):
    """Features of two images at stride 4, and RoIs inside, across the border and off it; some with whole corners."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, C, *size, generator=g, dtype=torch.float64)
    corner = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([4.0 * size[1], 4.0 * size[0]]) - 15
    boxes = torch.cat([corner, corner + torch.rand(R, 2, generator=g, dtype=torch.float64) * 60 - 2], dim=1)
    if snapped:
        boxes = torch.where(torch.rand(R, 1, generator=g) < 0.3, boxes.round(), boxes)
    index = torch.randint(0, 2, (R, 1), generator=g).double()
    return features.to(dtype), torch.cat([index, boxes], dim=1).to(dtype)


def laid_out(x, channels_last):
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@contextlib.contextmanager
def deterministic(wanted=True):
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def on_gpu(function, *arguments):
    arguments = (a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments)
    return getattr(numba_cuda, function)(*arguments)


def by_reference(function, *arguments):
    result = getattr(reference, function)(*(a.numpy() if isinstance(a, torch.Tensor) else a for a in arguments))
    return tuple(map(torch.from_numpy, result)) if isinstance(result, tuple) else torch.from_numpy(result)


def by_cpu_kernels(function, *arguments):
    return getattr(numba_cpu, function)(*arguments)


def close(mine, theirs, dtype, channels_last=None):
    """Within the tolerance, relative to the largest value: gradients of boxes are sums over whole RoIs."""
    scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
    torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=TOLERANCE[dtype] * scale)
    if channels_last is not None:
        assert mine.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def everything(features, boxes, grad):
    """Each op forward and backward, through the front."""
    results = []
    for op, options in (
        (roi_align, {}),
        (roi_align, {"reduce": "max"}),
        (roi_warp, {"sampling_ratio": 0}),
        (roi_pool, {}),
    ):
        x = features.detach().requires_grad_()
        out = op(x, boxes, 7, 0.25, backend="cuda", **options)
        out.backward(grad)
        results += [out.detach(), x.grad]
    return results
