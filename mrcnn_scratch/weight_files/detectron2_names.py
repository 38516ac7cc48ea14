"""Detectron2's R-CNNs by name and by layout: blue first, the background last, anchors in another order."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..anchors import cell_anchors
from .fill import Renamed, Rule, rename
from .reading import WeightFile, read_weights
from .resnet_names import STAGES, detectron2_blocks, msra_fields, red_first, split_fused_norms

RULES: tuple[Rule, ...] = (
    *detectron2_blocks(r"backbone\.(?:bottom_up\.)?", STAGES, "backbone.stem"),
    *detectron2_blocks(r"roi_heads\.", {"res5": "box_trunk"}, "roi_heads.stem"),
    (r"backbone\.fpn_lateral([2-5])\.(?=weight|bias)", lambda m: f"fpn.lateral.{int(m[1]) - 2}."),
    (r"backbone\.fpn_output([2-5])\.(?=weight|bias)", lambda m: f"fpn.output.{int(m[1]) - 2}."),
    (r"proposal_generator\.rpn_head\.conv\.(?=weight|bias)", "rpn.conv."),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    (r"roi_heads\.box_head\.fc([12])\.", lambda m: f"box_trunk.fc{int(m[1]) + 5}."),
    (r"roi_heads\.box_predictor\.", "box_predictor."),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(?=weight|bias)", lambda m: f"mask_head.convs.{int(m[1]) - 1}."),
    (r"roi_heads\.mask_head\.deconv\.", "mask_head.deconv."),
    (r"roi_heads\.mask_head\.predictor\.", "mask_head.logits."),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.", lambda m: f"keypoint_head.convs.{int(m[1]) - 1}."),
    (r"roi_heads\.keypoint_head\.score_lowres\.", "keypoint_head.deconv."),
)
_CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."  # buffers of files before version 0.2
_IGNORED = rf"pixel_(mean|std)|{re.escape(_CELL_ANCHORS)}\d+"
# A pattern of names -> what they belong to, which is none of the paper's models
_OTHERS = {
    r"sem_seg_head\.": "a panoptic FPN",
    r"roi_heads\.box_head\.0\.": "a Cascade R-CNN",
    r"head\.(cls|bbox)_subnet\.": "a RetinaNet",
    r"backbone\.res5\.": "a model on dilated C5 (DC5)",
    r"backbone\.fpn_\w+\.norm\.": "a model with norms in its FPN",
    r".*\.conv2_offset\.": "a model with deformable convolutions",
    r"roi_heads\.box_head\.conv\d": "a model with convolutions in its box head",
    r"roi_heads\.mask_(point_head|coarse_head)\.": "a PointRend",
}


def renamed_detectron2(file: WeightFile) -> Renamed:
    """A Detectron2 R-CNN's tensors under our names, in Detectron2's layout still.

    Raises:
        ValueError: an architecture that the paper has not, by name.
    """
    for pattern, what in _OTHERS.items():
        name = next((name for name in file.tensors if re.match(pattern, name)), None)
        if name:
            raise ValueError(
                f"weights {file.name} are of {what} (they have {name}), which is not among this package's models: take "
                "a C4 or FPN Faster, Mask or Keypoint R-CNN of the model zoo"
            )
    return rename(file, RULES, _IGNORED)


def detectron2_fields(source: WeightFile | str | Path | Mapping[str, torch.Tensor]) -> dict:
    """The configuration that a Detectron2 detector's weights need, beside ``conventions="detectron2"``.

    Files of some versions hold their ``pixel_mean`` and ``pixel_std``; of the others the backbone tells: the model
    zoo's ResNets come from MSRA, its ResNeXt from FAIR.

    Args:
        source: of :func:`read_weights`.

    Returns:
        ``stride_in_1x1``; ``mean`` and ``std`` as ours, red first and in 0..1.
    """
    file = read_weights(source)
    conv2 = next((x for name, x in file.tensors.items() if name.endswith("res2.0.conv2.weight")), None)
    fields = msra_fields(conv2 is not None and conv2.shape[0] != conv2.shape[1])
    mean, std = (file.tensors.get(name) for name in ("pixel_mean", "pixel_std"))
    if mean is None or std is None:
        return fields
    mean, std = mean.flatten().tolist(), std.flatten().tolist()
    if _channels(file) == "BGR":
        mean, std = mean[::-1], std[::-1]
    if min(std) > 2:  # torch's and FAIR's ResNets are divided by a deviation and have the stride in the 3x3
        fields["stride_in_1x1"] = False
    return fields | {"mean": tuple(value / 255 for value in mean), "std": tuple(value / 255 for value in std)}


def _channels(file: WeightFile) -> str:
    """The order of the channels: the mean's is red > green > blue, whatever the set of photos."""
    mean = file.tensors.get("pixel_mean")
    return "RGB" if mean is not None and float(mean.flatten()[0]) > float(mean.flatten()[-1]) else "BGR"


