"""Whole detectors beside torchvision's, from one state dict, stage by stage: the first test that fails names the stage.

Weights, statistics and biases are random, none is zero; the images have different odd sizes. In float64 everything
agrees to 1e-6 pixels and probability, in the same order; float32 has its own bounds below.
"""

import pytest
import torch
from peers import CLASSES, Pair, make_pair, objects, pictures
from torchvision.models import detection

from mrcnn_scratch import build_model, export_torchvision_weights, load_torchvision_weights
from mrcnn_scratch.preprocess import scale_target
from mrcnn_scratch.rpn import propose
from mrcnn_scratch.weight_files.fill import rename
from mrcnn_scratch.weight_files.reading import WeightFile
from mrcnn_scratch.weight_files.torchvision_names import BACK

CLOSE = {"rtol": 0, "atol": 1e-6}
# kind, backbone, norm, eps: builders without weights have a trainable BatchNorm of eps 1e-5, those with the published
# weights a frozen one, whose eps loading sets to 0
CASES = [
    ("faster", "resnet50", "frozen", 0.0), ("mask", "resnet50", "frozen", 0.0), ("keypoint", "resnet50", "frozen", 0.0),
    ("mask", "resnet50", "batch", 1e-5), ("keypoint", "resnet50", "batch", 1e-5), ("faster", "resnet50", "batch", 1e-5),
    ("mask", "resnet101", "frozen", 0.0), ("mask", "resnext101_32x8d", "frozen", 1e-5),
    ("faster", "resnet101", "batch", 1e-5), ("keypoint", "resnet101", "frozen", 1e-5),
    ("faster", "resnext101_32x8d", "frozen", 0.0), ("keypoint", "resnext101_32x8d", "batch", 1e-5),
]  # fmt: skip
WITH_PARTS = CASES[:4]


@pytest.fixture(scope="module", params=WITH_PARTS, ids=lambda case: "-".join(map(str, case)))
def stages(request):
    """Both detectors' intermediate results; each stage of ours reads torchvision's results of the stage before."""
    pair = make_pair(*request.param)
    with torch.no_grad():
        images, _ = pair.theirs.transform(pictures())
        features = pair.theirs.backbone(images.tensors)
        logits, deltas = pair.theirs.rpn.head(list(features.values()))
        proposals, _ = pair.theirs.rpn(images, features)
    return pair, images, features, (logits, deltas), proposals


def test_transform(stages):
    pair, images, *_ = stages
    batch = pair.ours.prepare(pictures())
    assert batch.sizes == images.image_sizes and batch.images.shape == images.tensors.shape
    torch.testing.assert_close(batch.images, images.tensors, **CLOSE)


def test_transform_of_targets(stages):
    pair = stages[0]
    _, theirs = pair.theirs.transform(pictures(), objects(pair.kind))
    batch = pair.ours.prepare(pictures())
    for index, target in enumerate(objects(pair.kind)):
        mine = scale_target(target, batch.ratios(index), batch.sizes[index], "nearest")
        assert mine.keys() == theirs[index].keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[index][name], **CLOSE, check_dtype=False)


def test_feature_pyramid(stages):
    pair, images, features, *_ = stages
    with torch.no_grad():
        mine = pair.ours.extract(images.tensors)
    assert len(mine) == len(features) == 5
    for own, peer in zip(mine, features.values(), strict=True):
        assert peer.abs().max() > 0.1
        torch.testing.assert_close(own, peer, **CLOSE)


def test_rpn_logits_and_deltas(stages):
    pair, _, features, (logits, deltas), _ = stages
    with torch.no_grad():
        own_logits, own_deltas = pair.ours.rpn(list(features.values()))
    for level in range(5):
        N, A, H, W = logits[level].shape
        torch.testing.assert_close(own_logits[level], logits[level].permute(0, 2, 3, 1).reshape(N, -1), **CLOSE)
        peer = deltas[level].view(N, A, 4, H, W).permute(0, 3, 4, 1, 2).reshape(N, -1, 4)
        torch.testing.assert_close(own_deltas[level], peer, **CLOSE)


def test_anchors(stages):
    pair, images, features, *_ = stages
    peer = pair.theirs.rpn.anchor_generator(images, list(features.values()))[0]
    torch.testing.assert_close(torch.cat(pair.ours.anchors(list(features.values()))).double(), peer.double(), **CLOSE)


