"""A torchvision detector and ours with the same weights, and pictures and objects of odd sizes to run both on."""

from dataclasses import dataclass

import torch
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, _utils, backbone_utils
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_scratch import build_model, load_torchvision_weights

CLASSES, JOINTS = 6, 5
# Small, so that float64 is quick; what the two call alike, and what they do not
SIZES = {"min_size": 96, "max_size": 136}
THEIRS = {"rpn_post_nms_top_n_train": 150, "rpn_post_nms_top_n_test": 150, "box_batch_size_per_image": 32,
          "box_detections_per_img": 16}  # fmt: skip
OURS = {"rpn_post_nms_train": 150, "rpn_post_nms_test": 150, "roi_batch": 32, "detections_per_image": 16}
KINDS = {"faster": FasterRCNN, "mask": MaskRCNN, "keypoint": KeypointRCNN}
NAMES = {"resnet50": "R50-FPN", "resnet101": "R101-FPN", "resnext101_32x8d": "X101-32x8d-FPN"}


@dataclass(frozen=True)
class Pair:
    """The same detector twice, in eval mode."""

    theirs: torch.nn.Module
    ours: torch.nn.Module
    kind: str


def make_pair(kind: str, backbone: str, norm: str, eps: float, dtype=torch.float64) -> Pair:
    """torchvision's detector `kind` with random weights and statistics, and ours loaded from its state dict."""
    layer = FrozenBatchNorm2d if norm == "frozen" else torch.nn.BatchNorm2d
    body = backbone_utils.resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=layer, trainable_layers=3
    )
    more = {"num_keypoints": JOINTS} if kind == "keypoint" else {}
    theirs = KINDS[kind](body, CLASSES, **more, **SIZES, **THEIRS)
    if eps == 0:
        _utils.overwrite_eps(theirs, 0.0)  # what torchvision does when it loads its published weights
    randomise(theirs)
    joints = JOINTS if kind == "keypoint" else 0
    ours = build_model(
        NAMES[backbone], CLASSES, kind == "mask", joints, conventions="torchvision", norm=norm, norm_eps=eps,
        **SIZES, **OURS,
    )  # fmt: skip
    load_torchvision_weights(ours, theirs.state_dict())
    return Pair(theirs.to(dtype).eval(), ours.to(dtype).eval(), kind)


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Every weight random, nothing zero, in a range that keeps activations of order one through a hundred layers."""
    generator = torch.Generator().manual_seed(5)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            uniform(tensor, 0.6, 1.6)
        elif name.endswith("running_mean"):
            uniform(tensor, -0.2, 0.2)
        elif ".bn3.weight" in name:  # the end of a residual branch: small, or the sum of 33 of them explodes
            uniform(tensor, 0.1, 0.3)
        elif (".bn" in name or "downsample.1" in name) and name.endswith("weight"):
            uniform(tensor, 0.7, 1.3)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            uniform(tensor, -0.1, 0.1)
        elif "cls_logits" in name or "cls_score" in name:  # spread, but not so far that a sigmoid is 1 and ties
            uniform(tensor, -0.04, 0.04)
        elif "bbox_pred" in name:
            uniform(tensor, -0.02, 0.02)
        elif tensor.is_floating_point() and "bn" not in name:
            fan = tensor[0].numel()
            uniform(tensor, -((6 / fan) ** 0.5), (6 / fan) ** 0.5)


def pictures(dtype=torch.float64) -> list[torch.Tensor]:
    """Two images of different odd sizes, smooth enough to have structure: one portrait, one landscape."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for height, width in ((97, 131), (141, 103)):
        coarse = torch.rand(1, 3, 9, 11, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
        images.append(fine.to(dtype))
    return images


def objects(kind: str, dtype=torch.float64) -> list[dict]:
    """Ground truth for :func:`pictures`: three objects and two."""
    generator = torch.Generator().manual_seed(4)
    targets = []
    for (height, width), boxes in (
        ((97, 131), [[10.5, 7, 60, 80.25], [70, 20, 128, 90], [5, 60, 33, 95]]),
        ((141, 103), [[20, 30.5, 90, 120], [3, 4, 40.75, 50]]),
    ):
        box = torch.tensor(boxes, dtype=dtype)
        target = {"boxes": box, "labels": torch.tensor([1, 4, 2][: len(box)])}
        if kind == "mask":
            rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
            target["masks"] = torch.stack([
                (((columns - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((rows - (y1 + y2) / 2) / (y2 - y1)) ** 2 < 0.25).byte()
                for x1, y1, x2, y2 in boxes
            ])  # fmt: skip
        if kind == "keypoint":
            place = torch.rand(len(box), JOINTS, 2, generator=generator).to(dtype)
            points = box[:, None, :2] + place * (box[:, None, 2:] - box[:, None, :2])
            seen = torch.randint(0, 3, (len(box), JOINTS, 1), generator=generator).to(dtype)
            target["keypoints"] = torch.cat([points, seen], dim=2).float()  # torchvision takes no other
        targets.append(target)
    return targets
