"""Box IoU, mask IoU and OKS: numbers by hand, and pycocotools' own tables on random data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_scratch.similarity import (
    COCO_SIGMAS,
    iou_matrix,
    keypoint_sigmas,
    mask_iou_matrix,
    mask_runs,
    oks_matrix,
)


def encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_box_iou_by_hand():
    detections = [[0, 0, 10, 10], [20, 0, 4, 6], [0, 0, 0, 0]]
    ground_truths = [[5, 0, 10, 10], [5, 0, 10, 10], [0, 0, 10, 10]]
    # 50 shared of 150; as a crowd 50 of the detection's 100; the same box 1; far away and empty boxes 0
    expected = [[1 / 3, 0.5, 1.0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(iou_matrix(detections, ground_truths, [False, True, False]), expected)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 2)])
def test_empty_sides_give_empty_tables(shape):
    D, G = shape
    boxes_d, boxes_g = np.ones((D, 4)), np.ones((G, 4))
    masks_d, masks_g = [np.ones((4, 6))] * D, [np.ones((4, 6))] * G
    assert iou_matrix(boxes_d, boxes_g).shape == shape
    assert mask_iou_matrix(masks_d, masks_g).shape == shape
    assert oks_matrix(np.ones((D, 5, 3)), np.ones((G, 5, 3)), boxes_g, np.ones(G)).shape == shape


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), D=st.integers(1, 12), G=st.integers(1, 8))
def test_box_iou_equals_pycocotools(seed, D, G):
    rng = np.random.default_rng(seed)
    detections, ground_truths = rng.integers(0, 12, (D, 4)) / 2.0, rng.integers(0, 12, (G, 4)) / 2.0
    crowd = rng.random(G) < 0.3
    expected = coco_mask.iou(detections, ground_truths, crowd.astype(np.uint8))
    np.testing.assert_array_equal(iou_matrix(detections, ground_truths, crowd), expected)


def test_mask_runs_read_down_the_columns():
    mask = np.array([[0, 1, 0], [1, 1, 0]])  # 0 1, 1 1, 0 0
    assert mask_runs(mask).tolist() == [[1, 4]]
    assert mask_runs(mask.T).tolist() == [[1, 2], [3, 5]]  # 0 1 0, 1 1 0: another mask, other runs
    assert mask_runs(np.ones((2, 3))).tolist() == [[0, 6]]
    assert mask_runs(np.zeros((2, 3))).shape == (0, 2)
    assert mask_runs(encode(mask)).tolist() == [[1, 4]]


def test_mask_iou_by_hand():
    left, top, nothing = np.zeros((4, 6)), np.zeros((4, 6)), np.zeros((4, 6))
    left[:, :3] = 1  # 12 pixels
    top[:2] = 1  # 12 pixels, 6 of them in left
    table = mask_iou_matrix([left, nothing], [top, top, left, nothing], [False, True, False, False])
    np.testing.assert_array_equal(table, [[6 / 18, 6 / 12, 1.0, 0.0], [0, 0, 0, 0]])


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    D=st.integers(1, 6),
    G=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_mask_iou_equals_pycocotools_and_pixel_counting(seed, D, G, share):
    rng = np.random.default_rng(seed)
    masks = rng.random((D + G, 7, 5)) < share * rng.random((D + G, 1, 1)) * 2
    crowd = rng.random(G) < 0.3
    codes = [encode(mask) for mask in masks]
    table = mask_iou_matrix(codes[:D], codes[D:], crowd)
    np.testing.assert_array_equal(table, coco_mask.iou(codes[:D], codes[D:], crowd.astype(np.uint8)))
    np.testing.assert_array_equal(table, mask_iou_matrix(list(masks[:D]), list(masks[D:]), crowd))
    if not crowd[0] and (masks[0] | masks[D]).any():
        assert table[0, 0] == (masks[0] & masks[D]).sum() / (masks[0] | masks[D]).sum()


def test_oks_by_hand():
    truth = [[[10, 20, 1], [0, 0, 0]]]  # one labelled keypoint (1: hidden, 2: seen), one not labelled
    detections = [[[10, 20, 1], [99, 99, 1]], [[11, 20, 1], [0, 0, 1]], [[10, 22, 1], [0, 0, 1]]]
    table = oks_matrix(detections, truth, [[0, 0, 10, 10]], [100.0], sigmas=[0.05, 0.3])
    # exp(-d^2 / (2 * 100 * 0.1^2)) = exp(-d^2 / 2): d = 0, 1, 2; the second keypoint is not asked
    np.testing.assert_allclose(table[:, 0], [1.0, np.exp(-0.5), np.exp(-2.0)], rtol=1e-12)


def test_oks_without_visible_keypoints_measures_the_distance_to_the_doubled_box():
    # Box 10..30 x 20..60 (20 wide, 40 high) grown by its own size on every side: -10..50 x -20..100.
    truth, box = [[[0, 0, 0], [0, 0, 0]]], [[10, 20, 20, 40]]
    inside = [[-10, -20, 1], [50, 100, 1]]
    right_by_3_below_by_4 = [[53, 104, 1], [0, 0, 1]]  # 5 pixels away, and inside
    table = oks_matrix([inside, right_by_3_below_by_4], truth, box, [100.0], sigmas=[0.05, 0.05])
    np.testing.assert_allclose(table[:, 0], [1.0, (np.exp(-25 / 2) + 1) / 2], rtol=1e-12)


def test_object_of_area_zero_asks_for_an_exact_hit():
    table = oks_matrix([[[5, 5, 1]], [[5, 6, 1]]], [[[5, 5, 2]]], [[5, 5, 0, 0]], [0.0])
    np.testing.assert_array_equal(table[:, 0], [1.0, 0.0])


def test_sigmas_of_coco_and_of_other_skeletons():
    assert keypoint_sigmas(17).tolist() == COCO_SIGMAS.tolist()
    assert keypoint_sigmas(5).shape == (5,)
    np.testing.assert_allclose(keypoint_sigmas(5), 0.0669, atol=5e-5)  # COCO's 1.138 / 17
    assert keypoint_sigmas(2, [0.1, 0.2]).tolist() == [0.1, 0.2]


def test_errors_teach():
    with pytest.raises(ValueError, match=r"crowd has shape \(1,\) for 2 ground truths"):
        iou_matrix([[0, 0, 1, 1]], [[0, 0, 1, 1]] * 2, [True])
    with pytest.raises(ValueError, match=r"mask 1 .* is \(5, 4\), mask 0 is \(4, 5\)"):
        mask_iou_matrix([np.ones((4, 5))], [np.ones((5, 4))])
    with pytest.raises(ValueError, match="ground truths have 3 keypoints, detections 2"):
        oks_matrix(np.ones((1, 2, 3)), np.ones((1, 3, 3)), np.ones((1, 4)), [1.0])
    with pytest.raises(ValueError, match=r"of shape \(2,\) for 3 keypoints"):
        keypoint_sigmas(3, [0.1, 0.1])
    with pytest.raises(ValueError, match="give a positive one each"):
        keypoint_sigmas(1, [0.0])
