"""torchvision's weights by name: every tensor in its place, both ways, and what does not fit is told."""

import hashlib

import pytest
import torch
import torchvision
from torchvision.models.detection import KeypointRCNN, MaskRCNN, backbone_utils
from torchvision.models.detection import faster_rcnn as tv_faster
from torchvision.models.detection import keypoint_rcnn as tv_keypoint
from torchvision.models.detection import mask_rcnn as tv_mask
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_scratch import build_model, export_torchvision_weights, load_backbone_weights, load_torchvision_weights
from mrcnn_scratch.weight_files.torchvision_names import PUBLISHED
from mrcnn_scratch.weights import identify, load_pretrained, torchvision_fields

OLD_NAMES = {  # today's -> the published files'
    "inner_blocks.0.0.": "inner_blocks.0.", "inner_blocks.1.0.": "inner_blocks.1.",
    "inner_blocks.2.0.": "inner_blocks.2.", "inner_blocks.3.0.": "inner_blocks.3.",
    "layer_blocks.0.0.": "layer_blocks.0.", "layer_blocks.1.0.": "layer_blocks.1.",
    "layer_blocks.2.0.": "layer_blocks.2.", "layer_blocks.3.0.": "layer_blocks.3.",
    "rpn.head.conv.0.0.": "rpn.head.conv.", "mask_head.0.0.": "mask_head.mask_fcn1.",
    "mask_head.1.0.": "mask_head.mask_fcn2.", "mask_head.2.0.": "mask_head.mask_fcn3.",
    "mask_head.3.0.": "mask_head.mask_fcn4.",
}  # fmt: skip


def detector(kind=MaskRCNN, num_classes=5, frozen=True, seed=0, backbone="resnet18", **more):
    """A torchvision detector with every tensor random, the statistics of its norms too."""
    norm = FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d
    body = backbone_utils.resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=norm, trainable_layers=5)
    return randomised(kind(body, num_classes, **more), seed)


def randomised(model, seed=0):
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = 0.02 if tensor.dim() > 1 else 0.1
            tensor.normal_(std=spread).add_(1.0 if name.endswith("running_var") else 0.0)
            tensor.abs_() if name.endswith("running_var") else None
        else:
            tensor.fill_(7)
    return model.eval()


def old_names(state: dict) -> dict:
    renamed = {}
    for name, tensor in state.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    assert len(renamed) == len(state) and renamed.keys() != state.keys()
    return renamed


@pytest.fixture(scope="module")
def masked() -> MaskRCNN:
    return detector()


def ours(theirs_state, **fields):
    model = identify(theirs_state).build(**fields)
    load_torchvision_weights(model, theirs_state)
    return model.eval()


def test_every_part_computes_what_torchvisions_does(masked):
    """With the weights in the right places: names may not be swapped where shapes agree."""
    model = ours(masked.state_dict())
    x, pooled = torch.randn(1, 3, 64, 96), torch.randn(2, 256, 7, 7)
    with torch.no_grad():
        pyramid = list(masked.backbone(x).values())
        features = model.extract(x)
        for a, b in zip(features[:4], pyramid[:4], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        logits, deltas = masked.rpn.head(pyramid[:1])
        own_logits, own_deltas = model.rpn(pyramid[:1])
        torch.testing.assert_close(own_logits[0], logits[0].permute(0, 2, 3, 1).flatten(1), rtol=1e-3, atol=1e-5)
        deltas = deltas[0].permute(0, 2, 3, 1).reshape(1, -1, 4)
        torch.testing.assert_close(own_deltas[0], deltas, rtol=1e-3, atol=1e-5)
        heads = masked.roi_heads
        scores, boxes = heads.box_predictor(heads.box_head(pooled))
        own_scores, own_boxes = model.box_predictor(model.box_trunk(pooled))
        torch.testing.assert_close(own_scores, scores)
        torch.testing.assert_close(own_boxes.flatten(1), boxes)
        torch.testing.assert_close(model.mask_head(pooled), heads.mask_predictor(heads.mask_head(pooled)))


def test_keypoints_compute_what_torchvisions_do():
    theirs = detector(KeypointRCNN, num_classes=2, num_keypoints=3)
    model = ours(theirs.state_dict())
    assert model.config.keypoints == 3 and not model.config.masks
    pooled = torch.randn(1, 256, 14, 14)
    with torch.no_grad():
        heads = theirs.roi_heads
        torch.testing.assert_close(model.keypoint_head(pooled), heads.keypoint_predictor(heads.keypoint_head(pooled)))


@pytest.mark.parametrize(("frozen", "old"), [(True, True), (False, False)])
def test_there_and_back(frozen, old):
    theirs = detector(frozen=frozen, seed=1)
    state = theirs.state_dict()
    model = ours(old_names(state) if old else state)
    assert model.config.norm == ("frozen" if frozen else "batch")
    exported = export_torchvision_weights(model)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in state.items())
    theirs.load_state_dict(exported, strict=True)


