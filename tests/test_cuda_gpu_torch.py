"""The CUDA kernels of the RoI ops on a GPU, as a part of torch: the same bits, torch's streams, no waiting, no copies,
and what a GPU does not forgive.
"""

import pytest
import torch
from cuda_cases import (
    DEVICE,
    LAYOUTS,
    by_cpu_kernels,
    case,
    deterministic,
    everything,
    laid_out,
    needs_gpu,
    on_gpu,
)

from mrcnn_scratch.roi_ops import numba_cuda, roi_align
from mrcnn_scratch.roi_ops.numba_cuda import kernels

pytestmark = needs_gpu


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
    kernels.warm_up(torch.float32, (2,))
    misses = kernels.kernel.cache_info().misses
    features, boxes = (a.to(DEVICE) for a in case(R=5, C=8, dtype=torch.float32))
    roi_align(features.requires_grad_(), boxes, 7, 0.25, backend="cuda").sum().backward()
    assert kernels.kernel.cache_info().misses == misses
