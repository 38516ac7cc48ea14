"""RoIPool: the rounding rules one by one. Trap 7: most slow re-implementations fail one of them."""

import pytest
import torch

from mrcnn_scratch.roi_ops import roi_pool
from mrcnn_scratch.roi_ops.reference import round_half_away
from mrcnn_scratch.roi_ops.vectorized import round_half_away as round_tensor
from tests.roi_cases import BACKENDS, boxes_of

each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
def test_trap_07_bins_overlap_and_the_end_is_inclusive(backend):
    """x from 1 to 3 is cells 1, 2, 3; two bins of 1.5 cells are widened to 1..2 and 2..3: both see cell 2."""
    row = torch.tensor([0.0, 1, 5, 2, 9]).double().repeat(1, 1, 2, 1)
    out = roi_pool(row, boxes_of([1, 0, 3, 1]), (1, 2), backend=backend)
    assert out.flatten().tolist() == [5, 5]
    assert roi_pool(row, boxes_of([3, 0, 3, 0]), (1, 1), backend=backend).item() == 2  # one cell
    assert roi_pool(row, boxes_of([3, 0, 1, 0]), (1, 1), backend=backend).item() == 2  # inverted: one cell as well


@each_backend
def test_trap_07_corners_round_half_away_from_zero(backend):
    """0.5 and 2.5 are cells 1 and 3, where rounding to even would say 0 and 2; -0.5 is -1."""
    row = torch.arange(6.0).double().repeat(1, 1, 2, 1) + 1
    pooled = roi_pool(row, boxes_of([0.5, 0, 0.5, 0], [2.5, 0, 2.5, 0], [-0.5, 0, 0.4, 0]), 1, backend=backend)
    assert pooled.flatten().tolist() == [2, 4, 1]
    two = roi_pool(row, boxes_of([-0.5, 0, 0.4, 0], [-0.4, 0, 0.4, 0]), (1, 2), backend=backend)
    assert two.flatten().tolist() == [0, 1, 1, 1]  # the first bin of [-1, 0] is off the map


def test_trap_07_rounding_of_numbers_near_a_half():
    values = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 8388609.0, 0.0])
    expected = [1, -1, 2, 3, -3, 0, 0, 8388609, 0]
    assert round_tensor(values).tolist() == expected
    assert round_tensor(values.requires_grad_()).tolist() == expected
    assert [round_half_away(v) for v in values.tolist()] == expected


@each_backend
def test_trap_07_empty_bins_of_negative_features_are_zero(backend):
    """A RoI off the map pools nothing: 0, larger than every feature, and no gradient."""
    x = torch.full((1, 2, 4, 5), -3.0, dtype=torch.float64, requires_grad=True)
    out = roi_pool(x, boxes_of([7, 1, 9, 2], [3, 1, 8, 2]), (1, 2), backend=backend)
    assert out[0].abs().max() == 0
    assert out[1, 0].flatten().tolist() == [-3, 0]
    out[0].sum().backward(retain_graph=True)
    assert x.grad.abs().max() == 0
    out[1].sum().backward()
    assert x.grad.sum() == 2


@each_backend
def test_trap_07_the_batch_index_is_not_scaled_or_rounded(backend):
    """At stride 16, image 3 is still image 3."""
    x = torch.arange(4.0).double().view(4, 1, 1, 1).expand(4, 1, 2, 3)
    boxes = torch.tensor([[3, 0, 0, 16, 16.0], [1, 0, 0, 16, 16], [2, 0, 0, 16, 16]], dtype=torch.float64)
    assert roi_pool(x, boxes, 1, 1 / 16, backend).flatten().tolist() == [3, 1, 2]


@each_backend
def test_a_cell_that_wins_in_several_bins_receives_from_each(backend):
    """Fast R-CNN, eq. 4: the gradient of a cell is the sum over the bins, and RoIs, that it won."""
    x = torch.tensor([0.0, 1, 5, 2, 9]).double().repeat(1, 1, 2, 1).requires_grad_()
    out = roi_pool(x, boxes_of([1, 0, 3, 0], [2, 0, 2, 0]), (1, 2), backend=backend)
    out.backward(torch.tensor([[[[1.0, 10]]], [[[100, 1000]]]], dtype=torch.float64))
    assert x.grad[0, 0].tolist() == [[0, 0, 1111, 0, 0], [0] * 5]


@each_backend
def test_values_that_are_not_numbers_show(backend):
    """A bin of -inf is -inf, and one of NaN is NaN: a network that diverged does not look like an empty RoI."""
    x = torch.full((1, 1, 2, 3), -torch.inf, dtype=torch.float64)
    assert roi_pool(x, boxes_of([0, 0, 2, 1]), 1, backend=backend).item() == -torch.inf
    assert roi_pool(x * torch.nan, boxes_of([0, 0, 2, 1]), 1, backend=backend).isnan().all()
