"""Box geometry: areas, overlaps, clipping, and the deltas that move boxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.boxes import (
    box_area,
    box_ioa,
    box_iou,
    clip_boxes_to_image,
    decode_boxes,
    encode_boxes,
    large_enough,
)

corner = st.floats(-300, 900, width=32)
side = st.floats(0.5, 500, width=32)


@st.composite
def boxes_strategy(draw, least=0, most=6):
    rows = draw(st.lists(st.tuples(corner, corner, side, side), min_size=least, max_size=most))
    rows = [[x, y, x + w, y + h] for x, y, w, h in rows]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def test_a_pixel_has_area_one_and_no_plus_one():
    # Detectron counted x2 - x1 + 1: [0, 0, 1, 1] had area 4.
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 3, 7, 5]])
    assert box_area(boxes).tolist() == [1, 10]  # 5 wide, 2 high
    assert box_iou(boxes, boxes).diagonal().tolist() == [1, 1]


def test_iou_by_hand():
    one = torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 1]])
    two = torch.tensor([[1.0, 1, 3, 3], [1, 0, 3, 1], [2, 2, 5, 5]])
    # row 0: 1 of 4 + 4 - 1 = 7; 1 of 4 + 2 - 1 = 5; they touch in a corner: 0
    # row 1: they touch along an edge: 0; 2 of 4 + 2 - 2 = 4; apart: 0
    expected = torch.tensor([[1 / 7, 1 / 5, 0], [0, 1 / 2, 0]])
    torch.testing.assert_close(box_iou(one, two), expected)


def test_iou_of_empty_boxes_is_zero_not_nan():
    empty = torch.tensor([[3.0, 3, 3, 3], [1, 1, 1, 9]])
    assert torch.equal(box_iou(empty, empty), torch.zeros(2, 2))
    assert torch.equal(box_ioa(empty, torch.tensor([[0.0, 0, 9, 9]])), torch.zeros(2, 1))


def test_no_boxes_at_all():
    none, some = torch.zeros(0, 4), torch.tensor([[0.0, 0, 1, 1]])
    assert box_area(none).shape == (0,)
    assert box_iou(none, some).shape == (0, 1)
    assert box_iou(some, none).shape == (1, 0)
    assert encode_boxes(none, none).shape == (0, 4)
    assert decode_boxes(none, none).shape == (0, 4)
    assert decode_boxes(torch.zeros(0, 3, 4), none).shape == (0, 3, 4)
    assert clip_boxes_to_image(none, (3, 5)).shape == (0, 4)
    assert large_enough(none, 0).shape == (0,)


@given(boxes_strategy(), boxes_strategy(), st.floats(-50, 50), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_iou_is_symmetric_and_blind_to_translation_and_scale(one, two, shift, scale):
    iou = box_iou(one, two)
    assert ((iou >= 0) & (iou <= 1 + 1e-12)).all()
    torch.testing.assert_close(iou, box_iou(two, one).T)
    torch.testing.assert_close(iou, box_iou((one + shift) * scale, (two + shift) * scale), atol=1e-9, rtol=1e-6)


def test_ioa_divides_by_the_box_and_not_by_the_region():
    # COCO compares a detection with a crowd by the share of the *detection* that lies in the crowd.
    box, crowd = torch.tensor([[0.0, 0, 4, 2]]), torch.tensor([[1.0, 0, 10, 10]])
    assert box_ioa(box, crowd).tolist() == [[0.75]]  # 3 * 2 of 4 * 2
    torch.testing.assert_close(box_ioa(crowd, box), torch.tensor([[6 / 90]]))


def test_clip_takes_height_first():
    boxes = torch.tensor([[-1.0, -2, 100, 100], [1, 1, 5, 3], [9, 9, 12, 12]])
    clipped = clip_boxes_to_image(boxes, (4, 7))  # 4 high, 7 wide
    assert clipped.tolist() == [[0, 0, 7, 4], [1, 1, 5, 3], [7, 4, 7, 4]]
    per_class = boxes[:, None].expand(3, 2, 4)
    assert torch.equal(clip_boxes_to_image(per_class, (4, 7)), clipped[:, None].expand(3, 2, 4))


def test_large_enough_wants_both_sides():
    boxes = torch.tensor([[0.0, 0, 5, 0], [0, 0, 0, 5], [0, 0, 2, 2], [3, 3, 2, 9], [0, 0, 3, 2.5]])
    assert large_enough(boxes, 0).tolist() == [2, 4]
    assert large_enough(boxes, 2).tolist() == [4]  # exactly 2 does not exceed 2


def test_deltas_by_hand():
    # proposal: 10 wide, 20 high, centre (15, 20); truth: 20 wide, 10 high, centre (20, 15)
    proposal, truth = torch.tensor([[10.0, 10, 20, 30]]), torch.tensor([[10.0, 10, 30, 20]])
    plain = torch.tensor([[5 / 10, -5 / 20, math.log(2), math.log(1 / 2)]])
    torch.testing.assert_close(encode_boxes(truth, proposal), plain)
    weighted = plain * torch.tensor([10.0, 10, 5, 5])
    torch.testing.assert_close(encode_boxes(truth, proposal, (10.0, 10.0, 5.0, 5.0)), weighted)
    torch.testing.assert_close(decode_boxes(plain, proposal), truth)
    torch.testing.assert_close(decode_boxes(weighted, proposal, (10.0, 10.0, 5.0, 5.0)), truth)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
@given(truth=boxes_strategy(3, 3), proposals=boxes_strategy(3, 3))
@settings(max_examples=60, deadline=None)
def test_decode_inverts_encode(weights, truth, proposals):
    # Up to the cut at 62.5 times the size, and to 1e-5 of the box in float32. An added 1 would break it.
    grow = (truth[:, 2:] - truth[:, :2]) / (proposals[:, 2:] - proposals[:, :2])
    keep = (grow < 62).all(dim=1)
    truth, proposals = truth[keep], proposals[keep]
    back = decode_boxes(encode_boxes(truth, proposals, weights), proposals, weights)
    torch.testing.assert_close(back, truth, atol=1e-8, rtol=1e-9)
    single = decode_boxes(encode_boxes(truth.float(), proposals.float(), weights), proposals.float(), weights)
    torch.testing.assert_close(single, truth.float(), atol=1e-2, rtol=1e-5)


def test_growth_is_cut_at_62_5_and_shrinking_is_not():
    proposal = torch.tensor([[0.0, 0, 8, 4]])  # centre (4, 2)
    wide = decode_boxes(torch.tensor([[0.0, 0, 100, 0]]), proposal)
    torch.testing.assert_close(wide, torch.tensor([[4 - 250.0, 0, 4 + 250, 4]]))  # 8 * 62.5 = 500 wide
    high = decode_boxes(torch.tensor([[0.0, 0, 0, 100]]), proposal)
    torch.testing.assert_close(high, torch.tensor([[0, 2 - 125.0, 8, 2 + 125]]))
    narrow = decode_boxes(torch.tensor([[0.0, 0, -6, 0]], dtype=torch.float64), proposal.double())
    assert float(narrow[0, 2] - narrow[0, 0]) == pytest.approx(8 * math.exp(-6), rel=1e-9)
    # The cut is on log(w'/w), after the weights are taken off again: 5 * 3 is a growth of e^3 = 20, not a cut one.
    weighted = decode_boxes(torch.tensor([[0.0, 0, 15, 0]]), proposal, (10.0, 10.0, 5.0, 5.0))
    assert float(weighted[0, 2] - weighted[0, 0]) == pytest.approx(8 * math.exp(3), rel=1e-5)


def test_every_class_is_decoded_from_the_same_proposal(generator):
    deltas = torch.randn(5, 3, 4, generator=generator)
    proposals = torch.rand(5, 4, generator=generator) * 20
    proposals[:, 2:] += proposals[:, :2] + 1
    together = decode_boxes(deltas, proposals)
    for label in range(3):
        torch.testing.assert_close(together[:, label], decode_boxes(deltas[:, label], proposals))


def test_half_precision_deltas_give_single_precision_boxes():
    # fp16 has steps of 1 pixel above 1024: boxes must not be computed in it.
    proposal = torch.tensor([[1500.25, 1500.25, 1510.75, 1520.75]])
    box = decode_boxes(torch.zeros(1, 4, dtype=torch.float16), proposal)
    assert box.dtype == torch.float32
    torch.testing.assert_close(box, proposal)
    assert decode_boxes(torch.zeros(1, 4, dtype=torch.bfloat16), proposal.double()).dtype == torch.float64


def test_gradients(generator):
    proposals = torch.tensor([[0.0, 0, 8, 4], [3, 5, 10, 30]], dtype=torch.float64)
    deltas = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: decode_boxes(d, proposals, (10.0, 10.0, 5.0, 5.0)), deltas)
    truth = (proposals + torch.tensor([1.0, 2, 3, 4])).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: encode_boxes(t, proposals), truth)
