"""How many numbers a model learns, part by part, and whether they are as many as published."""

from dataclasses import dataclass

import torch
from torch import nn

from .backbones import make_backbone
from .config import ModelConfig
from .model import MaskRCNN
from .resnet import FrozenBatchNorm

PARTS = {
    "backbone": "backbone", "fpn": "FPN", "rpn": "RPN", "box_trunk": "box head", "box_predictor": "box head",
    "mask_head": "mask head", "keypoint_head": "keypoint head",
}  # fmt: skip
# (backbone, masks, keypoints) -> torchvision's detector, its classes, its parameters: with fixed norms, which have none
DETECTORS = {
    ("resnet50", False, 0): ("fasterrcnn_resnet50_fpn", 91, 41_755_286),
    ("resnet50", True, 0): ("maskrcnn_resnet50_fpn", 91, 44_401_393),
    ("resnet50", False, 17): ("keypointrcnn_resnet50_fpn", 2, 59_137_258),
}
# torchvision's classifiers of ImageNet's 1000 classes; EfficientNet-Lite0: the authors' file in its package
CLASSIFIERS = {
    "resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160, "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272, "efficientnet_lite0": 4_652_008,
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A published number of parameters beside ours of the same model."""

    what: str  # as published
    published: int
    ours: int

    def __str__(self) -> str:
        same = "equal" if self.ours == self.published else "DIFFERENT"
        return f"{self.what}: published {self.published:,}, ours {self.ours:,}: {same}"


def count(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def fixed_norms(module: nn.Module) -> int:
    """Scales and shifts of fixed batch norms: parameters where a norm trains, constants here."""
    norms = [norm for norm in module.modules() if isinstance(norm, FrozenBatchNorm)]
    return sum(norm.weight.numel() + norm.bias.numel() for norm in norms)


def count_parts(model: MaskRCNN) -> dict[str, int]:
    """Parameters of each part, in the order of a forward pass: "backbone", "FPN", "RPN", "box head", ..."""
    parts = dict.fromkeys(PARTS.values(), 0)
    for name, child in model.named_children():
        parts[PARTS[name]] += count(child)
    return {name: number for name, number in parts.items() if number}


def published_checks(config: ModelConfig) -> list[Check]:
    """What is published of a configuration, beside the same counts of ours, built without memory on torch's "meta".

    The whole detector where torchvision publishes one, with the classes of its weights; and the backbone as the
    ImageNet classifier that it begins as, with norms that train and the layer of 1000 classes.
    """
    checks = []
    with torch.device("meta"):
        known = DETECTORS.get((config.backbone, config.masks, config.keypoints))
        if known and config.neck == "fpn" and config.stages == "both" and config.norm != "group":
            name, classes, published = known
            ours = count(MaskRCNN(config.with_fields(num_classes=classes, norm="frozen")))
            checks.append(Check(f"torchvision's {name}, {classes} classes", published, ours))
        if config.backbone in CLASSIFIERS:
            ours = _classifier(config.backbone)
            what = f"{config.backbone} as a classifier of ImageNet's 1000 classes"
            checks.append(Check(what, CLASSIFIERS[config.backbone], ours))
    return checks


def _classifier(backbone: str) -> int:
    if backbone == "efficientnet_lite0":
        from .efficientnet_lite import EfficientNetLiteClassifier

        return count(EfficientNetLiteClassifier("batch"))
    body = make_backbone(ModelConfig(backbone=backbone, norm="batch"))
    return count(body) + (body.channels[-1] + 1) * 1000  # weights and biases of the last layer


def training_bytes(model: nn.Module, optimizer: str = "sgd") -> dict[str, int]:
    """Bytes that training holds whatever the images: "weights", "gradients", "momentum" (AdamW: two numbers each)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return {"weights": weights, "gradients": gradients, "momentum": gradients * (2 if optimizer == "adamw" else 1)}
