"""The same Mask R-CNN twice, torchvision's and ours with its weights, an image and objects for both."""

from dataclasses import dataclass
from unittest import mock

import torch

from mrcnn_scratch import build_model, load_torchvision_weights

NAMES = {"R50-FPN": "resnet50", "R101-FPN": "resnet101"}


@dataclass(frozen=True)
class Pair:
    """Two models that answer alike."""

    theirs: torch.nn.Module | None
    ours: torch.nn.Module | None


def make_pair(name: str, device: torch.device, only: str | None = None) -> Pair:
    """torchvision's detector with frozen norms, as its published weights have it, and ours in channels_last.

    Args:
        name: "R50-FPN" or "R101-FPN".
        only: "torchvision" or "ours" leaves the other model out (None in its place), to measure memory; ours then has
            weights of its own.
    """
    if only == "ours":
        ours = build_model(name, conventions="torchvision").to(device, memory_format=torch.channels_last)
        return Pair(None, ours)
    from torchvision.models.detection import MaskRCNN, backbone_utils
    from torchvision.ops import FrozenBatchNorm2d

    body = backbone_utils.resnet_fpn_backbone(
        backbone_name=NAMES[name], weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    theirs = MaskRCNN(body, 91)
    _spread(theirs)
    if only == "torchvision":
        return Pair(theirs.to(device), None)
    ours = build_model(name, conventions="torchvision").to(memory_format=torch.channels_last)
    load_torchvision_weights(ours, theirs.state_dict())
    return Pair(theirs.to(device), ours.to(device))


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Norms that keep activations of order one, and scores far enough apart for a hundred detections."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator) - 0.5
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.4 * noise)
        elif name.endswith("running_mean"):
            tensor.copy_(0.2 * noise)
        elif ".bn3.weight" in name:  # the end of a residual branch: small, or their sum explodes
            tensor.copy_(0.2 + 0.1 * noise)
        elif any(part in name for part in ("fc6.weight", "fc7.weight", "cls_score.weight", "rpn.head.conv.0.0.weight")):
            gain = 6 if "cls_score" in name else 1  # scores up to 0.4, not all 1/91
            tensor.copy_(noise * 2 * gain * (6 / tensor[0].numel()) ** 0.5)  # He's, so that anchors differ
        elif "cls_logits.weight" in name:
            tensor.copy_(0.2 * noise)


def picture(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(3, height, width): smooth blobs with detail, seeded."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, height // 32, width // 32, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (smooth + 0.1 * torch.rand(3, height, width, generator=generator)).clamp(0, 1).to(device)


def truth(height: int, width: int, device: torch.device) -> dict:
    """Eight objects that fill their boxes."""
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(8, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat([corner, corner + 40 + torch.rand(8, 2, generator=generator) * 0.3 * min(height, width)], dim=1)
    masks = torch.zeros(8, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": torch.arange(1, 9), "masks": masks}
    return {name: value.to(device) for name, value in target.items()}


def same_detections(ours: dict, theirs: dict, reach: float = 1e-2) -> dict:
    """How many detections have a partner of their label within `reach` px, and how far these are apart at most."""
    if not len(theirs["boxes"]) == len(ours["boxes"]) > 0:
        return {"detections": len(theirs["boxes"]), "paired": 0}
    gap = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(dim=2)
    gap[ours["labels"][:, None] != theirs["labels"]] = torch.inf
    best, index = gap.min(dim=1)
    paired = best <= reach
    if not paired.any():
        return {"detections": len(theirs["boxes"]), "paired": 0}
    return {
        "detections": len(theirs["boxes"]), "paired": int(paired.sum()), "pixels": float(best[paired].max()),
        "score": float((ours["scores"] - theirs["scores"][index])[paired].abs().max()),
        "mask": float((ours["masks"] - theirs["masks"][index])[paired].abs().max()),
    }  # fmt: skip


def loss_difference(pair: Pair, images: list[torch.Tensor], targets: list[dict]) -> float:
    """The largest relative difference of a loss, with the same sampled anchors and RoIs."""
    names = {"loss_rpn_box": "loss_rpn_box_reg", "loss_box": "loss_box_reg"}
    first = mock.patch.object(torch, "randperm", lambda n, **more: torch.arange(n, device=more.get("device")))
    with first, torch.no_grad():
        theirs, ours = (model(images, [dict(each) for each in targets]) for model in (pair.theirs, pair.ours))
    pairs = [(float(loss), float(theirs[names.get(name, name)])) for name, loss in ours.items()]
    return max(abs(a - b) / abs(b) for a, b in pairs)
