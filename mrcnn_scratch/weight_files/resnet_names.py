"""ImageNet classifiers as backbones: torchvision's ResNets, and the MSRA and FAIR ones that Detectron2 starts from."""

import re

import torch

from .fill import TRACKED, Renamed, Rule, rename
from .reading import WeightFile

IMAGENET_RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # torchvision's, of intensities in 0..1
_MSRA_MEAN = tuple(value / 255 for value in (123.675, 116.28, 103.53))  # Detectron2's, reversed: ours is red first
_TORCHVISION: tuple[Rule, ...] = (
    (r"conv1\.", "backbone.stem.0."),
    (r"bn1\.", "backbone.stem.1."),
    (r"layer([1-4])\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
)
_CAFFE2_NORM = {
    "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "rm": "running_mean", "running_mean": "running_mean",
    "riv": "running_var", "running_var": "running_var",
}  # fmt: skip
_CAFFE2_LAYER = {
    "branch1": ("downsample.0", "downsample.1"), "branch2a": ("conv1", "bn1"), "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
}  # fmt: skip
_CLASSIFIER = r"(fc|linear|stem\.fc)\.(weight|bias)|(fc1000|pred|last_out_L1000)_[wb]|conv1_b|.*_momentum"


def detectron2_blocks(before: str, stages: dict[str, str], stem: str) -> tuple[Rule, ...]:
    """Rules for a ResNet as Detectron2 names it: each convolution holds its norm, the projection is the "shortcut".

    Args:
        before: pattern of what precedes the names.
        stages: pattern of a stage -> our name of it.
        stem: our name of the stem.
    """
    rules = [(before + r"stem\.conv1\.norm\.", f"{stem}.1."), (before + r"stem\.conv1\.(?=weight)", f"{stem}.0.")]
    for pattern, ours in stages.items():
        block = before + pattern + r"\.(\d+)\."
        rules += [
            (block + r"conv(\d)\.norm\.", rf"{ours}.\1.bn\2."),
            (block + r"conv(\d)\.(?=weight)", rf"{ours}.\1.conv\2."),
            (block + r"shortcut\.norm\.", rf"{ours}.\1.downsample.1."),
            (block + r"shortcut\.(?=weight)", rf"{ours}.\1.downsample.0."),
        ]
    return tuple(rules)


STAGES = {f"res{i + 2}": f"backbone.stages.{i}" for i in range(4)}
_DETECTRON2 = detectron2_blocks("", STAGES, "backbone.stem")
_CAFFE2: tuple[Rule, ...] = (
    (r"conv1_w$", "backbone.stem.0.weight"),
    (r"res_conv1_bn_(\w+)$", lambda m: f"backbone.stem.1.{_CAFFE2_NORM.get(m[1], m[1])}"),
    (
        r"res([2-5])_(\d+)_(branch1|branch2[abc])_w$",
        lambda m: f"backbone.stages.{int(m[1]) - 2}.{m[2]}.{_CAFFE2_LAYER[m[3]][0]}.weight",
    ),
    (
        r"res([2-5])_(\d+)_(branch1|branch2[abc])_bn_(\w+)$",
        lambda m: f"backbone.stages.{int(m[1]) - 2}.{m[2]}.{_CAFFE2_LAYER[m[3]][1]}.{_CAFFE2_NORM.get(m[4], m[4])}",
    ),
)
_SPELLINGS = {"conv1.weight": _TORCHVISION, "stem.conv1.weight": _DETECTRON2, "conv1_w": _CAFFE2}


def is_classifier(file: WeightFile) -> bool:
    """Whether a file holds an ImageNet ResNet alone, in one of the three spellings."""
    return any(name in file.tensors for name in _SPELLINGS)


def msra_fields(grouped: bool) -> dict:
    """What Detectron2's own ImageNet weights need: they see blue first, in 0..255 (its configs and model zoo).

    MSRA's ResNets have the stride in the 1x1 and no division by a deviation; FAIR's ResNeXt has both otherwise.

    Args:
        grouped: whether it is a ResNeXt.

    Returns:
        ``stride_in_1x1``, and ``mean`` and ``std`` as ours: red first, in 0..1.
    """
    std = tuple(value / 255 for value in ((58.395, 57.12, 57.375) if grouped else (1, 1, 1)))
    return {"stride_in_1x1": not grouped, "mean": _MSRA_MEAN, "std": std}


def renamed_classifier(file: WeightFile) -> tuple[Renamed, dict]:
    """A classifier's tensors under a backbone's names, red first, and the fields that they need of the configuration.

    Raises:
        ValueError: none of the three spellings.
    """
    rules = next((rules for name, rules in _SPELLINGS.items() if name in file.tensors), None)
    if rules is None:
        raise ValueError(
            f"weights {file.name} are no ImageNet ResNet: none of {', '.join(_SPELLINGS)} is in it; for a detector's "
            "weights use load_torchvision_weights or load_detectron2_weights"
        )
    renamed = rename(file, rules, _CLASSIFIER)
    first = renamed.tensors.get("backbone.stages.0.0.conv2.weight")
    if rules is _TORCHVISION or file.author == "torchvision":  # Detectron2's converter leaves the channels as they are
        return renamed, {"stride_in_1x1": False, **IMAGENET_RGB}
    red_first(renamed)
    return renamed, msra_fields(first is not None and first.shape[0] != first.shape[1])


def red_first(renamed: Renamed) -> None:
    """Turns the stem's input channels from blue, green, red to red, green, blue."""
    name = "backbone.stem.0.weight"
    if name in renamed.tensors:
        renamed.tensors[name] = renamed.tensors[name].flip(1)


def split_fused_norms(renamed: Renamed, eps: float) -> None:
    """Gives norms of a scale and a shift alone (Detectron's) the mean 0 and the variance that changes nothing."""
    for name in [name for name in renamed.tensors if re.search(r"(bn\d|stem\.1|downsample\.1)\.weight$", name)]:
        layer, like = name.removesuffix("weight"), renamed.tensors[name]
        if not any(layer + part in renamed.tensors for part in ("running_mean", "running_var", TRACKED)):
            for part, value in (("running_mean", 0.0), ("running_var", 1 - eps)):
                renamed.tensors[layer + part] = torch.full_like(like, value)
                renamed.origin[layer + part] = renamed.origin[name]


def last_stage_to_head(renamed: Renamed) -> None:
    """Moves res5 to where C4 models have it: on top of the RoIs."""
    for name in [name for name in renamed.tensors if name.startswith("backbone.stages.3.")]:
        ours = "box_trunk." + name.removeprefix("backbone.stages.3.")
        renamed.tensors[ours], renamed.origin[ours] = renamed.tensors.pop(name), renamed.origin.pop(name)
