"""RoIWarp: RoIPool's region, RoIAlign's sampling, and nothing else; and the layer as MNC coded it."""

import pytest
import torch
from torch.nn.functional import max_pool2d

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from tests.roi_cases import BACKENDS, boxes_of, ramp, random_case

each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_is_roi_align_of_the_rounded_cells(backend, reduce, ratio):
    """Corners 2.4 and 4.6 are cells 2 to 5, which cover [2, 6). At stride 4: pixels 8 to 24."""
    features, _ = random_case(0)
    boxes = torch.tensor([[0, 9.6, 5.9, 18.4, 9.9], [1, 2.0, -6.0, 6.0, 6.1]], dtype=torch.float64)
    cells = torch.tensor([[0, 8, 4, 24, 12], [1, 4, -8, 12, 12]], dtype=torch.float64)
    warped = roi_warp(features, boxes, (2, 3), 0.25, ratio, reduce, backend)
    torch.testing.assert_close(warped, roi_align(features, cells, (2, 3), 0.25, ratio, True, reduce, backend))


@each_backend
@pytest.mark.parametrize("sampler", ["align", "mnc"])
def test_trap_09_a_shift_within_a_cell_changes_nothing(sampler, backend):
    """RoIPool and RoIWarp do not see a shift that crosses no rounding edge; RoIAlign does: that is Table 2c. Without
    its rounding RoIWarp is RoIAlign, and the table fails."""
    features, _ = random_case(1)
    boxes = boxes_of([8.0, 8.0, 24.0, 16.0])  # whole cells: edges are 2 pixels away
    shifted = boxes + torch.tensor([0, 1.9, -1.9, 1.9, -1.9])
    crossed = boxes + torch.tensor([0, 2.1, 0, 2.1, 0])

    def warp(boxes):
        return roi_warp(features, boxes, 3, 0.25, sampler=sampler, backend=backend)

    assert torch.equal(warp(boxes), warp(shifted))
    assert not torch.equal(warp(boxes), warp(crossed))
    pooled = (roi_pool(features, b, 3, 0.25, backend=backend) for b in (boxes, shifted))
    assert torch.equal(*pooled)
    one, other = (roi_align(features, b, 3, 0.25, backend=backend) for b in (boxes, shifted))
    assert (one - other).abs().max() > 0.1


@each_backend
def test_a_point_is_one_cell(backend):
    """Halves away from zero: 2.5 is cell 3, of which the middle is read: its own value; so is an inverted RoI."""
    features = torch.arange(30.0).double().view(1, 1, 5, 6)
    boxes = boxes_of([2.5, 1.0, 2.5, 1.0], [4.0, 3.0, 1.0, 1.0], [0.5, 0.4, 0.5, 0.4])
    out = roi_warp(features, boxes, 1, sampling_ratio=1, backend=backend)
    assert out.flatten().tolist() == [1 * 6 + 3, 3 * 6 + 4, 1]
    mnc = roi_warp(features, boxes, 1, sampling_ratio=1, sampler="mnc", backend=backend)
    assert torch.equal(mnc, out)  # the cell's centre is where its sampling begins


@each_backend
def test_mnc_reads_the_top_left_corner_of_each_bin(backend):
    """Cells 1, 2, 3 in two bins of 1.5: read at 1 and 2.5, where RoIWarp reads the middles 1.25 and 2.75 of [0.5, 3.5).

    With 2 x 2 parts to a bin: at 1, 1.75 and 2.5, 3.25.
    """
    box = boxes_of([1, 2, 3, 2])
    row = torch.tensor([0, 1.0, 10, 100, 1000], dtype=torch.float64).repeat(1, 1, 5, 1)

    def read(sampler, ratio, reduce="mean"):
        options = dict(sampling_ratio=ratio, reduce=reduce, sampler=sampler, backend=backend)
        return roi_warp(row, box, (1, 2), **options).flatten().tolist()

    assert read("mnc", 1) == [1, 55]
    assert read("align", 1) == [1 + 9 / 4, 10 + 90 * 3 / 4]
    assert read("mnc", 2) == [(1 + 1 + 9 * 3 / 4) / 2, (55 + 100 + 900 / 4) / 2]
    assert read("mnc", 2, "max") == [1 + 9 * 3 / 4, 100 + 900 / 4]
    down = roi_warp(ramp(), box, (2, 1), sampling_ratio=1, sampler="mnc", backend=backend)
    assert down.flatten().tolist() == [11, 13.5]  # column 1, rows 2 and 2.5: one cell high, two bins


@each_backend
def test_mnc_warps_finer_and_takes_the_largest(backend):
    """MNC warps to twice the size and max-pools: sampling_ratio 2 with reduce "max" is those two steps in one."""
    features, boxes = random_case(2, R=30)
    finer = roi_warp(features, boxes, (4, 6), 0.25, 1, sampler="mnc", backend=backend)
    pooled = roi_warp(features, boxes, (2, 3), 0.25, 2, "max", sampler="mnc", backend=backend)
    torch.testing.assert_close(pooled, max_pool2d(finer, 2), rtol=0, atol=1e-10)


@each_backend
@pytest.mark.parametrize("axis", ["y", "x"])
def test_trap_04_mnc_border_rule(axis, backend):
    """In quarters of a cell: a sample half a cell or more off the map counts as 0; nearer, as the edge's value."""
    features = torch.full((1, 1, 4, 6), 2.0, dtype=torch.float64)
    length = 4 if axis == "y" else 6
    for cell, expected in ((-1, [0, 0, 0, 2]), (0, [2] * 4), (length - 1, [2, 2, 0, 0]), (length, [0] * 4)):
        box = [1, cell, 1, cell] if axis == "y" else [cell, 1, cell, 1]
        size = (4, 1) if axis == "y" else (1, 4)
        for reduce in ("mean", "max"):
            out = roi_warp(features, boxes_of(box), size, 1.0, 1, reduce, backend, sampler="mnc")
            assert out.flatten().tolist() == expected


def test_unknown_sampler():
    with pytest.raises(ValueError, match="sampler must be one of 'align', 'mnc', got 'caffe'"):
        roi_warp(ramp(), boxes_of([1, 1, 2, 2]), 1, sampler="caffe")
