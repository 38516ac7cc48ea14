"""A file of another code base -> our model, strictly: the three loaders."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .detectron2_names import detectron2_fields, renamed_detectron2, to_our_layout
from .fill import Renamed, check_fields, fill
from .identify import identify
from .reading import WeightFile, read_weights
from .resnet_names import IMAGENET_RGB, last_stage_to_head, renamed_classifier, split_fused_norms
from .torchvision_names import renamed_torchvision, torchvision_fields

Source = WeightFile | str | Path | Mapping[str, torch.Tensor]


def load_torchvision_weights(model, source: Source) -> None:
    """Loads the weights of a torchvision Faster, Mask or Keypoint R-CNN, strictly and by name.

    Today's names and those of files before torchvision 0.13 (all the published ones) are read. Build the model with
    ``conventions="torchvision"`` for torchvision's results.

    Args:
        model: ``build_model("R50-FPN", num_classes, masks, keypoints, conventions="torchvision")``, or R18-FPN,
            R101-FPN, X101-32x8d-FPN, X101-FPN.
        source: a file of ``torch.save`` or a safetensors file, or torchvision's ``state_dict()``.

    Raises:
        ValueError: a name is missing or unexpected, a shape or a value is wrong, or the model's stride or eps are not
            those of the weights: each is named, with what to do. The model is then as it was.
    """
    file = read_weights(source)
    renamed = renamed_torchvision(file)
    needed = {"stride_in_1x1": False}
    published = torchvision_fields(file)
    if published:  # frozen or not makes no difference to inference; the eps does
        needed |= {"norm_eps": published["norm_eps"], **IMAGENET_RGB}
    check_fields(model.config, _without_stride_of_basic_blocks(needed, renamed), file)
    fill(model, renamed, file, lambda: describe_call(file, "torchvision"))


def load_detectron2_weights(model, source: Source, channels: str | None = None, expect: dict | None = None) -> None:
    """Loads the weights of a Detectron2 Faster, Mask or Keypoint R-CNN (C4 or FPN), strictly, by name and layout.

    The stem's channels turn to red first; the background's logit moves from the last row to row 0, where deltas and
    masks get a row of zeros that is never used; the RPN's channels follow our order of a cell's anchors, ratios
    slowest. Build the model with ``conventions="detectron2"``, and ``num_classes`` 81 for COCO.

    Args:
        model: ``build_model("R50-FPN", 81, masks, keypoints, conventions="detectron2")``, or R101-FPN, R50-C4,
            R101-C4, X101-32x8d-FPN.
        source: a ``.pkl`` of the model zoo, a ``.pth`` of a training, or Detectron2's ``state_dict()``.
        channels: "BGR" or "RGB", the training's INPUT.FORMAT; None takes the file's word, BGR where it has none.
        expect: fields that the model must have; None is :func:`detectron2_fields`. Give your own if the training had
            another PIXEL_MEAN, PIXEL_STD or RESNETS.STRIDE_IN_1X1 than the model zoo.

    Raises:
        ValueError: a name is missing or unexpected, a shape or a value is wrong, or the model's stride, mean, std or
            anchors are not those of the weights: each is named, with what to do. The model is then as it was.
    """
    file = read_weights(source)
    if channels not in (None, "BGR", "RGB"):
        raise ValueError(f"channels is {channels!r}: give 'BGR' or 'RGB', as INPUT.FORMAT of the training")
    renamed = renamed_detectron2(file)
    needed = detectron2_fields(file) if expect is None else dict(expect)
    check_fields(model.config, _without_stride_of_basic_blocks(needed, renamed), file)
    to_our_layout(renamed, file, model.config, channels)
    fill(model, renamed, file, lambda: describe_call(file, "detectron2"))


def load_backbone_weights(model, source: Source) -> list[str]:
    """Starts a detector's backbone from an ImageNet classifier, strictly and by name.

    Read are torchvision's ``resnet18`` to ``resnext101_64x4d``, and Detectron2's R-50.pkl, R-101.pkl and
    X-101-32x8d.pkl (in Caffe2's names or its own), whose stem's channels are turned to red first. With neck "c4" the
    last stage becomes the head. The classifier's last layer has no place in a detector.

    Args:
        model: any model on a ResNet, with batch or frozen norm.
        source: the file, or the classifier's state dict.

    Returns:
        the names of the file that were left out.

    Raises:
        ValueError: a name is missing or unexpected, a shape or a value is wrong, or the model's stride, mean or std
            are not those of the weights: each is named, with what to do. The model is then as it was.
    """
    config = model.config
    if config.norm == "group" or not config.backbone.startswith("resne"):
        raise ValueError(
            f"the model's backbone is {config.backbone} with norm {config.norm!r}: ImageNet weights are read for a "
            "ResNet with batch or frozen norm"
        )
    file = read_weights(source)
    renamed, needed = renamed_classifier(file)
    check_fields(config, _without_stride_of_basic_blocks(needed, renamed), file)
    split_fused_norms(renamed, config.norm_eps)
    places = ("backbone.",)
    if config.neck == "c4":
        last_stage_to_head(renamed)
        places += ("box_trunk.",)
    remedy = f"The model's backbone is {config.backbone}: give weights of its own, or build another model"
    fill(model, renamed, file, lambda: remedy, wanted=lambda name: name.startswith(places))
    return renamed.ignored


def _without_stride_of_basic_blocks(fields: dict, renamed: Renamed) -> dict:
    """ResNet-18's blocks have no 1x1 to put the stride in: there it may be called either."""
    basic = "backbone.stages.0.0.conv3.weight" not in renamed.tensors
    return {name: value for name, value in fields.items() if not (basic and name == "stride_in_1x1")}


def describe_call(file: WeightFile, kind: str) -> str:
    """The end of an error: which model the weights would fit, if that can be told."""
    try:
        return f"The weights are of {identify(file).call}"
    except ValueError:
        return f'Build the model with the training\'s own fields and conventions="{kind}"'
