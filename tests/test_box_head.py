"""The box head: sampling, targets, loss, detections."""

import math

import pytest
import torch

from mrcnn_scratch.box_head import BoxPredictor, TwoLayerTrunk, box_loss, box_targets, detect_boxes, sample_rois
from mrcnn_scratch.boxes import decode_boxes
from mrcnn_scratch.presets import model_config

CONFIG = model_config("tiny-fpn", num_classes=4)
WEIGHTS = CONFIG.box_weights


def test_shapes():
    trunk, predictor = TwoLayerTrunk(6, 3, 16), BoxPredictor(16, 5)
    logits, deltas = predictor(trunk(torch.randn(7, 6, 3, 3)))
    assert logits.shape == (7, 5) and deltas.shape == (7, 5, 4)
    logits, deltas = predictor(trunk(torch.zeros(0, 6, 3, 3)))
    assert logits.shape == (0, 5) and deltas.shape == (0, 5, 4)


def test_a_map_is_averaged_over_space():
    predictor = BoxPredictor(3, 2)
    x = torch.randn(4, 3, 5, 7)
    torch.testing.assert_close(predictor(x)[0], predictor(x.flatten(2).mean(2))[0])


def test_deltas_of_a_class_are_neighbours():
    # 4K outputs are read as class by class dx, dy, dw, dh
    predictor = BoxPredictor(1, 3)
    with torch.no_grad():
        predictor.bbox_pred.weight.zero_()
        predictor.bbox_pred.bias.copy_(torch.arange(12.0))
    assert predictor(torch.ones(1, 1))[1][0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


# ---------------------------------------------------------------------------------------------- sampling

TRUTH = {"boxes": torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 80]]), "labels": torch.tensor([3, 1])}


def test_truth_joins_the_proposals(generator):
    # Before the RPN has learned anything no proposal would be a positive.
    useless = torch.tensor([[90.0, 90, 95, 95], [30, 0, 40, 10]])
    rois, labels, matched = sample_rois(useless, TRUTH, CONFIG, generator)
    assert labels.tolist() == [3, 1, 0, 0]
    assert matched.tolist() == [0, 1, -1, -1]
    assert torch.equal(rois, torch.cat([TRUTH["boxes"], useless]))


def test_crowds_join_nothing_and_teach_nothing(generator):
    target = {
        "boxes": torch.tensor([[0.0, 0, 40, 40], [50, 50, 70, 80]]),
        "labels": torch.tensor([2, 1]),
        "iscrowd": torch.tensor([1, 0]),
    }
    proposals = torch.tensor([[0.0, 0, 40, 40], [5, 5, 20, 20], [80, 0, 90, 9]])  # the first two: in the crowd
    rois, labels, matched = sample_rois(proposals, target, CONFIG, generator)
    assert labels.tolist() == [1, 0] and matched.tolist() == [1, -1]
    assert rois.tolist() == [[50, 50, 70, 80], [80, 0, 90, 9]]


def test_a_crowds_own_box_is_no_roi_of_the_object_beside_it(generator):
    target = {
        "boxes": torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 38]]),  # the crowd's box fits the object almost
        "labels": torch.tensor([2, 1]),
        "iscrowd": torch.tensor([1, 0]),
    }
    rois, labels, matched = sample_rois(torch.zeros(0, 4), target, CONFIG, generator)
    assert rois.tolist() == [[0, 0, 40, 38]] and labels.tolist() == [1] and matched.tolist() == [1]


def test_a_quarter_are_positive(generator):
    proposals = torch.cat([TRUTH["boxes"][:1].repeat(100, 1), torch.tensor([[90.0, 0, 99, 9]]).repeat(100, 1)])
    rois, labels, matched = sample_rois(proposals, TRUTH, CONFIG, generator)
    assert len(rois) == CONFIG.roi_batch == 32
    assert int((labels > 0).sum()) == 8
    assert (labels[:8] > 0).all() and not labels[8:].any()  # positives first
    assert ((matched >= 0) == (labels > 0)).all()


def test_overlap_of_a_half_is_positive(generator):
    # 10 x 10 against 10 x 20: IoU exactly 0.5; against 10 x 20.5 less
    proposals = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 20.5]])
    target = {"boxes": TRUTH["boxes"][:1], "labels": TRUTH["labels"][:1]}
    rois, labels, _ = sample_rois(proposals, target, CONFIG, generator)
    assert rois[labels > 0].tolist() == [[0, 0, 10, 20], [0, 0, 10, 10]]


