"""Detectron2's weights by name and layout, held by what they compute against a second writing of its models."""

import pickle

import detectron2_peer as peer
import pytest
import torch

from mrcnn_scratch import build_model, load_backbone_weights, load_detectron2_weights
from mrcnn_scratch.weights import detectron2_fields, identify, load_pretrained

SMALL = dict(width=16, fc=32, classes=3)


def double(state: dict) -> dict:
    return {name: tensor.double() for name, tensor in state.items()}


def imported(state: dict, **fields):
    model = identify(state).build(**fields).double().eval()
    load_detectron2_weights(model, state)
    return model


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """One image as Detectron2 and as we have it: blue first in 0..255, red first in 0..1."""
    bgr = (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)) * 255).double()
    return bgr, bgr.flip(0) / 255


def in_order(anchors, *values):
    """Rows sorted by their anchor, so that two orders of anchors can be compared."""
    keys = [tuple(row) for row in (anchors * 16).round().tolist()]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [value[order] for value in (anchors, *values)]


def compare_rpn(model, batch, own_maps, state, maps):
    theirs = peer.anchors(maps), *peer.rpn(state, maps)
    logits, deltas = model.rpn(own_maps)
    ours = model.anchors(own_maps), [x[0] for x in logits], [x[0] for x in deltas]
    for a, b in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        for own, their in zip(in_order(a[0].double(), *a[1:]), in_order(b[0], *b[1:]), strict=True):
            torch.testing.assert_close(own, their, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def compare_heads(model, state, box_bins, mask_bins, channels):
    pooled = torch.randn(2, channels, box_bins, box_bins, generator=torch.Generator().manual_seed(2)).double()
    scores, deltas = peer.boxes(state, pooled)
    own_scores, own_deltas = model.box_predictor(model.box_trunk(pooled))
    torch.testing.assert_close(own_scores[:, 1:], scores[:, :-1])  # theirs: 0..K-1, then the background
    torch.testing.assert_close(own_scores[:, 0], scores[:, -1])
    torch.testing.assert_close(own_deltas[:, 1:], deltas)
    if model.config.masks:
        pooled = torch.randn(2, channels, mask_bins, mask_bins, generator=torch.Generator().manual_seed(3)).double()
        c4 = model.config.neck == "c4"
        theirs = peer.masks(state, peer.stage(state, "roi_heads.res5", pooled, 2, True) if c4 else pooled)
        own = model.mask_head(model.box_trunk(pooled) if c4 else pooled)
        torch.testing.assert_close(own[:, 1:], theirs)
        assert not own[:, 0].any()


def test_r50_fpn_computes_what_detectron2s_does():
    state = double(peer.state(**SMALL))
    model = imported(state, min_size=0)
    assert (model.config.num_classes, model.config.fpn_channels, model.config.box_hidden) == (4, 16, 32)
    bgr, rgb = two_images()
    with torch.no_grad():
        batch = model.prepare([rgb])
        maps = peer.features(state, bgr, peer.STD_MSRA, True)
        own = model.extract(batch.images)
        for a, b in zip(own, maps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        compare_rpn(model, batch, own, state, maps)
    compare_heads(model, state, 7, 14, 16)


def test_r50_c4_computes_what_detectron2s_does():
    state = double(peer.state(neck="c4", classes=3))
    model = imported(state, min_size=0)
    assert identify(state).name == "R50-C4" and model.config.res5_stride == 2 and model.config.box_pool == 14
    bgr, rgb = two_images()
    with torch.no_grad():
        batch = model.prepare([rgb])
        maps = peer.features(state, bgr, peer.STD_MSRA, True)
        own = model.extract(batch.images)
        torch.testing.assert_close(own[0], maps[0], rtol=1e-5, atol=1e-5)
        compare_rpn(model, batch, own, state, maps)  # 15 anchors a cell, in another order
    compare_heads(model, state, 14, 14, 1024)


def test_x101_computes_what_detectron2s_does():
    state = peer.state(depth=101, groups=32, masks=False, **SMALL)
    found = identify(state)
    assert (found.name, found.num_classes, found.masks) == ("X101-32x8d-FPN", 4, False)
    model = found.build(min_size=0).eval()
    load_detectron2_weights(model, state)
    bgr, rgb = (image.float() for image in two_images())
    with torch.no_grad():
        maps = peer.features(state, bgr, peer.STD_FAIR, False, 32)
        for a, b in zip(model.extract(model.prepare([rgb]).images), maps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_keypoints_compute_what_detectron2s_do():
    state = double(peer.state(masks=False, keypoints=17, width=8, fc=8, classes=1))
    found = identify(state)
    assert (found.num_classes, found.masks, found.keypoints) == (2, False, 17)
    model = imported(state)
    pooled = torch.randn(2, 8, 14, 14).double()
    with torch.no_grad():
        torch.testing.assert_close(model.keypoint_head(pooled), peer.keypoints(state, pooled))
    compare_heads(model, state, 7, 14, 8)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (dict(), "R50-FPN"),
        (dict(depth=101), "R101-FPN"),
        (dict(neck="c4"), "R50-C4"),
        (dict(neck="c4", depth=101, masks=False), "R101-C4"),
        (dict(depth=101, groups=32), "X101-32x8d-FPN"),
        (dict(keypoints=17, masks=False, classes=1), "R50-FPN"),
    ],
)
def test_the_zoos_models_are_told_by_names_and_shapes(made, name):
    """At full width the presets fit without another field."""
    classes, masks, keypoints = made.get("classes", 80), made.get("masks", True), made.get("keypoints", 0)
    assert identify(peer.state(**made, empty=True)).call == (
        f'build_model("{name}", num_classes={classes + 1}, masks={masks}, keypoints={keypoints}, '
        'conventions="detectron2")'
    )


def test_a_pickle_of_the_zoo(tmp_path):
    state = peer.state(**(SMALL | dict(classes=80)))
    path = tmp_path / "model_final_f10217.pkl"
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    cell = peer.anchors([torch.zeros(1, 1, 1, 1)] * 5)[0]
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = cell.numpy()
    with open(path, "wb") as handle:
        pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, handle)
    model, metadata = load_pretrained(path)
    assert not model.training and model.config.norm == "frozen" and model.config.stride_in_1x1
    assert (model.config.min_size, model.config.max_size) == (800, 1333)
    assert metadata["class_names"][12] == "stop sign" and dict(metadata["label_to_category"])[12] == 13
    stem = model.state_dict()["backbone.stem.0.weight"]
    assert torch.equal(stem, state["backbone.bottom_up.stem.conv1.weight"][:, [2, 1, 0]])
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 89999}, tmp_path / "model_final.pth")
    other, _ = load_pretrained(tmp_path / "model_final.pth")
    assert all(torch.equal(other.state_dict()[name], x) for name, x in model.state_dict().items())


