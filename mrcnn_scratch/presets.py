"""The named models: the paper's, one for small machines, the tiny ones; and each code base's choices."""

from .config import ModelConfig

_TINY = ModelConfig(
    min_size=0,
    rpn_pre_nms_train=300,
    rpn_pre_nms_test=300,
    rpn_post_nms_train=200,
    rpn_post_nms_test=200,
    rpn_batch=64,
    roi_batch=32,
    mask_convs=2,
    mask_channels=48,
    keypoint_convs=3,
)
_ALL_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)  # five scales (Mask R-CNN, section 3.1)
_FPN = ModelConfig(
    backbone="resnet50",
    pyramid_top=True,
    stride_in_1x1=True,  # as in the ResNet paper and its published weights
    norm="frozen",  # Detectron: batch norm as a fixed affine layer
    freeze_at=2,  # Detectron
    fpn_channels=256,  # FPN, section 3
    anchor_sizes=tuple((size,) for size in _ALL_SIZES),  # one a level (FPN, section 4.1)
    rpn_straddle=0.0,  # Faster R-CNN, section 3.1.3: anchors over the border are not trained
    box_hidden=1024,  # figure 4
    mask_channels=256,  # figure 4
    mask_hidden=1024,  # Table 2e
    keypoint_channels=512,  # section 5
)
# One map: every cell has all five sizes, the RPN keeps 300 proposals (section 3.1), heads learn from 64 RoIs
_ONE_MAP = {
    "pyramid_top": False,
    "anchor_sizes": (_ALL_SIZES,),
    "rpn_pre_nms_train": 12000,  # Detectron
    "rpn_pre_nms_test": 6000,  # Faster R-CNN's code
    "rpn_post_nms_test": 300,
    "roi_batch": 64,
}
_C4 = _FPN.with_fields(**_ONE_MAP, neck="c4", mask_pool=7)  # on res5: a mask of 14 x 14 (figure 4)
_C5 = _FPN.with_fields(**_ONE_MAP, neck="c5")  # Table 2d
_X101 = {"backbone": "resnext101_64x4d", "stride_in_1x1": False}  # ResNeXt: the stride is in the grouped 3x3
_LITE = {
    "backbone": "efficientnet_lite0", "stride_in_1x1": False, "norm_eps": 1e-3,
    "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3,  # of its published weights
}  # fmt: skip

PRESETS = {
    "tiny-fpn": _TINY,
    "tiny-c4": _TINY.with_fields(neck="c4", anchor_sizes=((16.0, 32.0, 64.0, 128.0),), mask_pool=7),
    "tiny-c5": _TINY.with_fields(neck="c5", anchor_sizes=((16.0, 32.0, 64.0, 128.0),)),
    "R18-FPN": _FPN.with_fields(backbone="resnet18"),
    "R50-C4": _C4,
    "R101-C4": _C4.with_fields(backbone="resnet101"),
    "R50-C5": _C5,
    "R101-C5": _C5.with_fields(backbone="resnet101"),
    "R50-FPN": _FPN,
    "R101-FPN": _FPN.with_fields(backbone="resnet101"),
    "X101-FPN": _FPN.with_fields(**_X101),
    "X101-32x8d-FPN": _FPN.with_fields(**_X101 | {"backbone": "resnext101_32x8d"}),
    "EffLite0-FPN": _FPN.with_fields(**_LITE),
}

# What each code base does where the paper is silent: the table of docs/conventions.
CONVENTIONS = {
    "paper": {},
    "torchvision": {
        "resize": "torchvision",
        "stride_in_1x1": False,
        "anchor_offset": 0.0,
        "anchor_rounded": True,
        "anchor_strides": "image",
        "rpn_straddle": -1.0,
        "rpn_min_size": 1e-3,
        "roi_aligned": False,
        "mask_target_aligned": False,
        "paste_legacy": True,
        "level_eps_inside": False,
        "box_beta": 1 / 9,
        "keypoint_decode": "input",
    },
    "detectron2": {
        "anchor_offset": 0.0,
        "sampling_ratio": 0,
        "mask_target_binary": True,
        "rpn_straddle": -1.0,
        "rpn_beta": 0.0,  # plain L1
        "box_beta": 0.0,
        "keypoint_decode": "input",
    },
}
# Detectron2's weights want blue first and 0..255: the same numbers for red first and 0..1
_DETECTRON2_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)


def _of_this_model(config: ModelConfig, conventions: str) -> dict:
    """The fields that a convention changes in some models only."""
    if conventions != "detectron2" or not config.backbone.startswith("resne"):
        return {}
    grouped = config.backbone.startswith("resnext")
    fields = {
        "mean": _DETECTRON2_MEAN,
        "std": (58.395 / 255, 57.12 / 255, 57.375 / 255) if grouped else (1 / 255,) * 3,
        "stride_in_1x1": not grouped,
    }
    if config.neck == "c4":  # res5 takes every second of 14 x 14 bins, and N is 512
        fields |= {"box_pool": 14, "mask_pool": 14, "res5_stride": 2, "roi_batch": 512, "rpn_post_nms_test": 1000}
    return fields


def model_config(name: str, conventions: str = "paper", **values) -> ModelConfig:
    """The configuration of a named model.

    Args:
        name: a key of ``PRESETS``.
        conventions: a key of ``CONVENTIONS``.
        values: fields to change, e.g. ``score_threshold=0.5``.

    Raises:
        ValueError: an unknown name, convention or field.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}: this version has {', '.join(PRESETS)}")
    if conventions not in CONVENTIONS:
        raise ValueError(f"unknown conventions {conventions!r}: choose one of {', '.join(CONVENTIONS)}")
    preset = PRESETS[name]
    return preset.with_fields(**CONVENTIONS[conventions], **_of_this_model(preset, conventions)).with_fields(**values)
