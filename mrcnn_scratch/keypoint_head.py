"""Keypoint head (Mask R-CNN, section 5): one heatmap per keypoint, whose target is a single hot cell.

Module, targets, loss, inference, in that order.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .boxes import at_least_float32
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
            pooled = conv(pooled).relu_()
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
    logits = at_least_float32(logits)  # fp16 has no half pixels above 1024
    corner, size = boxes[:, :2].double(), (boxes[:, 2:].double() - boxes[:, :2].double()).clamp(min=1)  # (D, 2) x, y
    pixels = size.ceil().long()
    row, column, scores = best_pixels(logits, pixels[:, 1], pixels[:, 0])  # (D, J) each
    centre = torch.stack([column, row], dim=2) + 0.5  # (D, J, 2), pixels of the box
    points = corner[:, None] + centre * (size / pixels)[:, None]
    return torch.cat([points.to(logits.dtype), torch.ones_like(scores)[:, :, None]], dim=2), scores


def best_pixels(
    logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest value of each heatmap resized to rows x columns pixels (bicubic), and where it is.

    On a CPU by the compiled search, which never stores the resized heatmaps; it differs by rounding.

    Args:
        logits: (D, J, S, S), float32 or float64.
        rows, columns: (D,) int64, pixels.

    Returns:
        row (D, J) int64, column (D, J) int64, value (D, J).
    """
    if logits.device.type == "cpu":
        try:
            from .keypoints_cpu import best_pixels as search
        except ImportError:  # no Numba here: slower, the same points
            return best_pixels_torch(logits, rows, columns)
        return search(logits, rows, columns)
    return best_pixels_torch(logits, rows, columns)


def best_pixels_torch(
    logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`best_pixels` to be read, on any device."""
    D, J = logits.shape[:2]
    best, scores = rows.new_zeros(D, J), logits.new_zeros(D, J)
    for index, size in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        heat = F.interpolate(logits[index : index + 1], size=size, mode="bicubic", align_corners=False)
        scores[index], best[index] = heat[0].flatten(1).max(dim=1)  # (J,)
    width = columns[:, None]
    return best.div(width, rounding_mode="floor"), best % width, scores
