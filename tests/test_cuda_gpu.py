"""The CUDA kernels of the RoI ops on a GPU: against the reference and the CPU kernels, against torchvision's CUDA ops,
on torch's streams, without waiting, to the same bits, beyond 2**31 elements.
"""

import contextlib

import pytest
import torch
import torchvision

from mrcnn_scratch.roi_ops import numba_cpu, reference, roi_align, roi_pool, roi_warp

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from mrcnn_scratch.roi_ops import numba_cuda

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


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_the_same_bits_in_every_run(channels_last):
    """A thousand RoIs on top of each other: with atomics the order of the sums is up to the GPU."""
    features, boxes = case(R=1000, C=64, size=(20, 30), dtype=torch.float32)
    grad = torch.randn(1000, 64, 7, 7, generator=torch.Generator().manual_seed(1))
    shape, rule = tuple(features.shape), (0.25, 2, "aligned")
    _, winner = by_cpu_kernels("roi_align_max_forward", features, boxes, (7, 7), *rule)
    _, pool_winner = by_cpu_kernels("roi_pool_forward", features, boxes, (7, 7), 0.25)
    with deterministic():
        for function, arguments in (
            ("roi_align_backward", (grad, boxes, shape, *rule, channels_last)),
            ("roi_align_max_backward", (grad, winner, boxes, shape, *rule, channels_last)),
            ("roi_pool_backward", (grad, pool_winner, boxes, shape, channels_last)),
            ("roi_align_boxes_backward", (grad, laid_out(features, channels_last), boxes, *rule)),
        ):
            first = on_gpu(function, *arguments)
            assert all(torch.equal(first, on_gpu(function, *arguments)) for _ in range(4))


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


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_on_torchs_current_stream(channels_last):
    """Features that arrive late, on a stream of their own: a launch on another stream would read zeros."""
    features, boxes = (a.to(DEVICE) for a in case(R=200, C=32, dtype=torch.float32))
    features = laid_out(features, channels_last)
    grad = torch.randn(200, 32, 7, 7, device=DEVICE)
    expected = everything(features, boxes, grad)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(stream):
            late = torch.zeros_like(features)
            torch.cuda._sleep(50_000_000)  # cycles
            late.copy_(features)
            mine = everything(late, boxes, grad)
        torch.cuda.current_stream().wait_stream(stream)
        for a, b in zip(mine, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("channels_last", LAYOUTS)
@pytest.mark.parametrize("wanted", [False, True])
def test_the_host_never_waits(channels_last, wanted):
    features, boxes = (a.to(DEVICE) for a in case(R=50, C=32, dtype=torch.float32))
    features, grad = laid_out(features, channels_last), torch.randn(50, 32, 7, 7, device=DEVICE)
    with deterministic(wanted):
        everything(features, boxes, grad)  # compiled
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)  # about a second: whatever waits for the device, waits for this
        done = torch.cuda.Event()
        torch.cuda.set_sync_debug_mode("error")
        try:
            everything(features, boxes, grad)
            done.record()
            assert not done.query()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_no_copy_of_what_is_laid_out(channels_last):
    features, boxes = (a.to(DEVICE) for a in case(R=50, C=256, size=(100, 100), dtype=torch.float32))
    features = laid_out(features, channels_last)
    numba_cuda.roi_align_forward(features, boxes, (7, 7), 0.25, 2, "aligned")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = numba_cuda.roi_align_forward(features, boxes, (7, 7), 0.25, 2, "aligned")
    assert torch.cuda.max_memory_allocated() - before < out.numel() * 4 + 100_000


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_expanded_and_sliced_gradients(channels_last):
    features, boxes = (a.to(DEVICE) for a in case(R=30, C=8, dtype=torch.float32))
    features = laid_out(features, channels_last)
    one = torch.ones((), device=DEVICE).expand(30, 8, 7, 7)
    sliced = torch.stack([one, one], dim=-1)[..., 0]
    transposed = torch.ones(30, 8, 7, 7, device=DEVICE).transpose(2, 3)
    expected = everything(features, boxes, torch.ones(30, 8, 7, 7, device=DEVICE))
    for grad in (one, sliced, transposed):
        for a, b in zip(everything(features, boxes, grad), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


# ---- what a GPU does not forgive


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_bad_boxes_are_nan_and_harm_nothing(channels_last):
    features, boxes = (a.to(DEVICE) for a in case(R=20, C=8, dtype=torch.float32))
    features, nan, inf = laid_out(features, channels_last), float("nan"), float("inf")
    bad = torch.tensor([[i, 1.0, 2.0, 9.0, 9.0] for i in (-1, 2, 1e30, -1e30, 0.5, nan, inf)], device=DEVICE)
    worse = torch.tensor([[0, nan, 2, 9, 9], [0, 1, -inf, 9, inf], [0, 1, 2, 1e30, 9]], device=DEVICE)
    mixed = torch.cat([boxes[:10], bad, worse, boxes[10:]])
    grad = torch.randn(len(mixed), 8, 7, 7, device=DEVICE)
    good = torch.cat([torch.arange(10), torch.arange(20, 30)]).to(DEVICE)
    for wanted in (False, True):
        with deterministic(wanted):
            mine, expected = everything(features, mixed, grad), everything(features, boxes, grad[good])
        torch.cuda.synchronize()
        for k, (a, b) in enumerate(zip(mine, expected, strict=True)):
            if k % 2 == 0:
                assert a[10:20].isnan().all()
                a = a[good]
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("N, C, R", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_do(N, C, R):
    features, boxes = torch.zeros(N, C, 5, 7, device=DEVICE), torch.zeros(R, 5, device=DEVICE)
    for out, grad in zip(*[iter(everything(features, boxes, torch.ones(R, C, 7, 7, device=DEVICE)))] * 2, strict=True):
        assert out.shape == (R, C, 7, 7) and torch.equal(grad, features)
    torch.cuda.synchronize()


@pytest.mark.parametrize("channels_last", LAYOUTS)
def test_more_than_2_to_the_31_elements(channels_last):
    """The second of two images begins beyond what 32 bits can index; alone it must give the same."""
    shape = (2, 256, 2100, 2100)
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    features = torch.empty(
        shape, device=DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    features.normal_()
    assert features.stride(0) > 2**30 and features.numel() > 2**31
    box = torch.tensor([[1.0, 2000.0, 2010.0, 2090.0, 2099.0], [1.0, 3.0, 5.0, 300.0, 20.0]], device=DEVICE)
    alone = box * torch.tensor([0.0, 1, 1, 1, 1], device=DEVICE)
    rule, second = (1.0, 2, "aligned"), laid_out(features[1:], channels_last)
    expected = numba_cuda.roi_align_forward(second, alone, (7, 7), *rule)
    assert torch.equal(numba_cuda.roi_align_forward(features, box, (7, 7), *rule), expected)
    pooled, winner = numba_cuda.roi_pool_forward(features, box, (7, 7), 1.0)
    assert torch.equal(pooled, numba_cuda.roi_pool_forward(second, alone, (7, 7), 1.0)[0])
    del features, second
    one = (1, *shape[1:])
    with deterministic():
        for function, arguments in (("roi_align_backward", rule), ("roi_pool_backward", ())):
            given = (expected,) if arguments else (expected, winner)
            both = getattr(numba_cuda, function)(*given, box, shape, *arguments, channels_last)
            single = getattr(numba_cuda, function)(*given, alone, one, *arguments, channels_last)
            assert torch.equal(both[1:], single) and single.abs().max() > 0 and both[0].abs().max() == 0
            del both, single


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one():
    features, boxes = case(R=20, C=8, dtype=torch.float32)
    grad = torch.randn(20, 8, 7, 7)
    mine = everything(features.to("cuda:1"), boxes.to("cuda:1"), grad.to("cuda:1"))
    for a, b in zip(mine, everything(features.to("cuda:0"), boxes.to("cuda:0"), grad.to("cuda:0")), strict=True):
        assert a.device.index == 1
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=1e-3)


def test_warm_up_compiles_all():
    from mrcnn_scratch.roi_ops.numba_cuda import kernels

    kernels.warm_up(torch.float32, (2,))
    misses = kernels.kernel.cache_info().misses
    features, boxes = (a.to(DEVICE) for a in case(R=5, C=8, dtype=torch.float32))
    roi_align(features.requires_grad_(), boxes, 7, 0.25, backend="cuda").sum().backward()
    assert kernels.kernel.cache_info().misses == misses