def test_what_the_file_says_of_its_pixels_counts():
    state = peer.state(**SMALL, empty=True)
    assert detectron2_fields(state)["stride_in_1x1"] and detectron2_fields(state)["std"] == (1 / 255,) * 3
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    state |= {"pixel_mean": mean, "pixel_std": std}  # torchvision's backbone: red first, stride in the 3x3
    fields = detectron2_fields(state)
    assert fields["stride_in_1x1"] is False
    assert fields["mean"] == pytest.approx((0.485, 0.456, 0.406))
    assert fields["std"] == pytest.approx((0.229, 0.224, 0.225))
    state["backbone.bottom_up.stem.conv1.weight"] = torch.randn(64, 3, 7, 7)
    model = identify(state).build()
    load_detectron2_weights(model, state)
    assert torch.equal(model.backbone.stem[0].weight, state["backbone.bottom_up.stem.conv1.weight"])  # no turning
    state |= {"pixel_mean": mean.flip(0), "pixel_std": std.flip(0)}
    assert detectron2_fields(state)["mean"] == pytest.approx((0.485, 0.456, 0.406))
    load_detectron2_weights(model, state)
    assert torch.equal(model.backbone.stem[0].weight, state["backbone.bottom_up.stem.conv1.weight"].flip(1))
    load_detectron2_weights(model, state, channels="RGB", expect={})
    assert torch.equal(model.backbone.stem[0].weight, state["backbone.bottom_up.stem.conv1.weight"])
    with pytest.raises(ValueError, match="channels is 'rgb'"):
        load_detectron2_weights(model, state, channels="rgb")


