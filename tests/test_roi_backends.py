"""Every backend against the reference loops: results, gradients by the features and by the boxes, all ops."""

from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.roi_ops import numba_cpu, roi_pool
from tests.roi_cases import (
    BACKENDS,
    FAST,
    OPS,
    SAMPLERS,
    assert_all_close,
    cases,
    gradients,
    random_case,
)

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
RATIOS = st.sampled_from([0, 1, 2, 3, -1])


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@EXAMPLES
@given(case=cases(most=10), ratio=RATIOS)
def test_samplers_equal_the_reference(sampler, reduce, case, ratio):
    """To 1e-10 in float64, on clamps, kinks and borders too: the backends agree on which side each sample is."""
    options = dict(reduce=reduce, box_gradients=True)
    expected = gradients(SAMPLERS[sampler], *case, ratio, backend="reference", **options)
    for backend in FAST:
        assert_all_close(gradients(SAMPLERS[sampler], *case, ratio, backend=backend, **options), expected, 1e-10)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@EXAMPLES
@given(case=cases(most=10), ratio=RATIOS)
def test_samplers_equal_the_reference_in_float32(sampler, reduce, case, ratio):
    """Samples lie at the same places. Values of size 1: 2e-6 in results, 2e-5 in sums over RoIs or channels."""
    case, options = case.to(torch.float32), dict(reduce=reduce, box_gradients=True)
    out, *grads = gradients(SAMPLERS[sampler], *case, ratio, backend="reference", **options)
    for backend in FAST:
        mine, *mine_grads = gradients(SAMPLERS[sampler], *case, ratio, backend=backend, **options)
        assert mine.dtype == torch.float32 and all(g.dtype == torch.float32 for g in mine_grads)
        torch.testing.assert_close(mine, out, rtol=0, atol=2e-6)
        assert_all_close(mine_grads, grads, 2e-5)