def to_our_layout(renamed: Renamed, file: WeightFile, config, channels: str | None = None) -> None:
    """Rearranges renamed tensors: red first, background first, ratios slowest.

    Args:
        renamed: of :func:`renamed_detectron2`; changed in place.
        file: where they come from.
        config: the model's: its anchors, and whether masks are per class.
        channels: "BGR" or "RGB" of the training; None takes the file's word, BGR where it has none.

    Raises:
        ValueError: boxes for all classes together, or anchors in the file that are not the model's.
    """
    _check_anchors(config, file)
    if (channels or _channels(file)) == "BGR":
        red_first(renamed)
    split_fused_norms(renamed, config.norm_eps)
    _background_first(renamed, file, config.mask_classes)
    _ratios_slowest(renamed, len(config.anchor_sizes[0]), len(config.aspect_ratios))


def _background_first(renamed: Renamed, file: WeightFile, mask_classes: str) -> None:
    """Detectron2's classes are 0..K-1 with the background's logit at K; ours are 1..K with the background at 0."""
    tensors = renamed.tensors
    rows = len(tensors["box_predictor.cls_score.weight"]) if "box_predictor.cls_score.weight" in tensors else 0
    for part in ("weight", "bias"):
        score, delta = f"box_predictor.cls_score.{part}", f"box_predictor.bbox_pred.{part}"
        mask = f"mask_head.logits.{part}"
        if score in tensors:
            tensors[score] = torch.cat([tensors[score][-1:], tensors[score][:-1]])
        if delta in tensors:
            if len(tensors[delta]) == 4 and rows > 2:
                raise ValueError(
                    f"weights {file.name}: {renamed.origin[delta]} has 4 rows for {rows - 1} classes, boxes for all "
                    "classes together (CLS_AGNOSTIC_BBOX_REG): not supported, the paper's are per class"
                )
            tensors[delta] = _with_zeros(tensors[delta], 4)
        if mask in tensors and mask_classes == "specific":
            tensors[mask] = _with_zeros(tensors[mask], 1)


def _with_zeros(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([tensor.new_zeros(rows, *tensor.shape[1:]), tensor])


def _ratios_slowest(renamed: Renamed, sizes: int, ratios: int) -> None:
    """The RPN's channels from Detectron2's order in a cell, sizes slowest, to ours, ratios slowest."""
    for name, tensor in renamed.tensors.items():
        numbers = {"rpn.objectness": 1, "rpn.deltas": 4}.get(name.rpartition(".")[0])
        if numbers and len(tensor) == sizes * ratios * numbers:
            grouped = tensor.reshape(sizes, ratios, numbers, *tensor.shape[1:])
            renamed.tensors[name] = grouped.transpose(0, 1).reshape(tensor.shape)


def _check_anchors(config, file: WeightFile) -> None:
    """Anchors that the file states must be the model's, to a pixel."""
    for level, sizes in enumerate(config.anchor_sizes):
        theirs = file.tensors.get(f"{_CELL_ANCHORS}{level}")
        ours = cell_anchors(sizes, config.aspect_ratios).reshape(len(config.aspect_ratios), len(sizes), 4)
        ours = ours.transpose(0, 1).reshape(-1, 4)  # (ratios, sizes, 4) -> sizes slowest, as theirs
        if theirs is not None and (theirs.shape != ours.shape or (theirs.float() - ours).abs().max() > 1):
            spans = [round(float(side), 1) for side in ((theirs[:, 2:] - theirs[:, :2]).prod(1).sqrt())]
            raise ValueError(
                f"weights {file.name}: the anchors of level {level} have sizes {sorted(set(spans))}, the model's have "
                f"{sizes} with ratios {config.aspect_ratios}: build it with the training's anchor_sizes, aspect_ratios"
            )
