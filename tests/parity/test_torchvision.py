"""Side by side with torchvision's detection code, function by function, on the same inputs.

Where the two differ on purpose the test says how, and holds the difference too.
"""

import pytest
import torch
from torchvision.models.detection import _utils, roi_heads, rpn, transform
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops import boxes as theirs

from mrcnn_scratch import boxes as ours
from mrcnn_scratch.anchors import pyramid_anchors
from mrcnn_scratch.box_head import box_loss, detect_boxes
from mrcnn_scratch.keypoint_head import decode_keypoints, keypoint_loss, keypoint_targets
from mrcnn_scratch.mask_head import mask_loss, mask_targets, paste_masks, select_masks
from mrcnn_scratch.matching import match
from mrcnn_scratch.preprocess import batch_images, resized_size, scale_target
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.resnet import FrozenBatchNorm
from mrcnn_scratch.rpn import RPNHead, propose, rpn_loss, rpn_targets

CONFIG = model_config("tiny-fpn", "torchvision", num_classes=5)


def random_boxes(count, generator, width=150.0, height=90.0, least=3.0):
    xy = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.8
    wh = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.4 + least
    return torch.cat([xy, xy + wh], 1)


# ---------------------------------------------------------------------------------------------- geometry


def test_area_iou_clip_small(generator):
    a, b = random_boxes(40, generator), random_boxes(30, generator)
    torch.testing.assert_close(ours.box_area(a), theirs.box_area(a), rtol=0, atol=0)
    torch.testing.assert_close(ours.box_iou(a, b), theirs.box_iou(a, b))
    wide = a * 2 - 60
    assert torch.equal(ours.clip_boxes_to_image(wide, (70, 111)), theirs.clip_boxes_to_image(wide, (70, 111)))
    clipped = ours.clip_boxes_to_image(wide, (70, 111))
    assert torch.equal(ours.large_enough(clipped, 20.0), theirs.remove_small_boxes(clipped, 20.0))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_box_coder(generator, weights):
    truth, proposals = random_boxes(50, generator), random_boxes(50, generator)
    coder = _utils.BoxCoder(weights)
    torch.testing.assert_close(
        ours.encode_boxes(truth, proposals, weights), coder.encode_single(truth, proposals), rtol=1e-5, atol=1e-5
    )
    deltas = torch.randn(50, 3, 4, generator=generator) * 12  # far enough to reach the cut
    assert float((deltas[..., 2:] / weights[2]).max()) > ours.MAX_LOG_SCALE
    decoded = coder.decode_single(deltas.flatten(1), proposals).view(50, 3, 4)
    torch.testing.assert_close(ours.decode_boxes(deltas, proposals, weights), decoded, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher(generator, low_quality):
    for _ in range(20):
        iou = theirs.box_iou(random_boxes(6, generator), random_boxes(80, generator))
        iou = iou[iou.amax(1) > 0]
        matcher = _utils.Matcher(0.7, 0.3, low_quality)
        assert torch.equal(match(iou, 0.7, 0.3, low_quality), matcher(iou))


def test_matcher_differs_for_a_truth_that_nothing_overlaps():
    # torchvision: every candidate is tied at its best IoU, 0, and becomes positive. We give it none.
    iou = torch.tensor([[0.0, 0.0, 0.0]])
    assert _utils.Matcher(0.7, 0.3, True)(iou.clone()).tolist() == [0, 0, 0]
    assert match(iou, 0.7, 0.3, True).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("shapes", [[(7, 11), (4, 6), (2, 3)], [(1, 1), (5, 2), (3, 9)]])
def test_anchors_with_their_conventions_are_exactly_equal(shapes):
    strides, sizes, ratios = (4, 8, 16), ((15.0,), (32.0,), (77.0,)), (0.5, 1.0, 2.0)
    mine = pyramid_anchors(shapes, strides, sizes, ratios, CONFIG.anchor_offset, CONFIG.anchor_rounded)
    for level, (height, width) in enumerate(shapes):
        image = ImageList(torch.zeros(1, 3, height * strides[level], width * strides[level]), [(1, 1)])
        one = AnchorGenerator((sizes[level],), (ratios,))
        assert torch.equal(mine[level], one(image, [torch.zeros(1, 1, height, width)])[0])


# ---------------------------------------------------------------------------------------------- losses


def test_rpn_head_lays_out_its_outputs_alike(generator):
    head, peer = RPNHead(6, 3), rpn.RPNHead(6, 3)
    with torch.no_grad():
        for layer in (head.conv, head.objectness, head.deltas):
            layer.bias.normal_(generator=generator)
    peer.conv[0][0].load_state_dict(head.conv.state_dict())
    peer.cls_logits.load_state_dict(head.objectness.state_dict())
    peer.bbox_pred.load_state_dict(head.deltas.state_dict())
    features = [torch.randn(2, 6, 5, 7, generator=generator), torch.randn(2, 6, 3, 4, generator=generator)]
    logits, deltas = head(features)
    objectness, regression = rpn.concat_box_prediction_layers(*peer(features))
    torch.testing.assert_close(torch.cat(logits, 1).flatten(), objectness.flatten())
    torch.testing.assert_close(torch.cat(deltas, 1).flatten(0, 1), regression)


def their_rpn(config, anchors):
    counts = {"training": config.rpn_pre_nms_train, "testing": config.rpn_pre_nms_test}
    after = {"training": config.rpn_post_nms_train, "testing": config.rpn_post_nms_test}
    return rpn.RegionProposalNetwork(
        AnchorGenerator(),
        None,
        config.rpn_positive_iou,
        config.rpn_negative_iou,
        10**6,
        1.0,
        counts,
        after,
        config.rpn_nms,
    )


@pytest.mark.parametrize("training", [False, True])
def test_same_proposals(generator, training):
    config = CONFIG.with_fields(rpn_pre_nms_test=50, rpn_post_nms_test=35, rpn_pre_nms_train=70, rpn_post_nms_train=45)
    anchors = pyramid_anchors([(12, 20), (6, 10)], (8, 16), ((16,), (40,)), config.aspect_ratios)
    logits = [torch.randn(2, len(a), generator=generator) for a in anchors]
    deltas = [torch.randn(2, len(a), 4, generator=generator) * 0.2 for a in anchors]
    sizes = [(96, 160), (77, 101)]
    mine = propose(logits, deltas, anchors, sizes, config, training)

    peer = their_rpn(config, anchors).train(training)
    joined = torch.cat(anchors)
    decoded = peer.box_coder.decode(torch.cat(deltas, 1).flatten(0, 1), [joined, joined]).view(2, -1, 4)
    wanted, _ = peer.filter_proposals(decoded, torch.cat(logits, 1), sizes, [len(a) for a in anchors])
    for one, two in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def test_rpn_loss(generator):
    # Both on all candidates, so that the samplers, which draw differently, play no part.
    config = CONFIG.with_fields(rpn_batch=10**6, rpn_positive_fraction=1.0)
    anchors = torch.cat(pyramid_anchors([(12, 20), (6, 10)], (8, 16), ((16,), (40,)), config.aspect_ratios))
    targets = [{"boxes": random_boxes(4, generator)}, {"boxes": torch.zeros(0, 4)}]
    logits = torch.randn(2, len(anchors), generator=generator)
    deltas = torch.randn(2, len(anchors), 4, generator=generator)
    samples = [rpn_targets(anchors, t, (96, 160), config) for t in targets]
    rows = [torch.cat(sample[:2]) for sample in samples]
    sampled = [torch.cat([x[n, row] for n, row in enumerate(rows)]) for x in (logits, deltas)]
    mine = rpn_loss(*sampled, samples, config.rpn_beta)

    peer = their_rpn(config, anchors)
    labels, matched = peer.assign_targets_to_anchors([anchors, anchors], targets)
    regression = peer.box_coder.encode(matched, [anchors, anchors])
    objectness, box = peer.compute_loss(logits.flatten()[:, None], deltas.flatten(0, 1), labels, regression)
    torch.testing.assert_close(mine["loss_objectness"], objectness)
    torch.testing.assert_close(mine["loss_rpn_box"], box)


def test_box_loss(generator):
    logits, deltas = torch.randn(30, 5, generator=generator), torch.randn(30, 5, 4, generator=generator)
    labels = torch.randint(0, 5, (30,), generator=generator)
    targets = torch.randn(30, 4, generator=generator)
    mine = box_loss(logits, deltas, labels, targets, CONFIG.box_beta)
    classifier, box = roi_heads.fastrcnn_loss(logits, deltas.flatten(1), [labels], [targets])
    torch.testing.assert_close(mine["loss_classifier"], classifier)
    torch.testing.assert_close(mine["loss_box"], box)
    paper = box_loss(logits, deltas, labels, targets, model_config("tiny-fpn").box_beta)
    assert abs(float(paper["loss_box"] - box)) > 0.01  # the paper's beta is 1, theirs 1/9


def test_mask_targets_and_loss(generator):
    masks = [
        (torch.rand(3, 60, 90, generator=generator) > 0.5).byte(),
        (torch.rand(2, 60, 90, generator=generator) > 0.5).byte(),
    ]
    rois = [random_boxes(7, generator, 90, 60), random_boxes(5, generator, 90, 60)]
    matched = [torch.randint(0, 3, (7,), generator=generator), torch.randint(0, 2, (5,), generator=generator)]
    labels = [torch.tensor([1, 4, 2]), torch.tensor([3, 3])]
    logits = torch.randn(12, 5, 28, 28, generator=generator)
    wanted = [
        mask_targets(m, i, r, 28, CONFIG.mask_target_aligned) for m, i, r in zip(masks, matched, rois, strict=True)
    ]
    peers = [roi_heads.project_masks_on_boxes(m, r, i, 28) for m, i, r in zip(masks, matched, rois, strict=True)]
    torch.testing.assert_close(torch.cat(wanted), torch.cat(peers), rtol=1e-4, atol=1e-5)
    own = torch.cat([label[i] for label, i in zip(labels, matched, strict=True)])
    loss = roi_heads.maskrcnn_loss(logits, rois, masks, labels, matched)
    torch.testing.assert_close(mask_loss(logits, own, torch.cat(wanted)), loss, rtol=1e-5, atol=1e-6)


def test_mask_selection(generator):
    logits, labels = torch.randn(6, 5, 8, 8, generator=generator), torch.tensor([1, 4, 2, 2, 3, 1])
    wanted = roi_heads.maskrcnn_inference(logits, [labels[:4], labels[4:]])
    torch.testing.assert_close(select_masks(logits, labels), torch.cat(wanted)[:, 0])


def test_keypoint_targets_and_loss(generator):
    # quarter pixels, so that no product rounds across a cell's edge
    keypoints = torch.cat([(torch.rand(4, 6, 2, generator=generator) * 400).round() / 4,
                           torch.randint(0, 3, (4, 6, 1), generator=generator).float()], 2)  # fmt: skip
    rois = torch.tensor([[10.0, 5, 66, 61], [0, 0, 28, 112], [30, 20, 86, 132], [50, 50, 57, 64]])
    matched = torch.tensor([0, 2, 3, 1])
    keypoints[0, 0], keypoints[2, 1] = torch.tensor([66.0, 61, 2]), torch.tensor([0.0, 112, 1])  # on the edges
    cells, valid = keypoint_targets(keypoints[matched], rois, 56)
    heat, seen = roi_heads.keypoints_to_heatmap(keypoints[matched], rois, 56)
    assert torch.equal(valid, seen.bool()) and torch.equal(cells, heat) and 3 < int(valid.sum()) < valid.numel()
    logits = torch.randn(4, 6, 56, 56, generator=generator)
    loss = roi_heads.keypointrcnn_loss(logits, [rois], [keypoints], [matched])
    torch.testing.assert_close(keypoint_loss(logits, cells, valid), loss)


# ---------------------------------------------------------------------------------------------- inference


def test_detections(generator):
    class Peer(roi_heads.RoIHeads):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.box_coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
            self.score_thresh, self.nms_thresh, self.detections_per_img = 0.05, 0.5, 100

    rois = [random_boxes(90, generator), random_boxes(70, generator)]
    logits, deltas = torch.randn(160, 5, generator=generator) * 2, torch.randn(160, 5, 4, generator=generator)
    sizes = [(90, 150), (80, 120)]
    boxes, scores, labels = Peer().postprocess_detections(logits, deltas.flatten(1), rois, sizes)
    mine = [
        detect_boxes(a, b, r, s, CONFIG)
        for a, b, r, s in zip(logits.split([90, 70]), deltas.split([90, 70]), rois, sizes, strict=True)
    ]
    for image, found in enumerate(mine):
        assert len(found["scores"]) == 100
        torch.testing.assert_close(found["scores"], scores[image])
        torch.testing.assert_close(found["boxes"], boxes[image], rtol=1e-5, atol=1e-3)
        assert torch.equal(found["labels"], labels[image])


@pytest.mark.parametrize("size", [28, 14])
def test_legacy_pasting(generator, size):
    masks = torch.rand(12, 1, size, size, generator=generator)
    boxes = random_boxes(12, generator, 150, 90)
    boxes[0], boxes[1] = torch.tensor([-20.5, -7, 30, 40.2]), torch.tensor([100.0, 60, 180, 130])  # over the border
    wanted = roi_heads.paste_masks_in_image(masks, boxes, (90, 150))[:, 0]
    torch.testing.assert_close(paste_masks(masks[:, 0], boxes, (90, 150), legacy=True), wanted, rtol=1e-4, atol=2e-5)
    exact = paste_masks(masks[:, 0], boxes, (90, 150))
    assert float((exact - wanted).abs().max()) > 0.1  # ours is another function


def test_keypoint_decoding(generator):
    logits = torch.randn(6, 4, 56, 56, generator=generator)
    boxes = random_boxes(6, generator)
    boxes[0] = torch.tensor([10.0, 10, 10.4, 10.2])  # under a pixel
    boxes[1] = torch.tensor([5.0, 6, 61, 62])  # exactly 56
    points, scores = decode_keypoints(logits, boxes)
    wanted, wanted_scores = roi_heads.heatmaps_to_keypoints(logits, boxes)
    torch.testing.assert_close(points, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores, wanted_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_batch_norm(generator, eps):
    # torchvision's published detectors were saved for eps 0, its backbones for 1e-5
    norm, peer = FrozenBatchNorm(6, eps), FrozenBatchNorm2d(6, eps)
    for name, buffer in norm.named_buffers():
        buffer.uniform_(0.1, 2, generator=generator) if name == "running_var" else buffer.normal_(generator=generator)
    peer.load_state_dict(norm.state_dict())
    x = torch.randn(2, 6, 5, 7, generator=generator)
    torch.testing.assert_close(norm(x), peer(x))


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (40, 120), (53, 71), (80, 134)])
def test_resize_rule(shape):
    # torchvision rounds the longer edge *down*, Detectron to the nearest: never more than a pixel apart.
    peer = transform.GeneralizedRCNNTransform(80, 134, [0, 0, 0], [1, 1, 1]).eval()
    image, _ = peer.resize(torch.rand(3, *shape), None)
    mine = resized_size(shape, 80, 134)
    assert max(abs(a - b) for a, b in zip(mine, image.shape[-2:], strict=True)) <= 1
    assert all(a >= b for a, b in zip(mine, image.shape[-2:], strict=True))


