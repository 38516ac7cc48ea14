"""The region proposal network: layout, targets, loss, proposals."""

import math

import pytest
import torch
from torch import nn

from mrcnn_scratch.anchors import cell_anchors, grid_anchors, pyramid_anchors
from mrcnn_scratch.boxes import box_ioa, box_iou, decode_boxes
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.rpn import RPNHead, propose, rpn_loss, rpn_targets

CONFIG = model_config("tiny-fpn", num_classes=3)


def test_shapes_and_the_shared_head():
    head = RPNHead(6, 3)
    features = [torch.randn(2, 6, 5, 7), torch.randn(2, 6, 3, 4)]
    logits, deltas = head(features)
    assert [tuple(x.shape) for x in logits] == [(2, 5 * 7 * 3), (2, 3 * 4 * 3)]
    assert [tuple(x.shape) for x in deltas] == [(2, 5 * 7 * 3, 4), (2, 3 * 4 * 3, 4)]
    alone, _ = head(features[1:])
    torch.testing.assert_close(alone[0], logits[1])


@pytest.mark.parametrize(("a", "y", "x"), [(0, 0, 0), (1, 2, 4), (2, 1, 3), (0, 2, 0)])
def test_one_hot_score_decodes_to_that_anchor(a, y, x):
    # The convolution's (A, 4, H, W) must be laid out as the anchors are: rows, columns, anchors, coordinates.
    H, W, A, stride = 3, 5, 3, 16
    head = RPNHead(1, A)
    nn.init.dirac_(head.conv.weight)
    nn.init.zeros_(head.objectness.weight)
    nn.init.zeros_(head.deltas.weight)
    with torch.no_grad():
        head.objectness.weight[a] = 1
        head.deltas.weight[4 * a + 1] = 0.5  # dy of anchor a
    feature = torch.zeros(1, 1, H, W)
    feature[0, 0, y, x] = 1
    logits, deltas = head([feature])
    assert int(logits[0][0].argmax()) == (y * W + x) * A + a

    anchors = grid_anchors(cell_anchors((20.0,), (0.5, 1.0, 2.0)), H, W, (stride, stride))
    config = CONFIG.with_fields(rpn_post_nms_test=1)
    box = propose(logits, deltas, [anchors], [(999, 999)], config, training=False)[0][0]
    ratio = (0.5, 1.0, 2.0)[a]
    w, h = 20 / math.sqrt(ratio), 20 * math.sqrt(ratio)
    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride + 0.5 * h  # moved down by half its height
    expected = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]).clamp(min=0)
    torch.testing.assert_close(box, expected, rtol=1e-4, atol=1e-4)


