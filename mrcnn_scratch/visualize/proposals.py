"""What an RPN is asked and what it answers, drawn on the image: sampled anchors, and proposals that hit or miss."""

import torch
from matplotlib.axes import Axes

from ..boxes import box_iou
from .panels import draw_boxes
from .style import INK, PALETTE, show_image

HIT, MISS, BACKGROUND = PALETTE[0], PALETTE[1], PALETTE[3]


def show_samples(axes: Axes, image: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> None:
    """The anchors of a mini-batch: those on objects thick and green, those on background thin and blue.

    Args:
        axes: where.
        image: (3, H, W) float in [0, 1], drawn pale.
        positive: (P, 4) xyxy, pixels.
        negative: (M, 4) xyxy, pixels.
    """
    _pale(axes, image)
    draw_boxes(axes, negative, BACKGROUND, linewidth=0.8)
    draw_boxes(axes, positive, HIT, linewidth=2.2)


def show_proposals(axes: Axes, image: torch.Tensor, proposals: torch.Tensor, truth: torch.Tensor) -> int:
    """What recall counts: for each object (dashed) its best proposal, thick and green if it has an IoU of 0.5 or more.

    All other proposals are thin and orange.

    Args:
        axes: where.
        image: (3, H, W) float in [0, 1], drawn pale.
        proposals: (R, 4) xyxy, pixels; give the best few.
        truth: (G, 4) xyxy, pixels.

    Returns:
        how many objects are found.
    """
    best = torch.zeros(len(proposals), dtype=torch.bool)
    found = 0
    if len(proposals) and len(truth):
        iou, which = box_iou(truth, proposals).max(dim=1)  # (G,), (G,)
        best[which[iou >= 0.5]] = True
        found = int((iou >= 0.5).sum())
    _pale(axes, image)
    draw_boxes(axes, proposals[~best], MISS, linewidth=0.9, alpha=0.6)
    draw_boxes(axes, proposals[best], HIT, linewidth=2.4)
    draw_boxes(axes, truth, INK, linewidth=1.4, linestyle="--")
    return found


def _pale(axes: Axes, image: torch.Tensor) -> None:
    """The image as a background, and limits that hide what reaches over its border."""
    height, width = image.shape[-2:]
    show_image(axes, image * 0.45 + 0.55)
    axes.set(xlim=(0, width), ylim=(height, 0))
