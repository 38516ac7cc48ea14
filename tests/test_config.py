"""The configuration: strict, immutable, and its published numbers."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest

from mrcnn_scratch.config import ModelConfig
from mrcnn_scratch.presets import CONVENTIONS, PRESETS, model_config


def test_the_papers_numbers():
    config = ModelConfig()
    assert (config.min_size, config.max_size) == (800, 1333)
    assert (config.rpn_positive_iou, config.rpn_negative_iou, config.rpn_batch) == (0.7, 0.3, 256)
    assert (config.roi_positive_iou, config.roi_batch, config.roi_positive_fraction) == (0.5, 512, 0.25)
    assert (config.rpn_beta, config.box_beta) == (1 / 9, 1.0)
    assert config.box_weights == (10, 10, 5, 5)
    assert (config.canonical_size, config.canonical_level) == (224, 4)
    assert (config.box_pool, config.mask_pool, config.mask_convs, config.keypoint_convs) == (7, 14, 4, 8)
    assert (config.detections_per_image, config.box_nms, config.rpn_nms) == (100, 0.5, 0.7)


def test_conventions_are_where_the_codebases_part():
    paper, theirs = model_config("tiny-fpn"), model_config("tiny-fpn", "torchvision")
    assert (paper.anchor_offset, paper.anchor_rounded, paper.roi_aligned, paper.paste_legacy) == (
        0.5,
        False,
        True,
        False,
    )
    assert (theirs.anchor_offset, theirs.anchor_rounded, theirs.roi_aligned, theirs.paste_legacy) == (
        0,
        True,
        False,
        True,
    )
    assert (theirs.box_beta, theirs.rpn_beta) == (1 / 9, 1 / 9)  # torchvision uses the RPN's value in both places
    assert not theirs.level_eps_inside and not theirs.mask_target_aligned
    detectron2 = model_config("tiny-fpn", "detectron2")
    assert detectron2.sampling_ratio == 0 and detectron2.mask_target_binary and detectron2.roi_aligned
    assert (detectron2.box_beta, detectron2.rpn_beta) == (0, 0)  # plain L1


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("conventions", CONVENTIONS)
def test_every_preset_survives_json(name, conventions):
    config = model_config(name, conventions, num_classes=5)
    assert ModelConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="no field 'score_treshold': did you mean 'score_threshold'"):
        model_config("tiny-fpn", score_treshold=0.5)
    with pytest.raises(ValueError, match="no field 'zzz': the fields are num_classes, "):
        ModelConfig.from_dict({"zzz": 1})
    with pytest.raises(ValueError, match="unknown model 'R50': this version has tiny-fpn"):
        model_config("R50")
    with pytest.raises(ValueError, match="unknown conventions 'mine': choose one of paper, torchvision"):
        model_config("tiny-fpn", "mine")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("neck", "fpm", "neck is 'fpm': choose one of fpn, c4"),
        ("norm", "layer", "norm is 'layer': choose one of batch, frozen, group"),
        ("roi_op", "crop", "roi_op is 'crop': choose one of align, warp, pool"),
        ("roi_reduce", "sum", "roi_reduce is 'sum'"),
        ("warp_sampler", "mean", "warp_sampler is 'mean': choose one of align, mnc"),
        ("groups", 5, "groups is 5: it must divide each of the widths"),
        ("num_classes", 1, "num_classes is 1: it counts the background, so it is at least 2"),
        ("keypoints", -1, "keypoints is -1: give 0 for no keypoint branch"),
        ("score_threshold", 1.5, "score_threshold is 1.5: it must lie in 0..1"),
        ("rpn_positive_fraction", -0.1, "rpn_positive_fraction is -0.1"),
        ("roi_batch", 0, "roi_batch is 0: it must be at least 1"),
        ("anchor_sizes", ((8,),), "anchor_sizes has 1 levels, neck 'fpn' has 4: give one each"),
        ("anchor_sizes", ((8,), (8, 16), (8,), (8,)), "the same number of sizes"),
        ("widths", (8, 16), "widths has 2 entries"),
        ("blocks", (1, 1, 1), "blocks has 3 entries"),
        ("blocks", (1, 1, 0, 1), "blocks is .*: give four"),
        ("min_size", "abc", "min_size is 'abc': give a whole number"),
        ("min_size", 1.5, "min_size is 1.5: give a whole number"),
        ("min_size", -5, "min_size is -5: it must be at least 0"),
        ("min_size", 2000, "min_size is 2000, max_size 1333"),
        ("num_classes", "4", "num_classes is '4': give a whole number"),
        ("num_classes", True, "num_classes is True"),
        ("masks", "yes", "masks is 'yes': give True or False"),
        ("score_threshold", float("nan"), "score_threshold is nan: give a finite number"),
        ("roi_op", 3, "roi_op is 3: give a name"),
        ("std", (1, 0, 1), "std is .*: it must be positive"),
        ("mean", (0, 0), "mean has 2 entries: give 3"),
        ("box_weights", (1, 1), "box_weights has 2 entries"),
        ("aspect_ratios", (), "aspect_ratios is .*: it must be positive"),
        ("anchor_sizes", ((8,), (0,), (8,), (8,)), "positive sizes"),
        ("anchor_sizes", (8, 16, 32, 64), "positive sizes"),
        ("rpn_negative_iou", 0.9, "rpn_negative_iou is 0.9, rpn_positive_iou 0.7"),
        ("sampling_ratio", -3, "sampling_ratio is -3"),
    ],
)
def test_values_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        model_config("tiny-fpn", **{field: value})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tiny-fpn", {"freeze_at": 6}, "freeze_at is 6: give 0 to 5"),
        ("tiny-fpn", {"freeze_at": -1}, "freeze_at is -1"),
        ("tiny-c4", {"mask_head": "mlp"}, "mask_head is 'mlp', neck 'c4': .* choose mask_head 'fcn' or neck 'fpn'"),
        ("tiny-c4", {"backbone": "efficientnet_lite0"}, "neck is 'c4', backbone 'efficientnet_lite0': .*neck 'fpn'"),
        ("tiny-fpn", {"mask_loss": "softmax", "mask_classes": "agnostic"}, "choose mask_loss 'sigmoid' or mask_cl"),
        ("tiny-c4", {"mask_loss": "softmax", "mask_classes": "agnostic"}, "choose mask_loss 'sigmoid' or mask_cl"),
        ("tiny-fpn", {"res5_stride": 2, "box_pool": 14}, "res5_stride is 2, neck 'fpn': .* set res5_stride=1"),
        ("tiny-c5", {"res5_stride": 2, "box_pool": 14}, "res5_stride is 2, neck 'c5': .* set res5_stride=1"),
        ("tiny-c4", {"res5_stride": 2, "mask_pool": 14}, "res5_stride is 2, box_pool 7: it must be even, such as 14"),
        ("tiny-c4", {"res5_stride": 2, "box_pool": 14}, "res5_stride is 2, mask_pool 7: it must be even, such as 14"),
        ("tiny-c4", {"pyramid_top": True}, "pyramid_top is True, neck 'c4': .* set pyramid_top=False"),
        ("tiny-c5", {"pyramid_top": True}, "pyramid_top is True, neck 'c5': .* set pyramid_top=False"),
        ("tiny-fpn", {"train_min_sizes": (640, 1400)}, "train_min_sizes holds 1400, max_size is 1333: .* raise"),
        ("tiny-fpn", {"train_min_sizes": (0, 640)}, "train_min_sizes is .*: it must be at least 1"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        model_config(name, **values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tiny-fpn", {"freeze_at": 5}),
        ("tiny-fpn", {"mask_head": "mlp"}),
        ("tiny-c5", {"mask_head": "mlp"}),
        ("tiny-c5", {"backbone": "efficientnet_lite0"}),
        ("tiny-c4", {"mask_classes": "agnostic"}),
        ("tiny-c4", {"mask_loss": "softmax"}),
        ("tiny-c4", {"res5_stride": 2, "box_pool": 14, "mask_pool": 14}),
        ("tiny-c4", {"res5_stride": 2, "box_pool": 14, "masks": False}),
        ("tiny-fpn", {"train_min_sizes": (1333,)}),
        ("tiny-fpn", {"stages": "rpn", "masks": True, "keypoints": 17}),
    ],
)
def test_their_neighbours_are_taken(name, values):
    config = model_config(name, **values)
    assert all(getattr(config, field) == value for field, value in values.items())


def test_a_configuration_cannot_change_under_a_model():
    config = model_config("tiny-fpn")
    with pytest.raises(FrozenInstanceError):
        config.box_nms = 0.9
    assert config.with_fields(box_nms=0.9).box_nms == 0.9 and config.box_nms == 0.5
    assert hash(config.with_fields(anchor_sizes=[[8], [16], [32], [64]]))  # lists become tuples


def test_strides_follow_the_neck():
    assert model_config("tiny-fpn").strides == (4, 8, 16, 32)
    assert model_config("tiny-c4").strides == (16,)
    assert model_config("tiny-c5").strides == (32,)
    with_top = model_config("tiny-fpn", pyramid_top=True, anchor_sizes=((8,), (16,), (32,), (64,), (128,)))
    assert with_top.strides == (4, 8, 16, 32, 64)
    with pytest.raises(ValueError, match="anchor_sizes has 4 levels, neck 'fpn' has 5"):
        model_config("tiny-fpn", pyramid_top=True)