def test_initial_weights_are_small_and_undecided():
    head = RPNHead(256, 3)
    assert float(head.conv.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not any(layer.bias.any() for layer in (head.conv, head.objectness, head.deltas))


# ---------------------------------------------------------------------------------------------- targets


def anchors_of(height, width, config=CONFIG):
    shapes = [(height // s, width // s) for s in config.strides]
    return torch.cat(pyramid_anchors(shapes, config.strides, config.anchor_sizes, config.aspect_ratios))


def test_targets_move_positives_onto_their_truth(generator):
    anchors = anchors_of(96, 128)
    target = {"boxes": torch.tensor([[10.0, 12, 44, 40], [60, 20, 120, 90]])}
    positive, negative, deltas = rpn_targets(anchors, target, (96, 128), CONFIG, generator)
    assert len(positive) >= 2 and len(positive) + len(negative) == CONFIG.rpn_batch
    decoded = decode_boxes(deltas, anchors[positive])
    nearest = target["boxes"][box_iou(target["boxes"], anchors[positive]).argmax(0)]
    torch.testing.assert_close(decoded, nearest, atol=1e-3, rtol=1e-4)
    assert (box_iou(target["boxes"], anchors[negative]).amax(0) < CONFIG.rpn_negative_iou).all()


def test_at_most_half_are_positive(generator):
    anchors = torch.tensor([[0.0, 0, 10, 10]]).repeat(200, 1)
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]])}
    positive, negative, _ = rpn_targets(anchors, target, (20, 20), CONFIG, generator)
    assert (len(positive), len(negative)) == (CONFIG.rpn_batch // 2, 0)


def test_images_without_objects_teach_background(generator):
    positive, negative, deltas = rpn_targets(
        anchors_of(64, 96), {"boxes": torch.zeros(0, 4)}, (64, 96), CONFIG, generator
    )
    assert len(positive) == 0 and len(negative) == CONFIG.rpn_batch and deltas.shape == (0, 4)


def test_an_image_with_nothing_but_a_crowd(generator):
    target = {"boxes": torch.tensor([[0.0, 0, 48, 64]]), "iscrowd": torch.tensor([1])}
    anchors = anchors_of(64, 96)
    positive, negative, _ = rpn_targets(anchors, target, (64, 96), CONFIG, generator)
    assert len(positive) == 0 and len(negative) == CONFIG.rpn_batch
    assert (box_ioa(anchors[negative], target["boxes"]) <= 0.7).all()
    assert (box_ioa(anchors, target["boxes"]) > 0.7).any()


def test_anchors_over_the_border_can_be_left_out(generator):
    # On a 128 x 128 image most 64-pixel anchors straddle the border. Cells of stride 16, ratio 1: inside are
    # the centres within 32..96, that is 40, 56, 72, 88: 4 x 4 of 8 x 8.
    anchors = grid_anchors(cell_anchors((64.0,), (1.0,)), 8, 8, (16, 16))
    empty = {"boxes": torch.zeros(0, 4)}
    counts = {}
    for straddle in (-1.0, 0.0, 8.0):
        config = CONFIG.with_fields(rpn_straddle=straddle, rpn_batch=100)
        _, negative, _ = rpn_targets(anchors, empty, (128, 128), config, generator)
        counts[straddle] = len(negative)
    assert counts == {-1.0: 64, 0.0: 16, 8.0: 36}  # 8 pixels more: the centres 24 and 104 join


def test_an_object_at_the_border_is_claimed_by_an_anchor_inside(generator):
    # Its best anchor of all hangs over the border; were that only crossed out after matching, nobody would learn it.
    anchors = torch.tensor([[-2.0, 0, 18, 20], [3, 0, 23, 20], [60, 60, 80, 80]])
    target = {"boxes": torch.tensor([[0.0, 0, 16, 20]])}
    kept, _, _ = rpn_targets(anchors, target, (100, 100), CONFIG, generator)
    assert kept.tolist() == [0]
    inside, negative, _ = rpn_targets(anchors, target, (100, 100), CONFIG.with_fields(rpn_straddle=0.0), generator)
    assert inside.tolist() == [1] and negative.tolist() == [2]
    none_inside, _, _ = rpn_targets(anchors[:1], target, (100, 100), CONFIG.with_fields(rpn_straddle=0.0), generator)
    assert none_inside.tolist() == []


# ---------------------------------------------------------------------------------------------- loss


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0, 5.0], [0.0, 3.0, 1.0, 1.0]])
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 1] = torch.tensor([0.05, -0.5, 2.0, 0.0])
    samples = [(index(1), index(2, 0), torch.zeros(1, 4)), (index(), index(0), torch.zeros(0, 4))]
    losses = rpn_loss(*picked(logits, deltas, samples), samples, beta=1 / 9)
    # four sampled anchors: one object with logit 0, background with logits -1, 2 and 0
    objectness = (math.log(2) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2)) + math.log(2)) / 4
    # smooth L1 with beta 1/9: 0.05 is below it, 0.5 * 0.05**2 * 9 = 0.01125; 0.5 - 1/18; 2 - 1/18
    box = (0.01125 + (0.5 - 1 / 18) + (2 - 1 / 18)) / 4
    assert float(losses["loss_objectness"]) == pytest.approx(objectness, rel=1e-6)
    assert float(losses["loss_rpn_box"]) == pytest.approx(box, rel=1e-6)