def test_no_objects_and_no_proposals(generator):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    rois, labels, matched = sample_rois(torch.rand(5, 4), empty, CONFIG, generator)
    assert rois.shape == (5, 4) and not labels.any() and (matched == -1).all()
    rois, labels, _ = sample_rois(torch.zeros(0, 4), TRUTH, CONFIG, generator)
    assert labels.tolist() == [3, 1]
    assert sample_rois(torch.zeros(0, 4), empty, CONFIG, generator)[0].shape == (0, 4)


def test_box_targets_are_weighted_and_zero_for_background():
    rois = torch.tensor([[0.0, 0, 10, 20], [3, 3, 9, 9], [50, 50, 70, 70]])
    matched = torch.tensor([0, -1, 1])
    targets = box_targets(rois, TRUTH, matched, WEIGHTS)
    # from centre (5, 10) and 10 x 20 to (5, 5) and 10 x 10: dy = -5/20 * 10, dh = log(1/2) * 5
    torch.testing.assert_close(targets[0], torch.tensor([0, -2.5, 0, 5 * math.log(0.5)]))
    assert not targets[1].any()
    positive = matched >= 0
    torch.testing.assert_close(decode_boxes(targets[positive], rois[positive], WEIGHTS), TRUTH["boxes"])


def test_truth_in_double_precision():
    double = {"boxes": TRUTH["boxes"].double(), "labels": TRUTH["labels"]}
    rois = torch.tensor([[0.0, 0, 10, 20]])
    targets = box_targets(rois, double, torch.tensor([0]), WEIGHTS)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, box_targets(rois, TRUTH, torch.tensor([0]), WEIGHTS))


# ---------------------------------------------------------------------------------------------- loss


def test_loss_by_hand():
    # Three RoIs, four classes: all logits 0, so log 4 each. RoI 0 is class 2; its deltas are off by 0.5 and 3.
    labels = torch.tensor([2, 0, 0])
    deltas = torch.zeros(3, 4, 4)
    deltas[0, 2] = torch.tensor([0.5, -3.0, 0, 0])
    deltas[0, 1] = 100.0  # another class's
    deltas[1] = 100.0  # background's
    losses = box_loss(torch.zeros(3, 4), deltas, labels, torch.zeros(3, 4), beta=1.0)
    assert float(losses["loss_classifier"]) == pytest.approx(math.log(4))
    # smooth L1 with beta 1: 0.5 * 0.25 = 0.125 and 3 - 0.5 = 2.5, over *three* RoIs, not one
    assert float(losses["loss_box"]) == pytest.approx(2.625 / 3)
    theirs = box_loss(torch.zeros(3, 4), deltas, labels, torch.zeros(3, 4), beta=1 / 9)
    assert float(theirs["loss_box"]) == pytest.approx((0.5 - 1 / 18 + 3 - 1 / 18) / 3)


@pytest.mark.parametrize(("x", "expected"), [(0.05, 0.00125), (0.5, 0.125), (2.0, 1.5)])
def test_smooth_l1_with_beta_one(x, expected):
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 1, 3] = x
    loss = box_loss(torch.zeros(1, 2), deltas, torch.tensor([1]), torch.zeros(1, 4), beta=1.0)["loss_box"]
    assert float(loss) == pytest.approx(expected)


def test_twice_the_background_halves_the_box_loss():
    def loss(background):
        count = 2 + background
        labels = torch.tensor([1, 2] + [0] * background)
        return float(
            box_loss(torch.zeros(count, 3), torch.ones(count, 3, 4), labels, torch.zeros(count, 4), 1.0)["loss_box"]
        )

    assert loss(2) == pytest.approx(2 * loss(6))


def test_empty_and_all_background_losses_are_finite_and_in_the_graph():
    for count in (0, 3):
        logits = torch.zeros(count, 3, requires_grad=True)
        deltas = torch.zeros(count, 3, 4, requires_grad=True)
        losses = box_loss(logits, deltas, torch.zeros(count, dtype=torch.int64), torch.zeros(count, 4), 1.0)
        sum(losses.values()).backward()
        assert float(losses["loss_box"].detach()) == 0 and losses["loss_classifier"].isfinite()
        assert not deltas.grad.any()


