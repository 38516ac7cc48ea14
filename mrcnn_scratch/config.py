"""The model's configuration: every number with its unit and its source. The named models are in presets.py."""

import difflib
from dataclasses import dataclass, fields, replace

from .config_checks import check_config

RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class ModelConfig:
    """One Mask R-CNN. Fields marked "toy choice" are ours, sized for a CPU; the others say where they come from."""

    # What is predicted
    num_classes: int = 91  # with the background as class 0: COCO's ids run to 90
    masks: bool = True  # the mask branch (Mask R-CNN, section 3)
    keypoints: int = 0  # keypoints per object, 17 for COCO persons; 0: no keypoint branch
    seed: int = 0  # of the initial weights; each part draws its own stream, so parts can be compared alone

    stages: str = "both"  # "both": end to end | "rpn": proposals alone | "heads": given proposals (section 3.1)

    # Images (Mask R-CNN, section 3.1: shorter edge 800 pixels)
    min_size: int = 800  # shorter edge after resizing, pixels; 0: images are taken as they are
    max_size: int = 1333  # longer edge at most, pixels (Detectron)
    train_min_sizes: tuple[int, ...] = ()  # in training one of these is drawn per image; empty: min_size (section 5)
    resize: str = "round"  # "round": to the nearest pixel | "torchvision": cut; boxes by float32 ratios
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    # Backbone
    backbone: str = "tiny"  # a key of backbones.BACKBONES; "tiny" is the one of `widths` and `blocks`
    neck: str = "fpn"  # "fpn": pyramid P2..P5 | "c4": one map of stride 16 | "c5": one of stride 32 (Table 2d)
    pyramid_top: bool = False  # True: the RPN also reads P6, every second cell of P5 (FPN, section 4.1)
    widths: tuple[int, ...] = (24, 48, 96, 128)  # channels of res2..res5 of the tiny ResNet; toy choice
    blocks: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks of res2..res5; toy choice
    groups: int = 1  # of the second 3x3 of the tiny ResNet's blocks; ResNeXt's idea, toy choice
    stride_in_1x1: bool = False  # a bottleneck's stride: in the first 1x1 (ResNet, MSRA) | the 3x3 (torchvision)
    norm: str = "batch"  # "batch" | "frozen" (Mask R-CNN trains on frozen statistics) | "group"
    norm_eps: float = 1e-5  # added to a variance; 0 for torchvision's published detectors
    freeze_at: int = 0  # stages that do not train: 1 the stem, 2 also res2 (Mask R-CNN), .. 5 res5, but for C4's head
    fpn_channels: int = 48  # 256 in FPN, section 3; toy choice

    # RPN (Faster R-CNN, section 3.1; FPN, section 4.1)
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16,), (32,), (64,), (128,))  # pixels, per level; toy choice
    aspect_ratios: tuple[float, ...] = RATIOS  # h / w
    anchor_offset: float = 0.5  # of a cell; 0.5: its centre | 0: its corner (torchvision)
    anchor_rounded: bool = False  # True: whole pixels (torchvision)
    anchor_strides: str = "level"  # "level": 4, 8, .. | "image": image // map (torchvision: 61, not 64, at P6 of 800)
    rpn_positive_iou: float = 0.7  # Faster R-CNN, section 3.1.2
    rpn_negative_iou: float = 0.3  # Faster R-CNN, section 3.1.2
    rpn_batch: int = 256  # anchors per image in the loss (Faster R-CNN, section 3.1.3)
    rpn_positive_fraction: float = 0.5  # Faster R-CNN, section 3.1.3
    rpn_straddle: float = -1.0  # anchors further outside the image than this, pixels, are not trained; -1: all are
    rpn_beta: float = 1 / 9  # where smooth L1 turns linear (Detectron)
    rpn_nms: float = 0.7  # IoU (Faster R-CNN, section 3.3)
    rpn_min_size: float = 0.0  # pixels
    rpn_pre_nms_train: int = 2000  # per level (Detectron, FPN)
    rpn_pre_nms_test: int = 1000
    rpn_post_nms_train: int = 2000  # per image, over all levels
    rpn_post_nms_test: int = 1000  # Mask R-CNN, section 3.1

    # RoIs (Mask R-CNN, section 3)
    roi_op: str = "align"  # "align" | "warp" | "pool": Table 2c
    roi_aligned: bool = True  # False: the legacy half-pixel shift (torchvision)
    roi_reduce: str = "mean"  # "mean" | "max": Table 2c
    warp_sampler: str = "align"  # of RoIWarp: RoIAlign's samples | "mnc": those of MNC's code
    sampling_ratio: int = 2  # 2 x 2 samples per bin; 0: adaptive
    canonical_size: float = 224.0  # pixels: RoIs of this size pool from level `canonical_level` (FPN, eq. 1)
    canonical_level: int = 4
    level_eps_inside: bool = True  # False: torchvision's rounding of eq. 1

    # Box head (Fast R-CNN, section 2.3; Mask R-CNN, section 3.1)
    roi_batch: int = 512  # RoIs per image in the loss; 64 for C4
    roi_positive_fraction: float = 0.25
    roi_positive_iou: float = 0.5
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)  # of the deltas (Detectron)
    box_beta: float = 1.0  # smooth L1 (Fast R-CNN, eq. 3)
    box_pool: int = 7  # bins a side (Mask R-CNN, figure 4)
    res5_stride: int = 1  # of C4's head: 1 on 7 x 7 bins (figure 4) | 2 on 14 x 14 (Detectron)
    box_hidden: int = 256  # width of the two hidden layers; 1024 in figure 4; toy choice
    score_threshold: float = 0.05  # Detectron
    box_nms: float = 0.5  # Detectron
    detections_per_image: int = 100  # Mask R-CNN, section 3.1

    # Mask head (Mask R-CNN, section 3 and figure 4)
    mask_head: str = "fcn"  # "fcn" | "mlp": Table 2e
    mask_classes: str = "specific"  # "specific": a mask per class | "agnostic": one for all (section 4.1)
    mask_loss: str = "sigmoid"  # "sigmoid": masks do not compete | "softmax": a pixel has one class (Table 2b)
    mask_layers: int = 2  # hidden layers of the "mlp": 2 or 3 in Table 2e
    mask_hidden: int = 128  # their width, 1024 in Table 2e; toy choice
    mask_pool: int = 14  # bins a side; the mask has twice as many
    mask_convs: int = 4
    mask_channels: int = 64  # 256 in figure 4; toy choice
    mask_target_aligned: bool = True  # False: torchvision's half-pixel shift
    mask_target_binary: bool = False  # True: targets cut at 0.5 (Detectron2)
    paste_legacy: bool = False  # True: boxes grown by a pixel and cut to integers (torchvision)

    # Keypoint head (Mask R-CNN, section 5)
    keypoint_pool: int = 14  # bins a side; the heatmap has four times as many
    keypoint_convs: int = 8
    keypoint_channels: int = 64  # 512 in the paper; toy choice
    keypoint_decode: str = "image"  # boxes whose pixels count: "image" (Detectron) | "input": resized (torchvision)

    def __post_init__(self):
        check_config(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels per cell of the feature maps that the RPN reads; RoIs are pooled from the first four at most."""
        if self.neck == "fpn":
            return (4, 8, 16, 32, 64) if self.pyramid_top else (4, 8, 16, 32)
        return (16,) if self.neck == "c4" else (32,)

    @classmethod
    def from_dict(cls, values: dict) -> "ModelConfig":
        """Rebuilds a configuration from JSON; lists become tuples.

        Raises:
            ValueError: an unknown field, with the nearest known one.
        """
        return cls().with_fields(**values)

    def with_fields(self, **values) -> "ModelConfig":
        """A copy with some fields changed.

        Raises:
            ValueError: an unknown field, with the nearest known one, or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(known)}"
                raise ValueError(f"model configuration has no field {name!r}: {hint}")
        return replace(self, **{name: _tupled(value) for name, value in values.items()})


def _tupled(value):
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value