def picked(logits, deltas, samples):
    """What rpn_loss reads of dense answers (N, A) and (N, A, 4)."""
    rows = [torch.cat(sample[:2]) for sample in samples]
    parts = [(logits[n, row], deltas[n, row]) for n, row in enumerate(rows)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def test_the_box_loss_is_divided_by_all_sampled_anchors():
    # Not by the positives: as many negatives again halve it.
    deltas = torch.ones(1, 8, 4)
    samples = [(index(0), index(1), torch.zeros(1, 4))]
    few = rpn_loss(*picked(torch.zeros(1, 8), deltas, samples), samples, 1.0)
    samples = [(index(0), index(1, 2, 3), torch.zeros(1, 4))]
    many = rpn_loss(*picked(torch.zeros(1, 8), deltas, samples), samples, 1.0)
    assert float(few["loss_rpn_box"]) == pytest.approx(2 * 0.5 * 4 / 4)  # four coordinates of 0.5 each, two anchors
    assert float(many["loss_rpn_box"]) == pytest.approx(float(few["loss_rpn_box"]) / 2)


def test_nothing_sampled_is_a_zero_with_a_gradient():
    logits, deltas = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4, 4, requires_grad=True)
    samples = [(index(), index(), torch.zeros(0, 4))]
    losses = rpn_loss(*picked(logits, deltas, samples), samples, 1 / 9)
    sum(losses.values()).backward()
    assert all(float(v.detach()) == 0 for v in losses.values())
    assert not logits.grad.any() and not deltas.grad.any()


