"""The keypoint head: cells, loss, decoding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.keypoint_head import KeypointHead, decode_keypoints, keypoint_loss, keypoint_targets


def test_the_side_grows_four_times():
    head = KeypointHead(6, 16, 2, 5)
    assert head(torch.randn(3, 6, 7, 7)).shape == (3, 5, 28, 28)
    assert head(torch.zeros(0, 6, 7, 7)).shape == (0, 5, 28, 28)


# ---------------------------------------------------------------------------------------------- targets

ROI = torch.tensor([[10.0, 20, 18, 24]])  # 8 wide, 4 high


def cell(x, y, v=2.0, size=4):
    index, valid = keypoint_targets(torch.tensor([[[x, y, v]]]), ROI, size)
    return divmod(int(index), size) if bool(valid) else None


def test_cells_by_hand():
    # 4 cells: 2 pixels wide, 1 high; (row, column)
    assert cell(10, 20) == (0, 0)
    assert cell(11.99, 20.99) == (0, 0)
    assert cell(12, 21) == (1, 1)
    assert cell(17.5, 22.5) == (2, 3)


def test_the_far_edge_belongs_to_the_last_cell():
    # x == x2 would be cell S, one too far
    assert cell(18, 24) == (3, 3)
    assert cell(18, 20) == (0, 3)
    assert cell(10, 24) == (3, 0)


def test_outside_the_roi_is_not_taught():
    for x, y in [(9.99, 22), (18.01, 22), (14, 19.99), (14, 24.01), (0, 0)]:
        assert cell(x, y) is None


def test_hidden_points_count_and_unlabelled_ones_do_not():
    assert cell(14, 22, v=2.0) == cell(14, 22, v=1.0) == (2, 2)
    assert cell(14, 22, v=0.0) is None


def test_invalid_points_have_a_harmless_cell():
    keypoints = torch.tensor([[[-500.0, 22, 2], [14, 22, 0], [14, 22, 2]]])
    index, valid = keypoint_targets(keypoints, ROI, 4)
    assert index.tolist() == [[0, 0, 10]] and valid.tolist() == [[False, False, True]]
    assert index.dtype == torch.int64


def test_each_roi_has_its_own_frame_and_none_is_fine():
    keypoints = torch.tensor([[[14.0, 22, 2]], [[14.0, 22, 2]]])
    index, _ = keypoint_targets(keypoints, torch.cat([ROI, ROI + 2]), 4)
    assert index.flatten().tolist() == [2 * 4 + 2, 0 * 4 + 1]  # 14 - 12 = 2 is column 1; 22 - 22 is row 0
    index, valid = keypoint_targets(torch.zeros(0, 3, 3), torch.zeros(0, 4), 56)
    assert index.shape == valid.shape == (0, 3)


# ---------------------------------------------------------------------------------------------- loss


def test_the_softmax_runs_over_space():
    # Equal logits: log(S * S), whatever the number of keypoints. A softmax over channels would give log(J).
    logits = torch.zeros(2, 5, 3, 3)
    cells, valid = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.bool)
    assert float(keypoint_loss(logits, cells, valid)) == pytest.approx(math.log(9))
    logits[:, 1] = 7.0  # a constant on one heat map changes nothing
    assert float(keypoint_loss(logits, cells, valid)) == pytest.approx(math.log(9))


def test_the_mean_is_over_labelled_points():
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 0, 1, 0] = math.log(3)  # cell 2: probability 3 / 6
    cells = torch.tensor([[2, 0], [1, 3]])
    valid = torch.tensor([[True, False], [True, False]])
    assert float(keypoint_loss(logits, cells, valid)) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_gradients_reach_valid_maps_only(generator):
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    cells = torch.tensor([[0, 3, 1], [2, 2, 0]])
    valid = torch.tensor([[True, False, False], [False, True, True]])
    assert torch.autograd.gradcheck(lambda x: keypoint_loss(x, cells, valid), logits)
    keypoint_loss(logits, cells, valid).backward()
    assert torch.equal(logits.grad.abs().sum((2, 3)) > 0, valid)


@pytest.mark.parametrize("rois", [0, 2])
def test_no_labelled_point_gives_a_zero_in_the_graph(rois):
    head = KeypointHead(4, 8, 1, 3)
    shape = (rois, 3)
    logits = head(torch.ones(rois, 4, 2, 2))
    loss = keypoint_loss(logits, torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


# ---------------------------------------------------------------------------------------------- decoding


def heatmaps(cells, size):
    """(R, J) cells -> (R, J, S, S): a smooth bump whose top is the middle of the cell."""
    row, column = cells // size, cells % size
    axis = torch.arange(size)
    return -(
        (axis[:, None] - row[..., None, None]) ** 2 + (axis - column[..., None, None]) ** 2
    ).float()  # (R, J, S, S)


def test_decoding_at_the_boxes_own_size_is_exact():
    # 4 x 4 cells on a box of 4 x 4 pixels: the hot cell's centre
    cells = torch.tensor([[0, 6, 15]])
    points, scores = decode_keypoints(heatmaps(cells, 4), torch.tensor([[10.0, 20, 14, 24]]))
    assert points[0].tolist() == [[10.5, 20.5, 1], [12.5, 21.5, 1], [13.5, 23.5, 1]]
    torch.testing.assert_close(scores, torch.zeros(1, 3), atol=1e-5, rtol=0)


def test_the_heat_map_is_stretched_to_whole_pixels_and_the_width_corrected():
    # A box 3.5 wide is resized to 4 columns of 3.5 / 4 each; 2 rows of 2 pixels.
    logits = torch.full((1, 1, 4, 4), -9.0)
    logits[0, 0, 3, 3] = 9.0
    points, _ = decode_keypoints(logits, torch.tensor([[1.0, 2, 4.5, 6]]))
    assert points[0, 0].tolist() == [pytest.approx(1 + 3.5 * 3.5 / 4), 5.5, 1]


def test_scores_are_the_best_resized_logits(generator):
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    _, scores = decode_keypoints(logits, torch.tensor([[0.0, 0, 8, 8], [3, 3, 11, 11]]))
    torch.testing.assert_close(scores, logits.flatten(2).amax(2), atol=1e-5, rtol=1e-5)


def test_tiny_boxes_and_none():
    points, _ = decode_keypoints(torch.zeros(1, 2, 4, 4), torch.tensor([[3.0, 4, 3.2, 4.1]]))
    assert points[0, :, :2].tolist() == [[3.5, 4.5]] * 2  # treated as one pixel
    points, scores = decode_keypoints(torch.zeros(0, 2, 4, 4), torch.zeros(0, 4))
    assert points.shape == (0, 2, 3) and scores.shape == (0, 2)


def test_half_precision_heat_maps_keep_half_pixels():
    logits = heatmaps(torch.tensor([[6]]), 4)
    points, _ = decode_keypoints(logits.half(), torch.tensor([[2000.0, 3000, 2004, 3004]]))
    assert points.dtype == torch.float32 and points[0, 0].tolist() == [2002.5, 3001.5, 1]


@given(st.floats(0, 500), st.floats(0, 500), st.floats(4, 300), st.floats(4, 300), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_point_comes_back_within_half_a_cell(x1, y1, w, h, u, v):
    roi = torch.tensor([[x1, y1, x1 + w, y1 + h]], dtype=torch.float64)
    point = torch.tensor([[[x1 + u * w, y1 + v * h, 2]]], dtype=torch.float64)
    point[..., :2] = torch.minimum(torch.maximum(point[..., :2], roi[:, None, :2]), roi[:, None, 2:])
    size = 56
    cells, valid = keypoint_targets(point, roi, size)
    assert bool(valid.all())
    row, column = cells.double() // size, cells.double() % size
    back = torch.stack([x1 + (column + 0.5) * w / size, y1 + (row + 0.5) * h / size], -1)
    error = (back - point[..., :2]).abs()[0, 0]
    assert error[0] <= w / (2 * size) + 1e-6 and error[1] <= h / (2 * size) + 1e-6


def test_ten_thousand_points_come_back_without_bias(generator):
    # Target and decoding together: |error| <= w / 2S and a mean of 0. Without the + 0.5 the mean is -w / 2S.
    size, w, h, x1, y1 = 56, 56.0, 112.0, 10.25, 20.5
    roi = torch.tensor([[x1, y1, x1 + w, y1 + h]])
    xy = torch.rand(1, 10_000, 2, generator=generator) * torch.tensor([w, h]) + torch.tensor([x1, y1])
    keypoints = torch.cat([xy, torch.full((1, 10_000, 1), 2.0)], 2)
    cells, valid = keypoint_targets(keypoints, roi, size)
    assert valid.all()
    used = cells.unique()  # nearly all 3,136 cells: decode each once
    decoded, _ = decode_keypoints(heatmaps(used[None], size), roi)
    place = torch.full((size * size,), -1)
    place[used] = torch.arange(len(used))
    error = decoded[0, place[cells[0]], :2] - xy[0]
    half_cell = torch.tensor([w, h]) / (2 * size)
    # at twice the height a bump's top is found to a pixel: half a cell, and half a pixel of the search grid
    assert (error.abs() <= half_cell + torch.tensor([1e-3, 0.5 + 1e-3])).all()
    assert (error[:, 0].abs() <= half_cell[0] + 1e-3).all()
    assert float(error[:, 0].mean().abs()) < 0.01  # the bias to be caught is 0.5
    assert float(error[:, 1].mean().abs()) < 0.6  # a tie between two rows goes to the upper one
