"""Which detector a file of weights belongs to, told by names and shapes alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..presets import PRESETS, model_config
from .detectron2_names import detectron2_fields, renamed_detectron2
from .fill import TRACKED, same_value
from .reading import WeightFile, read_weights
from .resnet_names import is_classifier
from .torchvision_names import renamed_torchvision, torchvision_fields

# blocks of res2..res5, filters and channels of the first 3x3, convolutions of a block -> the preset's first part
_BACKBONES = {
    ((2, 2, 2, 2), (64, 64), 2): "R18",
    ((3, 4, 6, 3), (64, 64), 3): "R50",
    ((3, 4, 23, 3), (64, 64), 3): "R101",
    ((3, 4, 23, 3), (256, 8), 3): "X101-32x8d",
    ((3, 4, 23, 3), (256, 4), 3): "X101",
}


@dataclass(frozen=True)
class Identified:
    """What a file's weights belong to."""

    kind: str  # "torchvision" or "detectron2": the code base, and the conventions
    name: str  # a key of PRESETS
    num_classes: int  # K, with the background
    masks: bool
    keypoints: int  # J
    fields: dict = field(default_factory=dict)  # of the configuration, where the preset has others

    @property
    def call(self) -> str:
        """The ``build_model`` call that makes the model these weights fit."""
        more = "".join(f", {name}={value!r}" for name, value in self.fields.items())
        return (
            f'build_model("{self.name}", num_classes={self.num_classes}, masks={self.masks}, '
            f'keypoints={self.keypoints}, conventions="{self.kind}"{more})'
        )

    def build(self, **fields):
        """The model, with fresh weights; ``fields`` of the configuration come last."""
        from ..model import build_model

        return build_model(
            self.name, self.num_classes, self.masks, self.keypoints, self.kind, **{**self.fields, **fields}
        )


def identify(source: WeightFile | str | Path | Mapping[str, torch.Tensor]) -> Identified:
    """Tells the code base, the backbone, the neck, the heads and their classes from names and shapes.

    What weights cannot tell (image size, thresholds, anchor sizes) is the preset's.

    Args:
        source: a file, a state dict, or what :func:`read_weights` gave.

    Raises:
        ValueError: no detector of torchvision or Detectron2 that this package can be; lists what was recognised.
    """
    file = read_weights(source)
    kind = _code_base(file)
    renamed = renamed_torchvision(file) if kind == "torchvision" else renamed_detectron2(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.tensors.items()}
    name = _preset(shapes, file)
    stages = "rpn" if "box_predictor.cls_score.weight" not in shapes else "both"
    stages = "heads" if "rpn.conv.weight" not in shapes else stages
    fields = {} if stages == "both" else {"stages": stages}
    tracked = any(name.endswith(TRACKED) for name in file.tensors)
    fields |= {"norm": "batch" if tracked else "frozen"} | _widths(shapes)
    fields |= torchvision_fields(file) if kind == "torchvision" else detectron2_fields(file)
    num_classes = shapes.get("box_predictor.cls_score.weight", (2,))[0]
    logits = shapes.get("mask_head.logits.weight")
    if kind == "detectron2" and logits and logits[0] == 1 and num_classes > 2:
        fields["mask_classes"] = "agnostic"
    preset = model_config(name, kind)
    _check_anchors(shapes, preset, file)
    fields = {key: value for key, value in fields.items() if not same_value(getattr(preset, key), value)}
    keypoints = shapes.get("keypoint_head.deconv.weight", (0, 0))[1]
    return Identified(kind, name, num_classes, bool(logits), keypoints, fields)


def _code_base(file: WeightFile) -> str:
    names = list(file.tensors)
    if any(name.startswith("backbone.body.") for name in names):
        return "torchvision"
    if any(re.match(r"backbone\.(bottom_up\.)?(stem\.conv1|res2)\.", name) for name in names):
        return "detectron2"
    if is_classifier(file):
        raise ValueError(
            f"weights {file.name} are an ImageNet classifier's, not a detector's: load_backbone_weights starts a "
            "detector's training from it"
        )
    if "backbone.stem.0.weight" in names:
        raise ValueError(f"weights {file.name} are this package's without their configuration: save with save_model")
    raise ValueError(
        f"weights {file.name} are neither torchvision's nor Detectron2's R-CNN on a ResNet: no name begins with "
        f"backbone.body., backbone.bottom_up. or backbone.stem.; it has {len(names)} tensors, the first are "
        f"{', '.join(names[:4])}"
    )


def _preset(shapes: dict[str, tuple], file: WeightFile) -> str:
    stages = [[name for name in shapes if name.startswith(f"backbone.stages.{i}.")] for i in range(4)]
    blocks = [len({name.split(".")[3] for name in stage}) for stage in stages]
    c4 = "box_trunk.0.conv1.weight" in shapes
    if c4:
        blocks[3] = len({name.split(".")[1] for name in shapes if re.match(r"box_trunk\.\d", name)})
    elif blocks[3] == 0 and "fpn.lateral.0.weight" not in shapes and "box_predictor.cls_score.weight" not in shapes:
        c4, blocks[3] = True, 3  # the RPN alone, on C4
    conv2 = shapes.get("backbone.stages.0.0.conv2.weight", (0, 0))[:2]
    depth = 3 if "backbone.stages.0.0.conv3.weight" in shapes else 2
    first = _BACKBONES.get((tuple(blocks), conv2, depth), "")
    neck = "C4" if c4 else "FPN" if "fpn.lateral.0.weight" in shapes else "no neck"
    name = f"{first}-{neck}"
    if name not in PRESETS:
        raise ValueError(
            f"weights {file.name}: recognised a ResNet of {blocks} blocks of {depth} convolutions, whose first 3x3 has "
            f"{conv2[0]} filters of {conv2[1]} channels, and {neck}; that is none of "
            f"{', '.join(name for name in PRESETS if 'tiny' not in name)}"
        )
    return name


def _widths(shapes: dict[str, tuple]) -> dict:
    """Channels and counts of layers that the shapes tell."""
    fields = {}
    if "fpn.lateral.0.weight" in shapes:
        fields["fpn_channels"] = shapes["fpn.lateral.0.weight"][0]
    if "box_trunk.fc6.weight" in shapes:
        fields["box_hidden"], columns = shapes["box_trunk.fc6.weight"]
        fields["box_pool"] = math.isqrt(columns // fields.get("fpn_channels", columns))
    for head in ("mask", "keypoint"):
        convs = sum(bool(re.fullmatch(rf"{head}_head\.convs\.\d+\.weight", name)) for name in shapes)
        if convs:
            fields[f"{head}_convs"], fields[f"{head}_channels"] = convs, shapes[f"{head}_head.convs.0.weight"][0]
        elif head == "mask" and "mask_head.deconv.weight" in shapes:  # C4: its convolutions are res5's
            fields["mask_channels"] = shapes["mask_head.deconv.weight"][1]
    return fields


def _check_anchors(shapes: dict[str, tuple], preset, file: WeightFile) -> None:
    has = shapes.get("rpn.objectness.weight", (None,))[0]
    usual = len(preset.anchor_sizes[0]) * len(preset.aspect_ratios)
    if has not in (None, usual):
        raise ValueError(
            f"weights {file.name}: recognised an RPN of {has} anchors a cell, {usual} are usual, and weights do not "
            "tell their sizes: build_model(..., anchor_sizes=..., aspect_ratios=...), then load_torchvision_weights or "
            "load_detectron2_weights"
        )
