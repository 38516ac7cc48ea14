"""Mask head (Mask R-CNN, section 3): a small binary mask for every class, of which one is used.

Module, targets, loss, inference, in that order.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import init_convolutions
from .roi_ops import roi_align


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution that doubles the side, a 1x1 per class (figure 4).

    Args:
        in_channels: of the pooled features.
        channels: of the hidden layers.
        convs: how many 3x3 convolutions: 4 with FPN, 0 after res5 (C4).
        num_classes: K, with the background, whose mask is never used.
    """

    def __init__(self, in_channels: int, channels: int, convs: int, num_classes: int):
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.deconv = nn.ConvTranspose2d(widths[-1], channels, 2, 2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        init_convolutions(self)
        nn.init.kaiming_normal_(self.logits.weight, nonlinearity="linear")  # by fan-in: K is too few outputs to go by

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, C, m, m) -> logits (R, K, 2m, 2m)."""
        for conv in self.convs:
            pooled = torch.relu(conv(pooled))
        return self.logits(torch.relu(self.deconv(pooled)))


def mask_targets(
    masks: torch.Tensor,
    matched: torch.Tensor,
    rois: torch.Tensor,
    size: int,
    aligned: bool = True,
    binary: bool = False,
) -> torch.Tensor:
    """What the mask branch should paint in each RoI: the RoI's crop of its ground-truth mask.

    The crop is RoIAlign of the mask, so it keeps sub-pixel edges as values between 0 and 1. It is cut out by the
    RoI, not by the object's box: "the intersection between an RoI and its associated ground-truth mask".

    Args:
        masks: (G, H, W) 0/1, one image's.
        matched: (P,) int64 index of each RoI's mask.
        rois: (P, 4) xyxy, pixels.
        size: of the target, cells a side.
        aligned: False shifts by half a pixel, as torchvision does.
        binary: cut at 0.5, as Detectron2 does.

    Returns:
        (P, size, size) in [0, 1], the dtype of ``rois``.
    """
    boxes = torch.cat([matched.to(rois.dtype)[:, None], rois], dim=1)  # (P, 5): the mask takes the image's place
    targets = roi_align(masks[:, None].to(rois.dtype), boxes, size, 1.0, aligned=aligned, sampling_ratio=0)[:, 0]
    return (targets >= 0.5).to(rois.dtype) if binary else targets


def mask_loss(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy on the mask of the true class alone: masks do not compete (section 3, L_mask).

    Args:
        logits: (P, K, M, M) of the positive RoIs.
        labels: (P,) int64, from 1.
        targets: (P, M, M) in [0, 1].

    Returns:
        scalar; a finite zero in the graph when P is 0.
    """
    if len(logits) == 0:
        return logits.sum() * 0
    own = logits[torch.arange(len(labels), device=labels.device), labels]  # (P, M, M)
    return F.binary_cross_entropy_with_logits(own, targets.to(own.dtype))


def select_masks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probabilities of the predicted class's mask.

    Args:
        logits: (D, K, M, M).
        labels: (D,) int64, predicted.

    Returns:
        (D, M, M) in [0, 1].
    """
    return logits[torch.arange(len(labels), device=labels.device), labels].float().sigmoid()


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], legacy: bool = False) -> torch.Tensor:
    """Resizes each mask to its box and puts it into the image (section 3.1, inference).

    The centre of pixel (y, x) is (y + .5, x + .5); in a mask of M cells over a box of width w it falls on cell
    coordinate (x + .5 - x1) / w * M. Bilinear between cells; outside the mask is 0.

    Args:
        masks: (D, M, M) probabilities.
        boxes: (D, 4) xyxy, pixels.
        size: height and width of the image, pixels.
        legacy: torchvision's way: the mask padded by a cell, the box cut to integers and grown by a pixel.

    Returns:
        (D, H, W) in [0, 1]; at least 0.5 is the object.
    """
    height, width = size
    canvas = masks.new_zeros(len(masks), height, width)
    if legacy:
        masks, boxes = _legacy_boxes(masks, boxes)
    for mask, box, image in zip(masks, boxes.double().tolist(), canvas, strict=True):
        x1, y1, x2, y2 = box
        left, right = max(int(x1 // 1), 0), min(int(-(-x2 // 1)), width)
        top, bottom = max(int(y1 // 1), 0), min(int(-(-y2 // 1)), height)
        if left >= right or top >= bottom or x1 >= x2 or y1 >= y2:  # outside the image, or empty
            continue
        y = ((torch.arange(top, bottom, device=mask.device) + 0.5 - y1) / (y2 - y1) * 2 - 1).to(mask.dtype)  # (h,)
        x = ((torch.arange(left, right, device=mask.device) + 0.5 - x1) / (x2 - x1) * 2 - 1).to(mask.dtype)  # (w,)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2) in [-1, 1]
        patch = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        image[top:bottom, left:right] = patch
    return canvas


def _legacy_boxes(masks: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Detectron's pasting: one empty cell around the mask, the box grown alike, truncated, plus one pixel."""
    M = masks.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * (M + 2) / M
    grown = torch.cat([centre - half, centre + half], dim=1).trunc()
    grown[:, 2:] += 1  # converts "last pixel" to "end"
    return F.pad(masks, (1, 1, 1, 1)), grown