def test_the_builders_own_model_there_and_back():
    """torchvision's default: R50, 91 classes, a batch norm that trains."""
    theirs = tv_mask.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    found = identify(theirs.state_dict())
    assert (found.name, found.kind, found.fields) == ("R50-FPN", "torchvision", {"norm": "batch"})
    assert (found.num_classes, found.masks, found.keypoints) == (91, True, 0)
    model = found.build()
    load_torchvision_weights(model, theirs.state_dict())
    theirs.load_state_dict(export_torchvision_weights(model), strict=True)


def names_and_shapes(builder) -> dict:
    """A state dict without memory: what identification needs. A string is the backbone of a Mask R-CNN."""
    with torch.device("meta"):
        if isinstance(builder, str):
            model = MaskRCNN(backbone_utils.resnet_fpn_backbone(backbone_name=builder, weights=None), 91)
        else:
            model = builder()
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet18", "R18-FPN"), ("resnet50", "R50-FPN"), ("resnet101", "R101-FPN"),
        ("resnext101_32x8d", "X101-32x8d-FPN"), ("resnext101_64x4d", "X101-FPN"),
    ],
)  # fmt: skip
def test_the_backbone_is_told(backbone, name):
    state = {key: tensor for key, tensor in names_and_shapes(backbone).items() if "mask" not in key}
    found = identify(state)
    assert (found.name, found.num_classes, found.masks, found.keypoints) == (name, 91, False, 0)
    assert found.fields == {}  # the paper's norm is frozen
    assert found.call == f'build_model("{name}", num_classes=91, masks=False, keypoints=0, conventions="torchvision")'


@pytest.mark.parametrize("backbone", ["resnet34", "resnet152", "wide_resnet50_2"])
def test_a_backbone_that_is_none_of_ours(backbone):
    state = names_and_shapes(backbone)
    with pytest.raises(ValueError, match=r"recognised a ResNet of \[3, .*FPN; that is none of R18-FPN, R50-C4"):
        identify(state)


def test_what_does_not_fit_is_listed(masked):
    state = dict(masked.state_dict())
    model = identify(state).build(seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["rpn.head.cls_logits.bias"]
    state["extra.weight"] = torch.ones(1)
    state["roi_heads.mask_head.0.0.weight"] = torch.ones(256, 256, 1, 1)
    state["roi_heads.box_head.fc6.bias"] = torch.full((1024,), float("nan"))
    with pytest.raises(ValueError) as error:
        load_torchvision_weights(model, state)
    message = str(error.value)
    assert "1 missing: rpn.objectness.bias" in message and "1 unexpected: extra.weight" in message
    assert "1 misshaped: roi_heads.mask_head.0.0.weight gives 256 x 256 x 1 x 1 for mask_head.convs.0" in message
    assert "which is 256 x 256 x 3 x 3" in message and "1 not finite: roi_heads.box_head.fc6.bias" in message
    assert 'build_model("R18-FPN", num_classes=5, masks=True' in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_number_of_classes_or_no_masks(masked):
    with pytest.raises(ValueError, match=r"6 misshaped: .*The weights are of build_model.*num_classes=5, masks=True"):
        load_torchvision_weights(build_model("R18-FPN", 91, conventions="torchvision"), masked.state_dict())
    with pytest.raises(ValueError, match=r"12 unexpected: roi_heads.mask_head"):
        load_torchvision_weights(build_model("R18-FPN", 5, masks=False), masked.state_dict())
    with pytest.raises(ValueError, match="same layer"):
        state = masked.state_dict()
        load_torchvision_weights(build_model("R18-FPN", 5), {**state, **old_names(state)})


def test_the_stride_must_be_torchvisions():
    theirs = names_and_shapes("resnet50")
    with pytest.raises(ValueError, match=r"stride_in_1x1=True: .*build_model\(\.\.\., stride_in_1x1=False\)"):
        load_torchvision_weights(build_model("R50-FPN"), theirs)


def test_the_v2_detectors_are_told():
    for builder in (tv_faster.fasterrcnn_resnet50_fpn_v2, tv_mask.maskrcnn_resnet50_fpn_v2):
        state = names_and_shapes(lambda builder=builder: builder(weights=None, weights_backbone=None))
        with pytest.raises(ValueError, match="_v2 builder.*two 3x3 convolutions.*four 3x3.*FPN.*batch norm"):
            identify(state)


def test_the_table_of_published_files_is_torchvisions(monkeypatch, tmp_path):
    """What torchvision's builders do with each of their published files, asked of them."""
    enums = (
        (tv_faster.fasterrcnn_resnet50_fpn, tv_faster.FasterRCNN_ResNet50_FPN_Weights),
        (tv_mask.maskrcnn_resnet50_fpn, tv_mask.MaskRCNN_ResNet50_FPN_Weights),
        (tv_keypoint.keypointrcnn_resnet50_fpn, tv_keypoint.KeypointRCNN_ResNet50_FPN_Weights),
    )
    seen = 0
    for builder, weights in enums:
        for entry in weights:
            monkeypatch.setattr(type(entry), "get_state_dict", lambda self, **_: None)
            monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state, **_: None)
            with torch.device("meta"):
                model = builder(weights=entry)
            norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
            name = entry.url.rpartition("/")[2]
            assert len(norms) == 53
            assert torchvision_fields(tmp_path / name) == {"norm": "frozen", "norm_eps": norms[0].eps}, name
            seen += 1
    assert seen == 4
    assert torchvision_fields(tmp_path / "maskrcnn_of_mine.pth") == {}