def test_proposals(stages):
    pair, images, features, _, proposals = stages
    levels = list(features.values())
    with torch.no_grad():
        mine = propose(
            *pair.ours.rpn(levels), pair.ours.anchors(levels), images.image_sizes, pair.ours.config, training=False
        )
    for own, peer in zip(mine, proposals, strict=True):
        assert len(peer) == 150
        torch.testing.assert_close(own, peer, **CLOSE)


@pytest.mark.parametrize("part", ["box", "mask", "keypoint"])
def test_roi_features(stages, part):
    pair, images, features, _, proposals = stages
    pooler = getattr(pair.theirs.roi_heads, f"{part}_roi_pool", None)
    if pooler is None:
        assert part != "box" and pair.kind != part  # this detector has no such head
        return
    peer = pooler(features, proposals, images.image_sizes)
    mine = pair.ours.pool(list(features.values()), proposals, 7 if part == "box" else 14)
    torch.testing.assert_close(mine, peer, **CLOSE)


def test_heads(stages):
    pair, images, features, _, proposals = stages
    levels, heads, ours = list(features.values()), pair.theirs.roi_heads, pair.ours
    proposals = [boxes[:20] for boxes in proposals]
    with torch.no_grad():
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        own_logits, own_deltas = ours.box_predictor(ours.box_trunk(ours.pool(levels, proposals, 7)))
        torch.testing.assert_close(own_logits, logits, **CLOSE)
        torch.testing.assert_close(own_deltas.flatten(1), deltas, **CLOSE)
        if pair.kind == "mask":
            peer = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, proposals, images.image_sizes)))
            torch.testing.assert_close(ours.mask_logits(levels, proposals), peer, **CLOSE)
        if pair.kind == "keypoint":
            pooled = heads.keypoint_roi_pool(features, proposals, images.image_sizes)
            peer = heads.keypoint_predictor(heads.keypoint_head(pooled))
            torch.testing.assert_close(ours.keypoint_logits(levels, proposals), peer, **CLOSE)


def test_post_processing(stages):
    """From torchvision's features and proposals to detections in the images' own pixels."""
    pair, images, features, _, proposals = stages
    with torch.no_grad():
        found, _ = pair.theirs.roi_heads(features, proposals, images.image_sizes)
        found = pair.theirs.transform.postprocess(found, images.image_sizes, [(97, 131), (141, 103)])
        mine = pair.ours.detect(list(features.values()), proposals, pair.ours.prepare(pictures()))
    same(mine, found)


