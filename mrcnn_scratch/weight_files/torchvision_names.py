"""torchvision's R-CNNs by name: theirs as ours, ours as theirs, and which of the published files needs what."""

import hashlib
import re
from pathlib import Path

import torch

from .fill import Renamed, Rule, rename
from .reading import WeightFile

# A name of theirs begins with -> ours. Where there are two forms, the second is of files before torchvision 0.13.
RULES: tuple[Rule, ...] = (
    (r"backbone\.body\.conv1\.", "backbone.stem.0."),
    (r"backbone\.body\.bn1\.", "backbone.stem.1."),
    (r"backbone\.body\.layer([1-4])\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(0\.)?(?=weight|bias)", r"fpn.lateral.\1."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(0\.)?(?=weight|bias)", r"fpn.output.\1."),
    (r"rpn\.head\.conv\.(0\.0\.)?(?=weight|bias)", "rpn.conv."),
    (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
    (r"roi_heads\.box_head\.(fc[67])\.", r"box_trunk.\1."),
    (r"roi_heads\.box_predictor\.", "box_predictor."),
    (r"roi_heads\.mask_head\.(\d+)\.0\.", r"mask_head.convs.\1."),
    (r"roi_heads\.mask_head\.mask_fcn(\d+)\.", lambda m: f"mask_head.convs.{int(m[1]) - 1}."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.logits."),
    (r"roi_heads\.keypoint_head\.(\d+)\.", lambda m: f"keypoint_head.convs.{int(m[1]) // 2}."),  # ReLUs lie between
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.", "keypoint_head.deconv."),
)
# The way back, to the names of torchvision today
BACK: tuple[Rule, ...] = (
    (r"backbone\.stem\.0\.", "backbone.body.conv1."),
    (r"backbone\.stem\.1\.", "backbone.body.bn1."),
    (r"backbone\.stages\.(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}."),
    (r"fpn\.lateral\.(\d+)\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"fpn\.output\.(\d+)\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"rpn\.conv\.", "rpn.head.conv.0.0."),
    (r"rpn\.objectness\.", "rpn.head.cls_logits."),
    (r"rpn\.deltas\.", "rpn.head.bbox_pred."),
    (r"box_trunk\.", "roi_heads.box_head."),
    (r"box_predictor\.", "roi_heads.box_predictor."),
    (r"mask_head\.convs\.(\d+)\.", r"roi_heads.mask_head.\1.0."),
    (r"mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"mask_head\.logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
    (r"keypoint_head\.convs\.(\d+)\.", lambda m: f"roi_heads.keypoint_head.{2 * int(m[1])}."),
    (r"keypoint_head\.deconv\.", "roi_heads.keypoint_predictor.kps_score_lowres."),
)
# The published detectors (torchvision.models.detection): the first eight digits of the file's SHA-256, which end its
# name, and the eps that torchvision gives its frozen norms after loading it (overwrite_eps in its source).
PUBLISHED = {
    "fasterrcnn_resnet50_fpn_coco-258fb6c6": 0.0,
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e": 0.0,
    "keypointrcnn_resnet50_fpn_coco-fc266e95": 0.0,
    "keypointrcnn_resnet50_fpn_coco-9f466800": 1e-5,  # COCO_LEGACY: its eps is left alone
}
V2_DIFFERENCES = (
    "the RPN head has two 3x3 convolutions, not one",
    "the box head is four 3x3 convolutions with batch norm and one fully connected layer, not two of these",
    "the mask head's four convolutions have batch norm and no bias",
    "the FPN's convolutions have batch norm and no bias",
    "the backbone's batch norm trains, with pretrained weights too",
)
_V2_NAMES = (
    r"rpn\.head\.conv\.1\.|roi_heads\.box_head\.\d+\.|roi_heads\.mask_head\.\d+\.1\.|"
    r"backbone\.fpn\.(inner|layer)_blocks\.\d+\.1\."
)


def renamed_torchvision(file: WeightFile) -> Renamed:
    """A torchvision R-CNN's tensors under our names.

    Raises:
        ValueError: a ``_v2`` detector, which is another architecture; lists what differs.
    """
    if any(re.match(_V2_NAMES, name) for name in file.tensors):
        raise ValueError(
            f"weights {file.name} are of a _v2 builder of torchvision, another architecture: "
            f"{'; '.join(V2_DIFFERENCES)}. Take the detector without _v2"
        )
    return rename(file, RULES)


def torchvision_fields(file: WeightFile | str | Path) -> dict:
    """The configuration that a torchvision detector's weights need beside ``conventions="torchvision"``.

    The published COCO files were trained on a frozen batch norm without eps: torchvision sets eps to 0 when it loads
    them, by their enum, not by their contents. A detector of one's own, trained by today's builders, has 1e-5; but one
    that was fine-tuned from a published file keeps its 0, which no file tells: give ``norm_eps=0.0`` yourself.

    Args:
        file: a path, or what :func:`read_weights` gave. A file is known by its name, or by its SHA-256 if it was
            renamed.

    Returns:
        ``norm`` and ``norm_eps`` for a published file; nothing for any other.
    """
    path = file.path if isinstance(file, WeightFile) else Path(file)
    if path is None:
        return {}
    eps = next((eps for name, eps in PUBLISHED.items() if path.name.startswith(name)), None)
    if eps is None and path.is_file():
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        eps = next((eps for name, eps in PUBLISHED.items() if digest.startswith(name.rpartition("-")[2])), None)
    return {} if eps is None else {"norm": "frozen", "norm_eps": eps}


def export_torchvision_weights(model) -> dict[str, torch.Tensor]:
    """Our weights under torchvision's names, so that ``torchvision_model.load_state_dict(...)`` takes them, strictly.

    Args:
        model: a model on a feature pyramid of a ResNet, with the FCN mask head and a mask per class, if any.

    Returns:
        name -> tensor, detached and sharing memory with the model.

    Raises:
        ValueError: the model has a part that torchvision's R-CNNs have not; names it.
    """
    config = model.config
    for name, value in {"neck": "fpn", "mask_head": "fcn", "mask_classes": "specific", "stages": "both"}.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}: torchvision's R-CNNs have {value!r} only, so these weights have "
                "no place there"
            )
    if not config.backbone.startswith("resne") or config.norm == "group":
        raise ValueError(
            f"backbone {config.backbone!r} with norm {config.norm!r} has no names in torchvision: export a ResNet with "
            "batch or frozen norm"
        )
    if config.stride_in_1x1 and config.backbone != "resnet18":
        raise ValueError("stride_in_1x1 is True: torchvision's blocks have it in the 3x3, so results would differ")
    own = WeightFile({name: tensor.detach() for name, tensor in model.state_dict().items()})
    return rename(own, BACK).tensors