def test_a_published_file_is_known_by_its_name_and_by_its_contents(tmp_path, monkeypatch):
    state = {name: torch.zeros(tensor.shape) for name, tensor in old_names(names_and_shapes("resnet18")).items()}
    path = tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    torch.save(state, path)
    found = identify(path)
    assert found.fields == {"norm_eps": 0.0}
    model, metadata = load_pretrained(path)
    assert model.config.norm == "frozen" and model.config.norm_eps == 0.0 and model.backbone.stem[1].eps == 0.0
    assert (model.config.min_size, model.config.max_size, model.config.resize) == (800, 1333, "torchvision")
    assert len(metadata["class_names"]) == 91 and dict(metadata["label_to_category"])[90] == 90
    with pytest.raises(ValueError, match=r"norm_eps=1e-05: .*build_model\(\.\.\., norm_eps=0.0\)"):
        load_torchvision_weights(build_model("R18-FPN", conventions="torchvision"), path)
    renamed = path.rename(tmp_path / "renamed.pth")
    assert identify(renamed).fields == {}
    digest = hashlib.sha256(renamed.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, f"x-{digest}", 0.0)
    assert identify(renamed).fields == {"norm_eps": 0.0}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("tiny-c4", {}, "neck is 'c4'"),
        ("tiny-fpn", {}, "backbone 'tiny'"),
        ("R18-FPN", {"mask_head": "mlp"}, "mask_head is 'mlp'"),
        ("R18-FPN", {"mask_classes": "agnostic"}, "mask_classes is 'agnostic'"),
        ("R18-FPN", {"norm": "group"}, "norm 'group'"),
        ("R50-FPN", {}, "stride_in_1x1 is True"),
    ],
)
def test_what_torchvision_has_no_names_for_is_not_exported(name, fields, said):
    with pytest.raises(ValueError, match=said):
        export_torchvision_weights(build_model(name, 3, **fields))


@pytest.mark.parametrize(("backbone", "config"), [("resnet18", "R18-FPN"), ("resnet50", "R50-FPN")])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_imagenet_weights_start_a_backbone(backbone, config, norm):
    theirs = randomised(getattr(torchvision.models, backbone)(weights=None))
    model = build_model(config, 3, norm=norm, stride_in_1x1=False).eval()
    heads = {name: x.clone() for name, x in model.state_dict().items() if not name.startswith("backbone.")}
    assert load_backbone_weights(model, theirs.state_dict()) == ["fc.weight", "fc.bias"]
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, own in enumerate(model.backbone(x), start=1):
            y = getattr(theirs, f"layer{i}")(y)
            torch.testing.assert_close(own, y, rtol=1e-3, atol=1e-4)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in heads.items())
    if norm == "batch":
        assert int(state["backbone.stem.1.num_batches_tracked"]) == 7


def test_imagenet_weights_of_a_c4_model_reach_its_head():
    theirs = randomised(torchvision.models.resnet50(weights=None))
    model = build_model("R50-C4", 3, stride_in_1x1=False, res5_stride=2, box_pool=14, mask_pool=14).eval()
    load_backbone_weights(model, theirs.state_dict())
    x = torch.randn(1, 1024, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(model.box_trunk(x), theirs.layer4(x), rtol=1e-3, atol=1e-4)


def test_imagenet_weights_that_do_not_fit():
    state = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(ValueError, match=r"The model's backbone is resnet50: give weights of its own"):
        load_backbone_weights(build_model("R50-FPN", 3, stride_in_1x1=False), state)
    with pytest.raises(ValueError, match="stride_in_1x1=True"):
        load_backbone_weights(build_model("R50-FPN", 3), torchvision.models.resnet50(weights=None).state_dict())
    with pytest.raises(ValueError, match="mean="):
        load_backbone_weights(build_model("R18-FPN", 3, mean=[0.5, 0.5, 0.5]), state)
    with pytest.raises(ValueError, match="backbone is tiny"):
        load_backbone_weights(build_model("tiny-fpn", 3), state)
    with pytest.raises(ValueError, match="no ImageNet ResNet"):
        load_backbone_weights(build_model("R18-FPN", 3), {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="1 missing: backbone.stages.3.1.bn2.running_var"):
        state.pop("layer4.1.bn2.running_var")
        load_backbone_weights(build_model("R18-FPN", 3), state)
    with pytest.raises(ValueError, match="ImageNet classifier's, not a detector's: load_backbone_weights"):
        identify(state)
    for foreign in ({"a.b": torch.ones(1)}, build_model("tiny-fpn", 3).state_dict()):
        with pytest.raises(ValueError, match="neither torchvision's nor Detectron2's|without their configuration"):
            identify(foreign)
