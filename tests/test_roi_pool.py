"""RoIPool: the rounding rules one by one, and parity with torchvision's compiled op."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mrcnn_scratch.roi_ops import roi_pool
from mrcnn_scratch.roi_ops.reference import round_half_away
from mrcnn_scratch.roi_ops.vectorized import round_half_away as round_tensor
from tests.test_roi_align import BACKENDS, forward_backward, random_case


def boxes_of(*rows) -> torch.Tensor:
    return torch.tensor([[0, *row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bins_by_hand(backend):
    """x from 1 to 3 is cells 1, 2, 3; two bins of 1.5 cells are widened to 1..2 and 2..3: both see cell 2."""
    row = torch.tensor([0.0, 1, 5, 2, 9]).double().repeat(1, 1, 2, 1)
    out = roi_pool(row, boxes_of([1, 0, 3, 1]), (1, 2), backend=backend)
    assert out.flatten().tolist() == [5, 5]
    assert roi_pool(row, boxes_of([3, 0, 3, 0]), (1, 1), backend=backend).item() == 2  # one cell, end inclusive


@pytest.mark.parametrize("backend", BACKENDS)
def test_corners_round_half_away_from_zero(backend):
    """0.5 and 2.5 are cells 1 and 3, where rounding to even would say 0 and 2."""
    row = torch.arange(6.0).double().repeat(1, 1, 2, 1)
    assert roi_pool(row, boxes_of([0.5, 0, 0.5, 0]), 1, backend=backend).item() == 1
    assert roi_pool(row, boxes_of([2.5, 0, 2.5, 0]), 1, backend=backend).item() == 3
    assert roi_pool(row, boxes_of([-0.5, 0, 0.4, 0]), 1, backend=backend).item() == 0


def test_rounding_of_numbers_near_a_half():
    values = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 8388609.0, 0.0])
    expected = [1, -1, 2, 3, -3, 0, 0, 8388609, 0]
    assert round_tensor(values).tolist() == expected
    assert [round_half_away(v) for v in values.tolist()] == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_bins_of_negative_features_are_zero(backend):
    """A RoI off the map pools nothing: 0, larger than every feature, and no gradient."""
    x = torch.full((1, 2, 4, 5), -3.0, dtype=torch.float64, requires_grad=True)
    out = roi_pool(x, boxes_of([7, 1, 9, 2], [3, 1, 8, 2]), (1, 2), backend=backend)
    assert out[0].abs().max() == 0
    assert out[1, 0].flatten().tolist() == [-3, 0]
    out[0].sum().backward(retain_graph=True)
    assert x.grad.abs().max() == 0
    out[1].sum().backward()
    assert x.grad.sum() == 2


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_every_corner_on_a_half(backend):
    """All boxes with corners on multiples of a half cell in a 4x3 map and beyond its border."""
    features = torch.randperm(12, generator=torch.Generator().manual_seed(0)).double().view(1, 1, 4, 3)
    steps = torch.arange(-2, 9) / 2
    x1, y1, x2, y2 = (t.flatten() for t in torch.meshgrid(steps, steps, steps, steps, indexing="ij"))
    boxes = torch.stack([0 * x1, x1, y1, x2, y2], dim=1).double()  # 14,641
    mine = roi_pool(features, boxes, (2, 1), backend=backend)
    assert torch.equal(mine, torchvision.ops.roi_pool(features, boxes, (2, 1)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([(1, 1), (2, 3), (7, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    ties=st.booleans(),
)
def test_equals_torchvision(seed, size, dtype, ties):
    """Forward and backward; with features of three values the first of the largest cells must win, as there."""
    features, boxes = random_case(seed, R=40, dtype=dtype)
    features = features.round().clamp(-1, 1) if ties else features
    expected = forward_backward(torchvision.ops.roi_pool, features, boxes, size, 0.25)
    for backend in ("torch", "numba"):
        out, grad = forward_backward(roi_pool, features, boxes, size, 0.25, backend=backend)
        assert torch.equal(out, expected[0])
        torch.testing.assert_close(grad, expected[1], rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-10)


def test_reference_equals_torchvision():
    features, boxes = random_case(21, R=20)
    expected = forward_backward(torchvision.ops.roi_pool, features, boxes, (3, 2), 0.25)
    mine = forward_backward(roi_pool, features, boxes, (3, 2), 0.25, backend="reference")
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    """Distinct values: at a tie there is no derivative."""
    x = torch.randperm(40, generator=torch.Generator().manual_seed(0)).double().view(2, 1, 4, 5).requires_grad_()
    boxes = torch.tensor([[0, 0.6, 1.2, 3.9, 3.4], [1, -2, -1, 9, 2], [1, 8, 8, 9, 9]], dtype=torch.float64)
    assert gradcheck(lambda x: roi_pool(x, boxes, (2, 3), backend=backend), x, fast_mode=True)
