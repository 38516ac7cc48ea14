"""Keypoint head (Mask R-CNN, section 5): one heatmap per keypoint, whose target is a single hot cell.

Module, targets, loss, inference, in that order.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import init_convolutions


class KeypointHead(nn.Module):
    """3x3 convolutions, a deconvolution and a bilinear upsampling, each doubling the side: 14 -> 56.

    Args:
        in_channels: of the pooled features.
        channels: of the hidden layers, 512 in the paper.
        convs: how many, 8 in the paper.
        num_keypoints: J.
    """

    def __init__(self, in_channels: int, channels: int, convs: int, num_keypoints: int):
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.deconv = nn.ConvTranspose2d(widths[-1], num_keypoints, 4, 2, padding=1)
        init_convolutions(self)
        nn.init.normal_(self.deconv.weight, std=0.001)  # start with every cell equally likely

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, C, m, m) -> logits (R, J, 4m, 4m)."""
        for conv in self.convs:
            pooled = torch.relu(conv(pooled))
        return F.interpolate(self.deconv(pooled), scale_factor=2, mode="bilinear", align_corners=False)


def keypoint_targets(keypoints: torch.Tensor, rois: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The hot cell of each keypoint in each RoI's heatmap.

    A point at x in [x1, x2) lies in column floor((x - x1) * size / w); x == x2 counts as the last column.
    Labelled points inside the RoI are taught, hidden ones (v = 1) too, as in Detectron; all others are not.

    Args:
        keypoints: (R, J, 3) x, y in pixels, v in 0..2: those of each RoI's object.
        rois: (R, 4) xyxy, pixels.
        size: S, cells a side.

    Returns:
        cell (R, J) int64, row * S + column; valid (R, J) bool.
    """
    x1, y1, x2, y2 = rois[:, None].unbind(dim=2)  # (R, 1)
    x, y, visibility = keypoints.unbind(dim=2)  # (R, J)
    valid = (visibility > 0) & (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
    column = ((x - x1) * size / (x2 - x1)).floor().clamp(0, size - 1)
    row = ((y - y1) * size / (y2 - y1)).floor().clamp(0, size - 1)
    return (row * size + column).long() * valid, valid


def keypoint_loss(logits: torch.Tensor, cells: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Softmax loss over the S² cells of each heatmap, averaged over the labelled keypoints (section 5).

    Args:
        logits: (R, J, S, S).
        cells: (R, J) int64, the hot cell.
        valid: (R, J) bool.

    Returns:
        scalar; a finite zero in the graph when no keypoint is valid.
    """
    if not valid.any():
        return logits.sum() * 0
    return F.cross_entropy(logits.flatten(2)[valid], cells[valid])  # (V, S*S), (V,)


@torch.no_grad()
def decode_keypoints(logits: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely point of each heatmap, in the image.

    The heatmap is first resized to the box's own pixels (bicubic, as Detectron does), so that cells are about a
    pixel; cell i of n over [x1, x2) stands for x1 + (i + 0.5) * w / n.

    Args:
        logits: (D, J, S, S).
        boxes: (D, 4) xyxy, pixels.

    Returns:
        keypoints (D, J, 3) x, y in pixels and 1 in the third place, as torchvision has it; scores (D, J), the
        resized logit at the point.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # fp16 has no half pixels above 1024
    D, J = logits.shape[:2]
    points, scores = logits.new_ones(D, J, 3), logits.new_zeros(D, J)
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        w, h = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
        columns, rows = math.ceil(w), math.ceil(h)
        heat = F.interpolate(logits[index : index + 1], size=(rows, columns), mode="bicubic", align_corners=False)
        scores[index], best = heat[0].flatten(1).max(dim=1)  # (J,)
        points[index, :, 0] = x1 + (best % columns + 0.5) * (w / columns)
        points[index, :, 1] = y1 + (best.div(columns, rounding_mode="floor") + 0.5) * (h / rows)
    return points, scores