def test_only_sampled_anchors_have_a_gradient(generator):
    logits = torch.randn(1, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    deltas = torch.randn(1, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    samples = [(index(3), index(1), torch.full((1, 4), 0.3, dtype=torch.float64))]
    sum(rpn_loss(*picked(logits, deltas, samples), samples, 1 / 9).values()).backward()
    assert logits.grad[0].ne(0).tolist() == [False, True, False, True, False]
    assert deltas.grad[0].ne(0).all(1).tolist() == [False, False, False, True, False]
    assert torch.autograd.gradcheck(
        lambda a, b: tuple(rpn_loss(*picked(a, b, samples), samples, 1 / 9).values()), (logits, deltas)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sampled_anchors_alone_get_what_the_whole_map_gives(generator, layout):
    """Values and every gradient, with anchors in all corners, both images and both levels, one of them twice."""
    head = RPNHead(6, 3).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    shapes = ((2, 6, 5, 7), (2, 6, 3, 4))
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64).to(memory_format=layout) for shape in shapes]
    maps = [each.requires_grad_() for each in maps]
    last = 3 * (35 + 12) - 1
    samples = [(index(0, 20), index(104, 105, 18, 18), None), (index(last), index(3 * 28, 3 * 35 + 9, 50), None)]
    mine = head.at(maps, samples)
    dense = [torch.cat(levels, dim=1) for levels in head(maps)]
    for own, wanted in zip(mine, picked(*dense, samples), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    inputs, weights = [*maps, *head.parameters()], [torch.randn_like(x) for x in mine]
    own = torch.autograd.grad(mine, inputs, weights)
    wanted = torch.autograd.grad(picked(*dense, samples), inputs, weights)
    for a, b in zip(own, wanted, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_sampled_anchor_still_reaches_every_parameter():
    head, features = RPNHead(6, 3), [torch.randn(1, 6, 5, 7)]
    logits, deltas = head.at(features, [(index(), index(), torch.zeros(0, 4))])
    assert logits.shape == (0,) and deltas.shape == (0, 4)
    (logits.sum() + deltas.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


# ---------------------------------------------------------------------------------------------- proposals


def random_levels(generator, images=1, shapes=((8, 12), (4, 6))):
    config = CONFIG.with_fields(rpn_pre_nms_test=40, rpn_post_nms_test=25, rpn_pre_nms_train=50, rpn_post_nms_train=30)
    anchors = pyramid_anchors(list(shapes), (8, 16), ((16,), (32,)), config.aspect_ratios)
    logits = [torch.randn(images, len(a), generator=generator) for a in anchors]
    deltas = [torch.randn(images, len(a), 4, generator=generator) * 0.3 for a in anchors]
    return config, logits, deltas, anchors


def test_an_images_proposals_do_not_depend_on_the_rest_of_the_batch(generator):
    # Detectron took its last top-k over the whole batch: accuracy depended on the batch size.
    config, logits, deltas, anchors = random_levels(generator, images=4)
    sizes = [(64, 96), (50, 90), (61, 33), (64, 64)]
    together = propose(logits, deltas, anchors, sizes, config, training=True)
    for i, size in enumerate(sizes):
        one = propose([x[i : i + 1] for x in logits], [x[i : i + 1] for x in deltas], anchors, [size], config, True)
        assert torch.equal(together[i], one[0])


def test_boxes_are_clipped_to_their_own_image_and_not_to_the_padded_batch(generator):
    config, logits, deltas, anchors = random_levels(generator, images=2)
    sizes = [(64, 96), (41, 55)]
    for boxes, (height, width) in zip(propose(logits, deltas, anchors, sizes, config, False), sizes, strict=True):
        assert boxes[:, 0::2].max() == width and boxes[:, 1::2].max() == height  # reached, and not passed
        assert boxes.min() >= 0
        assert (boxes[:, 2:] > boxes[:, :2]).all()  # none is empty


def test_counts_for_training_and_for_testing(generator):
    config, logits, deltas, anchors = random_levels(generator, shapes=((16, 24), (8, 12)))
    loose = config.with_fields(rpn_nms=1.0)  # nothing is suppressed
    deltas = [torch.zeros_like(d) for d in deltas]  # nothing leaves the image
    assert len(propose(logits, deltas, anchors, [(128, 192)], loose, False)[0]) == 25
    assert len(propose(logits, deltas, anchors, [(128, 192)], loose, True)[0]) == 30
    roomy = loose.with_fields(rpn_post_nms_test=999)
    assert len(propose(logits, deltas, anchors, [(128, 192)], roomy, False)[0]) == 80  # 40 from each level


def test_top_k_is_taken_level_by_level(generator):
    # A coarse level full of low scores still gets its share.
    config, logits, deltas, anchors = random_levels(generator)
    logits[1] = logits[1] - 100
    config = config.with_fields(rpn_nms=1.0, rpn_post_nms_test=999, rpn_pre_nms_test=10)
    boxes = propose(logits, [torch.zeros_like(d) for d in deltas], anchors, [(64, 96)], config, False)[0]
    assert len(boxes) == 20
    best = torch.cat([a[x[0].topk(10).indices] for a, x in zip(anchors, logits, strict=True)])
    best[:, 0::2] = best[:, 0::2].clamp(0, 96)
    best[:, 1::2] = best[:, 1::2].clamp(0, 64)
    torch.testing.assert_close(boxes, best)  # best first, the coarse level last


def test_nms_runs_within_a_level_only():
    anchors = [torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20]]), torch.tensor([[0.0, 0, 20, 20]])]
    logits = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5]])]
    deltas = [torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)]
    boxes = propose(logits, deltas, anchors, [(50, 50)], CONFIG, False)[0]
    assert boxes.tolist() == [[1, 0, 21, 20], [0, 0, 20, 20]]  # the second is the other level's


def test_boxes_that_are_outside_or_too_small_are_dropped():
    anchors = [torch.tensor([[-30.0, 0, -10, 20], [0, 0, 3, 20], [0, 0, 20, 20]])]
    logits, deltas = [torch.zeros(1, 3)], [torch.zeros(1, 3, 4)]
    config = CONFIG.with_fields(rpn_min_size=4.0)
    assert propose(logits, deltas, anchors, [(50, 50)], config, False)[0].tolist() == [[0, 0, 20, 20]]
    nothing = propose(
        [x[:, :1] for x in logits], [d[:, :1] for d in deltas], [anchors[0][:1]], [(50, 50)], config, False
    )
    assert nothing[0].shape == (0, 4)


def test_proposals_carry_no_gradient(generator):
    config, logits, deltas, anchors = random_levels(generator)
    deltas = [d.requires_grad_() for d in deltas]
    assert not propose(logits, deltas, anchors, [(64, 96)], config, True)[0].requires_grad
