"""What a model configuration may hold: types and ranges, each refused by name, value and remedy."""

import math
from dataclasses import fields
from numbers import Real

CHOICES = {
    "stages": ("both", "rpn", "heads"),
    "resize": ("round", "torchvision"),
    "backbone": (
        "tiny", "resnet18", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d", "efficientnet_lite0"
    ),
    "neck": ("fpn", "c4", "c5"),
    "norm": ("batch", "frozen", "group"),
    "anchor_strides": ("level", "image"),
    "roi_op": ("align", "warp", "pool"),
    "roi_reduce": ("mean", "max"),
    "warp_sampler": ("align", "mnc"),
    "res5_stride": (1, 2),
    "mask_head": ("fcn", "mlp"),
    "mask_classes": ("specific", "agnostic"),
    "mask_loss": ("sigmoid", "softmax"),
    "keypoint_decode": ("image", "input"),
}
# field -> least value; of a tuple, of each of its numbers
AT_LEAST = {
    "num_classes": 2, "keypoints": 0, "groups": 1, "seed": 0, "min_size": 0, "max_size": 1, "rpn_min_size": 0,
    "rpn_straddle": -1, "rpn_beta": 0, "box_beta": 0, "sampling_ratio": -1, "canonical_level": 0,
    "mask_convs": 0, "keypoint_convs": 0,
    "widths": 1, "blocks": 1, "fpn_channels": 1, "rpn_batch": 1, "rpn_pre_nms_train": 1, "rpn_pre_nms_test": 1,
    "rpn_post_nms_train": 1, "rpn_post_nms_test": 1, "roi_batch": 1, "box_pool": 1, "box_hidden": 1, "mask_pool": 1,
    "mask_channels": 1, "mask_layers": 1, "mask_hidden": 1, "norm_eps": 0, "freeze_at": 0, "train_min_sizes": 1,
    "keypoint_pool": 1, "keypoint_channels": 1, "detections_per_image": 1,
}  # fmt: skip
POSITIVE = ("std", "aspect_ratios", "box_weights", "canonical_size")  # anchor_sizes: see _check_anchors
FRACTIONS = (
    "score_threshold", "box_nms", "rpn_nms", "rpn_positive_fraction", "roi_positive_fraction",
    "rpn_positive_iou", "rpn_negative_iou", "roi_positive_iou", "anchor_offset",
)  # fmt: skip
LENGTHS = {"mean": 3, "std": 3, "box_weights": 4, "widths": 4, "blocks": 4}
REMEDIES = {
    "num_classes": "it counts the background, so it is at least 2",
    "keypoints": "give 0 for no keypoint branch, 17 for COCO's",
    "widths": "give four, of res2 to res5",
    "blocks": "give four, of res2 to res5",
}


def check_config(config) -> None:
    """Refuses a configuration that cannot be built or would train nonsense.

    Args:
        config: a ``ModelConfig``.

    Raises:
        ValueError: names the field, its value and what it may be.
    """
    for field in fields(config):
        _check_type(field.name, getattr(config, field.name), field.default)
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} is {getattr(config, name)!r}: choose one of {', '.join(map(str, allowed))}")
    for name, length in LENGTHS.items():
        if len(getattr(config, name)) != length:
            remedy = REMEDIES.get(name, f"give {length}")
            raise ValueError(f"{name} has {len(getattr(config, name))} entries: {remedy}")
    for name, least in AT_LEAST.items():
        if min(_numbers(getattr(config, name)), default=least) < least:
            raise ValueError(f"{name} is {getattr(config, name)}: {REMEDIES.get(name, f'it must be at least {least}')}")
    if config.freeze_at > 5:
        raise ValueError(f"freeze_at is {config.freeze_at}: give 0 to 5, where 5 freezes the stem and res2 to res5")
    for name in POSITIVE:
        values = _numbers(getattr(config, name))
        if not values or min(values) <= 0:
            raise ValueError(f"{name} is {getattr(config, name)}: it must be positive")
    for name in FRACTIONS:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is {getattr(config, name)}: it must lie in 0..1")
    _check_pairs(config)
    _check_anchors(config)