@EXAMPLES
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.float64]), ties=st.booleans())
def test_roi_pool_equals_the_reference(case, dtype, ties):
    """To the bit: no arithmetic touches the values. Where cells are equal the first one wins everywhere."""
    case = case.to(dtype)
    case = case._replace(features=case.features.round()) if ties else case
    out, grad = gradients(roi_pool, *case, backend="reference")
    for backend in FAST:
        mine, mine_grad = gradients(roi_pool, *case, backend=backend)
        assert torch.equal(mine, out)
        torch.testing.assert_close(mine_grad, grad, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_float32_is_near_float64_at_real_sizes(sampler, backend):
    """Corners of about 1,000 pixels at stride 16 are known to 6e-5 pixels, so samples to 4e-6 cells: 5e-5 in results
    of size 1, a relative 1e-5 in the gradient by the features."""
    g = torch.Generator().manual_seed(3)
    features = torch.randn(1, 3, 50, 84, generator=g)
    low = torch.rand(8, 2, generator=g) * torch.tensor([900.0, 400.0]) + 30
    boxes = torch.cat([torch.zeros(8, 1), low, low + torch.rand(8, 2, generator=g) * 300 + 20], dim=1)
    options = dict(spatial_scale=1 / 16, sampling_ratio=2, backend=backend)
    out, grad = gradients(SAMPLERS[sampler], features, boxes, (3, 2), **options)
    exact, exact_grad = gradients(SAMPLERS[sampler], features.double(), boxes.double(), (3, 2), **options)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=5e-5)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0, atol=1e-5 * exact_grad.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_strides_of_features_boxes_and_gradient(op, backend):
    """Slices, transposed maps, channels_last, boxes cut from a wider table, a gradient expanded from one number."""
    features, boxes = random_case(4)
    expected, grads = op(features, boxes, (2, 3), 0.25, backend=backend), []
    wide = torch.cat([boxes, boxes], dim=1)[:, :5]
    for layout in ("plain", "channels_last", "strided", "transposed"):
        x = features.clone()
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "strided":
            x = torch.stack([x, x], dim=-1).flatten(3)[..., ::2]
        elif layout == "transposed":
            x = x.transpose(2, 3).contiguous().transpose(2, 3)
        x.requires_grad_()
        out = op(x, wide, (2, 3), 0.25, backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        out.sum().backward()
        grads.append(x.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=0, atol=1e-12)
    assert grads[0].abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_list_of_boxes(op, backend):
    features, boxes = random_case(8)
    per_image = [boxes[boxes[:, 0] == n, 1:] for n in (0, 1)]
    rows = torch.cat([boxes[boxes[:, 0] == n] for n in (0, 1)])
    out = op(features, rows, 2, 0.25, backend=backend)
    assert torch.equal(op(features, per_image, 2, 0.25, backend=backend), out)
    lonely = [torch.zeros(0, 4, dtype=torch.float64), per_image[1]]
    assert torch.equal(op(features, lonely, 2, 0.25, backend=backend), out[len(per_image[0]) :])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_no_rois(op, backend, ratio):
    """No RoIs, no images, and the gradients are there: zeros."""
    features, _ = random_case(9)
    features.requires_grad_()
    boxes = torch.zeros(0, 5, requires_grad=True)
    if op == "pool":
        out = roi_pool(features, boxes, (2, 3), 0.25, backend)
    else:
        out = SAMPLERS[op](features, boxes, (2, 3), 0.25, ratio, backend=backend, box_gradients=True)
    assert out.shape == (0, 3, 2, 3) and out.dtype == torch.float64
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert boxes.grad is None if op == "pool" else boxes.grad.shape == (0, 5)
    op = roi_pool if op == "pool" else SAMPLERS[op]
    assert op(features.detach()[:0], [], 2, backend=backend).shape == (0, 3, 2, 2)


def poisoned(allocate):
    """As `allocate`, but what should be overwritten before it is read is NaN, or a number that is no cell or sample."""

    def fill(*arguments):
        array = allocate(*arguments)
        values = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
        values.fill_(torch.nan if values.is_floating_point() else -(2**30))
        return array

    return fill


@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(most=2, least=3), ratio=st.sampled_from([0, 1, 2]), reduce=st.sampled_from(["mean", "max"]))
def test_kernels_read_nothing_that_they_have_not_written(op, case, ratio, reduce):
    """Memory comes as others left it, and of a map only the rows that RoIs touch are copied: nothing may read more."""
    if op == "pool":
        run = partial(gradients, roi_pool, *case)
    else:
        run = partial(gradients, SAMPLERS[op], *case, ratio, reduce=reduce, box_gradients=True)
    allocators = {name: poisoned(getattr(numba_cpu, name)) for name in ("new", "scratch")}
    with mock.patch.multiple(numba_cpu, **allocators):
        mine = run(backend="numba")
    assert_all_close(mine, run(backend="torch"), 1e-10)


def run_parallel(serial, parallel, work: int, *arguments) -> None:
    """`_numba.run` for any amount of work."""
    parallel(*arguments)


@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=cases(most=12), ratio=st.sampled_from([0, 1, 2]), reduce=st.sampled_from(["mean", "max"]))
def test_parallel_kernels(op, case, ratio, reduce):
    """Small maps would run the serial variants; here each row of a map is a thread's own, the finest cut there is."""
    if op == "pool":
        run = partial(gradients, roi_pool, *case)
    else:
        run = partial(gradients, SAMPLERS[op], *case, ratio, reduce=reduce, box_gradients=True)
    always = [mock.patch.object(module, "run", run_parallel) for module in (numba_cpu, numba_cpu.layout)]
    with always[0], always[1], mock.patch.object(torch, "get_num_threads", lambda: 8):
        mine = run(backend="numba")
    assert_all_close(mine, run(backend="torch"), 1e-10)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize(("sampler", "reduce"), [("aligned", "mean"), ("mnc", "max")])
def test_box_gradients_compile_without_a_graph_break(sampler, reduce, backend):
    features, boxes = random_case(12, R=4)

    def grad(boxes):
        out = SAMPLERS[sampler](features, boxes, 2, 0.25, 2, reduce=reduce, backend=backend, box_gradients=True)
        return out.square().sum()

    leaves = [boxes.clone().requires_grad_() for _ in range(2)]
    grad(leaves[0]).backward()
    torch.compile(grad, fullgraph=True, backend="aot_eager")(leaves[1]).backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=0, atol=1e-10)