def test_resize_rule_rounds_where_theirs_cuts():
    peer = transform.GeneralizedRCNNTransform(80, 134, [0, 0, 0], [1, 1, 1]).eval()
    image, _ = peer.resize(torch.rand(3, 48, 64), None)
    assert tuple(image.shape[-2:]) == (80, 106) and resized_size((48, 64), 80, 134) == (80, 107)


def test_batches_are_equal_where_the_sizes_are():
    # 40 x 60 -> 80 x 120 and 50 x 40 -> 100 x 80: whole numbers, both rules agree
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = [torch.rand(3, 40, 60), torch.rand(3, 50, 40)]
    peer = transform.GeneralizedRCNNTransform(80, 134, list(mean), list(std)).eval()
    targets = [
        {"boxes": torch.tensor([[1.0, 2, 30, 22]]), "masks": torch.ones(1, *i.shape[1:]).byte(),
         "keypoints": torch.tensor([[[3.5, 4.5, 2.0]]])} for i in images
    ]  # fmt: skip
    wanted, wanted_targets = peer(images, [dict(t) for t in targets])
    batch = batch_images(images, 80, 134, mean, std)
    assert batch.sizes == wanted.image_sizes
    torch.testing.assert_close(batch.images, wanted.tensors, atol=1e-5, rtol=1e-5)
    for index, target in enumerate(targets):
        mine = scale_target(target, batch.ratios(index), batch.sizes[index])
        for name in ("boxes", "masks", "keypoints"):
            torch.testing.assert_close(mine[name], wanted_targets[index][name])
