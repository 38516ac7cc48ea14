"""RoIWarp: RoIPool's region, RoIAlign's sampling, and nothing else."""

import pytest
import torch
from torch.autograd import gradcheck

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from tests.test_roi_align import BACKENDS, forward_backward, random_case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_is_roi_align_of_the_rounded_cells(backend, reduce, ratio):
    """Corners 2.4 and 4.6 are cells 2 to 5, which cover [2, 6). At stride 4: pixels 8 to 24."""
    features, _ = random_case(0)
    boxes = torch.tensor([[0, 9.6, 5.9, 18.4, 9.9], [1, 2.0, -6.0, 6.0, 6.1]], dtype=torch.float64)
    cells = torch.tensor([[0, 8, 4, 24, 12], [1, 4, -8, 12, 12]], dtype=torch.float64)
    warped = roi_warp(features, boxes, (2, 3), 0.25, ratio, reduce, backend)
    torch.testing.assert_close(warped, roi_align(features, cells, (2, 3), 0.25, ratio, True, reduce, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_shift_within_a_cell_changes_nothing(backend):
    """RoIPool and RoIWarp do not see a shift that crosses no rounding edge; RoIAlign does: that is Table 2c."""
    features, _ = random_case(1)
    boxes = torch.tensor([[0, 8.0, 8.0, 24.0, 16.0]], dtype=torch.float64)  # whole cells: edges are 2 pixels away
    shifted = boxes + torch.tensor([0, 1.9, -1.9, 1.9, -1.9])
    for op in (roi_pool, roi_warp):
        assert torch.equal(
            op(features, boxes, 3, 0.25, backend=backend), op(features, shifted, 3, 0.25, backend=backend)
        )
    moved = roi_align(features, shifted, 3, 0.25, backend=backend) - roi_align(
        features, boxes, 3, 0.25, backend=backend
    )
    assert moved.abs().max() > 0.1
    crossed = boxes + torch.tensor([0, 2.1, 0, 2.1, 0])
    assert not torch.equal(roi_warp(features, boxes, 3, 0.25), roi_warp(features, crossed, 3, 0.25))


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_backends_equal_reference(ratio, reduce):
    features, boxes = random_case(13)
    args = (boxes, (2, 3), 0.25, ratio, reduce)
    expected = forward_backward(roi_warp, features, *args, backend="reference")
    for backend in ("torch", "numba"):
        for mine, slow in zip(forward_backward(roi_warp, features, *args, backend=backend), expected, strict=True):
            torch.testing.assert_close(mine, slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_is_one_cell(backend):
    """Halves away from zero: 2.5 is cell 3, of which the middle is read: its own value; so is an inverted RoI."""
    features = torch.arange(30.0).double().view(1, 1, 5, 6)
    boxes = torch.tensor([[0, 2.5, 1.0, 2.5, 1.0], [0, 4.0, 3.0, 1.0, 1.0]], dtype=torch.float64)
    out = roi_warp(features, boxes, 1, sampling_ratio=1, backend=backend)
    assert out.flatten().tolist() == [1 * 6 + 3, 3 * 6 + 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    features, boxes = random_case(14, R=5)
    x = features[:, :1].clone().requires_grad_()
    assert gradcheck(lambda x: roi_warp(x, boxes, (2, 3), 0.25, backend=backend), x, fast_mode=True)