def _check_type(name: str, value, default) -> None:
    """Each field has the type of its default; a whole number may stand for a real one."""
    if isinstance(default, tuple):
        good = isinstance(value, tuple) and all(_is_real(number) for number in _numbers(value))
    elif isinstance(default, bool | str):
        good = isinstance(value, type(default))
    elif isinstance(default, int):
        good = isinstance(value, int) and not isinstance(value, bool)
    else:
        good = _is_real(value)
    if not good:
        kind = "a list of finite numbers" if isinstance(default, tuple) else {
            bool: "True or False", str: "a name", int: "a whole number", float: "a finite number"
        }[type(default)]  # fmt: skip
        raise ValueError(f"{name} is {value!r}: give {kind}, such as {default!r}")


def _check_pairs(config) -> None:
    """Fields that are each in range but do not go together."""
    if any(width % config.groups for width in config.widths):
        raise ValueError(f"groups is {config.groups}: it must divide each of the widths {config.widths}")
    if config.min_size > config.max_size:
        raise ValueError(
            f"min_size is {config.min_size}, max_size {config.max_size}: the shorter edge cannot exceed the longest"
        )
    if max(config.train_min_sizes, default=0) > config.max_size:
        raise ValueError(
            f"train_min_sizes holds {max(config.train_min_sizes)}, max_size is {config.max_size}: the shorter edge "
            "cannot exceed the longest, raise max_size or drop this size"
        )
    if config.rpn_negative_iou > config.rpn_positive_iou:
        raise ValueError(
            f"rpn_negative_iou is {config.rpn_negative_iou}, rpn_positive_iou {config.rpn_positive_iou}: "
            "an anchor would be both, lower the first"
        )
    _check_neck(config)
    if config.mask_loss == "softmax" and config.mask_classes == "agnostic":
        raise ValueError(
            "mask_loss is 'softmax' and mask_classes 'agnostic': classes cannot compete in one mask, "
            "choose mask_loss 'sigmoid' or mask_classes 'specific'"
        )


def _check_neck(config) -> None:
    """What the neck allows: res5 is a head with C4 alone, levels P5 and P6 are FPN's."""
    if config.pyramid_top and config.neck != "fpn":
        raise ValueError(f"pyramid_top is True, neck {config.neck!r}: P6 is made of P5, set pyramid_top=False")
    if config.neck != "c4":
        if config.res5_stride == 2:
            raise ValueError(f"res5_stride is 2, neck {config.neck!r}: only c4 has res5 as a head, set res5_stride=1")
        return
    if config.backbone == "efficientnet_lite0":
        raise ValueError("neck is 'c4', backbone 'efficientnet_lite0': it has no res5 for a head, choose neck 'fpn'")
    if config.mask_head == "mlp":
        raise ValueError("mask_head is 'mlp', neck 'c4': Table 2e's is on FPN, choose mask_head 'fcn' or neck 'fpn'")
    for name in ["box_pool"] + ["mask_pool"] * config.masks:
        if config.res5_stride == 2 and getattr(config, name) % 2:
            raise ValueError(
                f"res5_stride is 2, {name} {getattr(config, name)}: it must be even, such as 14, to be halved"
            )


def _check_anchors(config) -> None:
    """One set of anchor sizes for each feature map, all sets equally long."""
    sizes, strides = config.anchor_sizes, config.strides
    if len(sizes) != len(strides):
        raise ValueError(
            f"anchor_sizes has {len(sizes)} levels, neck {config.neck!r} has {len(strides)}: give one each"
        )
    if not all(isinstance(level, tuple) for level in sizes) or min(_numbers(sizes), default=0) <= 0:
        raise ValueError(f"anchor_sizes is {sizes}: give a list of positive sizes for each level, such as [[16], [32]]")
    if len({len(level) for level in sizes}) != 1:
        raise ValueError(
            f"anchor_sizes is {sizes}: one RPN head serves all levels, give each the same number of sizes"
        )


def _numbers(value) -> list:
    """The numbers in a number or a nested tuple of them."""
    return [number for item in value for number in _numbers(item)] if isinstance(value, tuple) else [value]


def _is_real(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
