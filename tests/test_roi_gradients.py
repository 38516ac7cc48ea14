"""The gradient that the features receive: against finite differences, as the adjoint of the forward, at ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from mrcnn_scratch.roi_ops import roi_pool
from tests.roi_cases import BACKENDS, SAMPLERS, boxes_of, cases, random_case

BOXES = torch.tensor(  # two images; across the border, off the map, inverted, a point
    [[0, 1.3, 0.7, 4.9, 3.1], [1, -2.0, 1.1, 2.2, 6.3], [1, 9, 9, 12, 12], [0, 2, 2, 1.2, 3], [1, 2, 2, 2, 2]],
    dtype=torch.float64,
)


def distinct(*shape: int) -> torch.Tensor:
    """Whole numbers, no two alike: trap 8, at a tie the largest has no derivative, and gradcheck fails."""
    values = torch.randperm(torch.Size(shape).numel(), generator=torch.Generator().manual_seed(0))
    return values.double().view(shape).requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradcheck(sampler, ratio, reduce, backend):
    x, op = distinct(2, 1, 4, 5), SAMPLERS[sampler]
    assert gradcheck(lambda x: op(x, BOXES, (2, 3), 0.9, ratio, reduce=reduce, backend=backend), x, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_roi_pool(backend):
    assert gradcheck(lambda x: roi_pool(x, BOXES, (2, 3), 0.9, backend), distinct(2, 1, 4, 5), fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_second_derivative(sampler, backend):
    """Linear in the features, so the second derivative is that of a linear map: the forward again."""
    features, boxes = random_case(5, R=3)
    x, op = features[:, :1].clone().requires_grad_(), SAMPLERS[sampler]
    assert gradgradcheck(lambda x: op(x, boxes, (1, 2), 0.25, backend=backend), x, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=cases(most=10), ratio=st.sampled_from([0, 1, 2]), reduce=st.sampled_from(["mean", "max"]))
def test_trap_05_backward_is_the_adjoint_of_the_forward(op, backend, case, ratio, reduce):
    """<g, A x> = <At g, x> for every g and x, over RoIs inside, outside, degenerate and exactly on the border.

    Trap 5: in torchvision's first `aligned` release the backward clamped other samples than the forward.
    A maximum is linear where its winners stay: there the same holds.
    """
    x = case.features.requires_grad_()
    if op == "pool":
        out = roi_pool(x, *case[1:], backend)
    else:
        out = SAMPLERS[op](x, *case[1:], ratio, reduce=reduce, backend=backend)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    (back,) = torch.autograd.grad(out, x, g)
    torch.testing.assert_close((g * out).sum(), (back * x).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [*SAMPLERS, "pool"])
def test_trap_08_at_a_tie_the_first_takes_all(op, backend):
    """On a constant map every sample and cell is the largest: the first in reading order has the whole gradient."""
    x = torch.ones(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    box = boxes_of([1, 1, 4, 4])  # aligned: samples at indices 1.25, 2.75; warp: 1.5, 3.5
    if op == "pool":
        out = roi_pool(x, box, 1, backend=backend)
    else:
        out = SAMPLERS[op](x, box, 1, reduce="max", backend=backend)
    (grad,) = torch.autograd.grad(out, x)
    assert grad[0, 0, 1, 1] > 0
    assert grad[0, 0, 1:3, 1:3].sum().item() == pytest.approx(1, abs=1e-12) and grad.count_nonzero() <= 4
    assert grad.sum().item() == pytest.approx(1, abs=1e-12)