def same(mine: list[dict], theirs: list[dict]) -> None:
    for own, peer in zip(mine, theirs, strict=True):
        assert own.keys() == peer.keys() and len(peer["boxes"]) >= 12
        for name in own:
            if name.startswith("keypoints"):  # torchvision keeps these in float32: 1.6e-5 px at 141
                torch.testing.assert_close(own[name].float(), peer[name].float(), rtol=1e-6, atol=1e-5)
                continue
            torch.testing.assert_close(own[name], peer[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_detections_then_losses_and_gradients(case, monkeypatch):
    """One pair for both: the largest in float64 takes gigabytes."""
    pair = make_pair(*case)
    with torch.no_grad():
        theirs, mine = pair.theirs(pictures()), pair.ours(pictures())
    same(mine, theirs)
    same_training(pair, monkeypatch)


def gradients(pair: Pair) -> tuple[dict, dict]:
    """Ours under torchvision's names, and torchvision's, of the sums of the losses."""
    own = {name: p.grad for name, p in pair.ours.named_parameters() if p.grad is not None}
    theirs = {name: p.grad for name, p in pair.theirs.named_parameters() if p.grad is not None}
    return rename(WeightFile(own), BACK).tensors, theirs


def same_training(pair: Pair, monkeypatch) -> None:
    """Both samplers take the first candidates: the same anchors and RoIs."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    pair.theirs.train()
    pair.ours.train()
    theirs = pair.theirs(pictures(), objects(pair.kind))
    mine = pair.ours(pictures(), objects(pair.kind))
    sum(theirs.values()).backward()
    sum(mine.values()).backward()
    names = {"loss_rpn_box": "loss_rpn_box_reg", "loss_box": "loss_box_reg"}
    assert {names.get(name, name) for name in mine} == theirs.keys()
    for name, loss in mine.items():
        assert loss > 1e-4
        torch.testing.assert_close(loss, theirs[names.get(name, name)], rtol=1e-6, atol=0, check_dtype=False)
    own, peer = gradients(pair)
    assert own.keys() == peer.keys()
    assert not any("layer1" in name or "body.conv1" in name for name in peer)  # frozen in both
    for name, gradient in peer.items():
        # the keypoint predictor's bias has no gradient but rounding, 1e-17: a softmax over space does not see it
        difference = (own[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-9)
        assert difference <= 1e-6, f"{name}: gradients differ by {difference:.1e} of the largest"
    if "batch" in str(pair.ours.config.norm):  # running statistics moved alike
        state = export_torchvision_weights(pair.ours)
        for name, tensor in pair.theirs.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(state[name], tensor, **CLOSE)


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint"])
def test_float32(kind):
    """At most 1e-2 px and 1e-4 in probability; two boxes whose scores or overlaps are nearly tied may change places."""
    pair = make_pair(kind, "resnet50", "frozen", 0.0, torch.float32)
    with torch.no_grad():
        theirs, mine = pair.theirs(pictures(torch.float32)), pair.ours(pictures(torch.float32))
    matched, total = 0, 0
    for own, peer in zip(mine, theirs, strict=True):
        total += len(peer["boxes"])
        gap = (own["boxes"][:, None] - peer["boxes"]).abs().amax(dim=2)  # (D, D')
        gap[own["labels"][:, None] != peer["labels"]] = torch.inf
        gap[(own["scores"][:, None] - peer["scores"]).abs() > 1e-4] = torch.inf
        best, index = gap.min(dim=1)
        good = best <= 1e-2
        matched += int(good.sum())
        for name, bound in (("masks", 1e-4), ("keypoints_scores", 1e-2)):  # logits
            if name in own:
                assert float((own[name][good] - peer[name][index[good]]).abs().max()) <= bound, name
        if kind == "keypoint":  # a heatmap whose two highest cells are nearly tied may point to either
            away = (own["keypoints"][good] - peer["keypoints"][index[good]]).abs().amax(dim=2)
            assert float((away <= 1e-2).double().mean()) >= 0.99
    assert matched >= 0.98 * total, f"{matched} of {total}"


BUILDERS = {
    "faster": detection.fasterrcnn_resnet50_fpn, "mask": detection.maskrcnn_resnet50_fpn,
    "keypoint": detection.keypointrcnn_resnet50_fpn,
}  # fmt: skip


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_builders_themselves(kind):
    """`*_resnet50_fpn(weights=None)` has a trainable BatchNorm, and every default of ours is theirs, at 800/1333."""
    theirs = BUILDERS[kind](weights=None, weights_backbone=None, num_classes=2 if kind == "keypoint" else 91).eval()
    joints = 17 if kind == "keypoint" else 0
    ours = build_model(
        "R50-FPN", 2 if joints else 91, kind == "mask", joints, conventions="torchvision", norm="batch"
    ).eval()
    load_torchvision_weights(ours, theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    config, heads, rpn = ours.config, theirs.roi_heads, theirs.rpn
    assert (config.score_threshold, config.box_nms) == (heads.score_thresh, heads.nms_thresh)
    assert (config.detections_per_image, config.rpn_nms) == (heads.detections_per_img, rpn.nms_thresh)
    assert config.rpn_min_size == rpn.min_size and config.max_size == theirs.transform.max_size
    assert config.min_size == theirs.transform.min_size[-1]
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": config.rpn_pre_nms_train, "testing": config.rpn_pre_nms_test},
        {"training": config.rpn_post_nms_train, "testing": config.rpn_post_nms_test},
    )
    sampler = rpn.fg_bg_sampler
    assert (config.rpn_batch, config.rpn_positive_fraction) == (sampler.batch_size_per_image, sampler.positive_fraction)
    sampler = heads.fg_bg_sampler
    assert (config.roi_batch, config.roi_positive_fraction) == (sampler.batch_size_per_image, sampler.positive_fraction)
    assert tuple(theirs.transform.image_mean) == config.mean and tuple(theirs.transform.image_std) == config.std
    assert CLASSES != config.num_classes