def test_gradients(generator):
    labels = torch.tensor([0, 2, 1, 0])
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    deltas = torch.randn(4, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda a, b: tuple(box_loss(a, b, labels, targets, 0.7).values()), (logits, deltas))
    box_loss(logits, deltas, labels, targets, 0.7)["loss_box"].backward()
    touched = {(int(r), int(k)) for r, k in deltas.grad.abs().sum(2).nonzero()}
    assert touched == {(1, 2), (2, 1)}  # the true class of the positives, nothing else


# ---------------------------------------------------------------------------------------------- detections


def confident(*labels, K=4, strength=20.0):
    logits = torch.zeros(len(labels), K)
    logits[torch.arange(len(labels)), torch.tensor(labels)] = strength
    return logits


def test_the_background_is_no_detection_and_labels_start_at_one():
    rois = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    found = detect_boxes(confident(0, 3, 1), torch.zeros(3, 4, 4), rois, (60, 60), CONFIG)
    assert sorted(found["labels"].tolist()) == [1, 3]
    by_label = dict(zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True))
    assert by_label == {3: [20, 0, 30, 10], 1: [40, 0, 50, 10]}
    torch.testing.assert_close(found["scores"], torch.ones(2), atol=1e-5, rtol=0)


def test_each_class_has_its_own_box():
    rois = torch.tensor([[10.0, 10, 30, 20]])
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 2, 0] = 5.0  # with weight 10: half a width to the right, 10 pixels
    deltas[0, 1, 0] = -5.0
    found = detect_boxes(confident(2), deltas, rois, (60, 60), CONFIG)
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 10, 40, 20]]))


def test_a_roi_may_be_found_as_two_classes_and_nms_is_per_class():
    # Two RoIs at one place, each half class 1, half class 2: one detection of each class stays.
    logits = torch.tensor([[-9.0, 5, 5, -9], [-9, 5.1, 5, -9]])
    rois = torch.tensor([[10.0, 10, 30, 20]]).repeat(2, 1)
    found = detect_boxes(logits, torch.zeros(2, 4, 4), rois, (60, 60), CONFIG)
    assert sorted(found["labels"].tolist()) == [1, 2]
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def test_score_threshold_is_on_the_probability():
    # p = 1 / (1 + 3 e^-t): logits t against three zeros
    rois = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    logits = torch.zeros(2, 4)
    logits[0, 1], logits[1, 1] = math.log(3 * 0.31 / 0.69), math.log(3 * 0.29 / 0.71)
    found = detect_boxes(logits, torch.zeros(2, 4, 4), rois, (60, 60), CONFIG.with_fields(score_threshold=0.3))
    assert found["scores"].tolist() == pytest.approx([0.31])


def test_the_limit_counts_all_classes_together():
    # 100 detections per image, not per class
    x = torch.arange(60.0) * 20
    rois = torch.stack([x, x * 0, x + 10, x * 0 + 10], 1).repeat(3, 1)
    labels = [1] * 60 + [2] * 60 + [3] * 60
    logits = confident(*labels) + torch.rand(180, 4, generator=torch.Generator().manual_seed(1))
    found = detect_boxes(logits, torch.zeros(180, 4, 4), rois, (60, 2000), CONFIG)
    assert len(found["scores"]) == 100
    everything = detect_boxes(
        logits, torch.zeros(180, 4, 4), rois, (60, 2000), CONFIG.with_fields(detections_per_image=999)
    )
    assert len(everything["scores"]) == 180
    torch.testing.assert_close(found["scores"], everything["scores"].sort(descending=True).values[:100])


def test_boxes_are_clipped_and_empty_ones_dropped():
    rois = torch.tensor([[-10.0, 5, 20, 30], [70, 0, 90, 10]])
    found = detect_boxes(confident(1, 1), torch.zeros(2, 4, 4), rois, (25, 60), CONFIG)
    assert found["boxes"].tolist() == [[0, 5, 20, 25]]


def test_no_rois():
    found = detect_boxes(torch.zeros(0, 4), torch.zeros(0, 4, 4), torch.zeros(0, 4), (25, 60), CONFIG)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
    }
    assert found["labels"].dtype == torch.int64