def test_a_model_of_other_conventions_is_refused():
    state = peer.state(**SMALL, empty=True)
    fields = identify(state).fields
    with pytest.raises(ValueError) as error:
        load_detectron2_weights(build_model("R50-FPN", 4, conventions="torchvision", **fields), state)
    # means are ImageNet's in both code bases: 123.675 / 255 is 0.485
    for part in ("stride_in_1x1=False, std=(0.229, 0.224, 0.225)", "build_model(..., stride_in_1x1=True, std=(0.0039"):
        assert part in str(error.value)
    load_detectron2_weights(build_model("R50-FPN", 4, conventions="torchvision", **fields), state, expect={})
    x101 = peer.state(depth=101, groups=32, masks=False, **SMALL, empty=True)
    model = build_model("X101-32x8d-FPN", 4, masks=False, conventions="detectron2", std=(1 / 255,) * 3, **fields)
    with pytest.raises(ValueError, match=r"std=\(0.0039.*build_model\(\.\.\., std=\(0.22"):
        load_detectron2_weights(model, x101)


def test_what_does_not_fit_is_listed():
    state = peer.state(**SMALL, empty=True)
    model = build_model("R50-FPN", 81, conventions="detectron2", **identify(state).fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["backbone.fpn_output5.bias"]
    state["roi_heads.box_head.extra.weight"] = torch.ones(1)
    with pytest.raises(ValueError) as error:
        load_detectron2_weights(model, state)
    message = str(error.value)
    assert "1 missing: fpn.output.3.bias" in message and "1 unexpected: roi_heads.box_head.extra.weight" in message
    assert "roi_heads.box_predictor.bbox_pred.weight gives 16 x 32 for box_predictor" in message
    assert "which is 324 x 32" in message
    assert 'The weights are of build_model("R50-FPN", num_classes=4, masks=True' in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_masks_for_all_classes_and_boxes_for_all_classes():
    state = peer.state(**SMALL, empty=True)
    state["roi_heads.mask_head.predictor.weight"] = torch.randn(1, 16, 1, 1)
    state["roi_heads.mask_head.predictor.bias"] = torch.randn(1)
    found = identify(state)
    assert found.fields["mask_classes"] == "agnostic"
    model = found.build()
    load_detectron2_weights(model, state)
    assert torch.equal(model.mask_head.logits.weight, state["roi_heads.mask_head.predictor.weight"])
    state["roi_heads.box_predictor.bbox_pred.weight"] = torch.zeros(4, 32)
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match="4 rows for 3 classes.*not supported"):
        load_detectron2_weights(model, state)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sem_seg_head.p2.0.weight", "panoptic"), ("roi_heads.box_head.0.fc1.weight", "Cascade"),
        ("head.cls_subnet.0.weight", "RetinaNet"), ("backbone.res5.0.conv1.weight", "DC5"),
        ("backbone.fpn_lateral2.norm.weight", "norms in its FPN"),
        ("backbone.bottom_up.res4.0.conv2_offset.weight", "deform"),
        ("roi_heads.box_head.conv1.weight", "convolutions in its box head"),
    ],
)  # fmt: skip
def test_architectures_that_are_none_of_the_papers(name, what):
    state = peer.state(**SMALL, empty=True) | {name: torch.ones(1)}
    with pytest.raises(ValueError, match=f"{what}.*{name}.*not among this package's models"):
        identify(state)


def test_anchors_that_the_file_states_must_be_the_models():
    state = peer.state(neck="c4", classes=3, empty=True)
    cell = peer.anchors([torch.zeros(1, 1, 1, 1)])[0]
    name = "proposal_generator.anchor_generator.cell_anchors.0"
    model = identify(state | {name: cell}).build()
    load_detectron2_weights(model, state | {name: cell})
    with pytest.raises(ValueError, match=r"level 0 have sizes \[64.0, 128.0, 256.0, 512.0, 1024.0\], the model's"):
        load_detectron2_weights(model, state | {name: cell * 2})
    state["proposal_generator.rpn_head.objectness_logits.weight"] = torch.zeros(9, 1024, 1, 1)
    with pytest.raises(ValueError, match="RPN of 9 anchors a cell, 15 are usual"):
        identify(state)


def test_an_rpn_alone():
    state = {name: x for name, x in peer.state(empty=True).items() if not name.startswith("roi_heads.")}
    found = identify(state)
    assert found.name == "R50-FPN" and found.fields == {"stages": "rpn"}
    load_detectron2_weights(found.build(), state)


def classifier(names: str, groups: int = 1, depth: int = 50) -> dict:
    """An ImageNet ResNet in Detectron2's own names, or in Caffe2's, as its R-50.pkl and X-101-32x8d.pkl have them."""
    body = "backbone.bottom_up."
    state = peer.state(depth, groups, width=2, fc=2, classes=1)
    state = {name.removeprefix(body): tensor for name, tensor in state.items() if body in name}
    if names == "detectron2":
        return state | {"stem.fc.weight": torch.ones(10, 2048), "stem.fc.bias": torch.ones(10)}
    branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    norm = dict(weight="gamma", bias="beta", running_mean="running_mean", running_var="running_var")
    if names == "fair":
        norm = dict(weight="s", bias="b", running_mean="rm", running_var="riv")
    renamed = {"fc1000_w": torch.ones(10, 2048), "conv1_b": torch.zeros(64), "pred_b": torch.ones(10)}
    for name, tensor in state.items():
        parts = name.split(".")
        layer = "conv1" if parts[0] == "stem" else "_".join([*parts[:2], branch[parts[2]]])
        if "norm" in parts:
            layer = "res_conv1" if parts[0] == "stem" else layer
            renamed[f"{layer}_bn_{norm[parts[-1]]}"] = tensor
        else:
            renamed[f"{layer}_w"] = tensor
    return renamed


@pytest.mark.parametrize("names", ["detectron2", "msra"])
def test_imagenet_weights_start_a_backbone(tmp_path, names):
    state = classifier(names)
    path = tmp_path / "R-50.pkl"
    with open(path, "wb") as handle:
        pickle.dump({name: tensor.numpy() for name, tensor in state.items()}, handle, protocol=2)
    small = dict(fpn_channels=8, box_hidden=8, mask_channels=8, min_size=0)
    model = build_model("R50-FPN", 3, conventions="detectron2", **small).eval()
    left_out = {"detectron2": ["stem.fc.bias", "stem.fc.weight"], "msra": ["conv1_b", "fc1000_w", "pred_b"]}
    assert sorted(load_backbone_weights(model, path)) == left_out[names]
    full = {"backbone." + name: tensor for name, tensor in classifier("detectron2").items()}
    bgr, rgb = (image.float() for image in two_images())
    with torch.no_grad():
        theirs = peer.features(full, bgr, peer.STD_MSRA, True)[0]
        own = model.backbone(model.prepare([rgb]).images)
        torch.testing.assert_close(own[2], theirs, rtol=1e-3, atol=1e-3)
    if names == "msra":
        with pytest.raises(ValueError, match="stride_in_1x1=False, std="):
            load_backbone_weights(build_model("R50-FPN", 3, conventions="torchvision", **small), path)


def test_imagenet_weights_of_a_resnext_and_of_the_converter():
    state = classifier("fair", 32, 101)
    small = dict(fpn_channels=8, box_hidden=8, mask_channels=8)
    model = build_model("X101-32x8d-FPN", 3, conventions="detectron2", **small)
    load_backbone_weights(model, state)
    own = model.state_dict()
    assert torch.equal(own["backbone.stem.0.weight"], state["conv1_w"].flip(1))
    assert torch.equal(own["backbone.stages.3.2.bn3.running_var"], state["res5_2_branch2c_bn_riv"])
    assert torch.equal(own["backbone.stages.2.0.downsample.1.bias"], state["res4_0_branch1_bn_b"])
    by_torchvision = {"model": classifier("detectron2"), "__author__": "torchvision"}  # red first as it was
    model = build_model("R50-FPN", 3, stride_in_1x1=False, **small)
    load_backbone_weights(model, by_torchvision)
    assert torch.equal(model.backbone.stem[0].weight, by_torchvision["model"]["stem.conv1.weight"])


def test_norms_of_a_scale_and_a_shift_alone():
    """Detectron's own ImageNet files have their norms fused: an affine layer, whatever eps."""
    state = {name: x for name, x in classifier("fair").items() if not name.endswith(("_rm", "_riv"))}
    model = build_model("R50-C4", 3, conventions="detectron2", mask_channels=8)
    load_backbone_weights(model, state)
    norm = model.box_trunk[2].bn3
    x = torch.randn(1, 2048, 2, 2)
    scale, shift = state["res5_2_branch2c_bn_s"], state["res5_2_branch2c_bn_b"]
    torch.testing.assert_close(norm(x), x * scale[:, None, None] + shift[:, None, None])
