"""Boxes as ``(N, 4)`` float tensors ``x1, y1, x2, y2`` in pixels, and the deltas that move them.

Coordinates are continuous: pixel i covers [i, i+1), a box's width is x2 - x1, and nothing here adds 1.
"""

import math

import torch

# A box may grow by at most 1000/16 = 62.5 times in one regression (Detectron's choice; the paper is silent).
MAX_LOG_SCALE = math.log(1000.0 / 16)  # 4.135


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32, in which geometry and scores are computed; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """Area of each box; ``[0, 0, 1, 1]`` has area 1.

    Args:
        boxes: (N, 4) xyxy, pixels.

    Returns:
        (N,) in square pixels.
    """
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def box_intersection(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Area shared by every pair of boxes.

    Args:
        boxes1: (N, 4) xyxy, pixels.
        boxes2: (M, 4) xyxy, pixels.

    Returns:
        (N, M) in square pixels.
    """
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])  # (N, M, 2)
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])  # (N, M, 2)
    return (bottom_right - top_left).clamp(min=0).prod(dim=2)


def box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of boxes; 0 where both boxes are empty.

    ``[0, 0, 2, 2]`` and ``[1, 1, 3, 3]`` share 1 of 7 square pixels: 0.1429.

    Args:
        boxes1: (N, 4) xyxy, pixels.
        boxes2: (M, 4) xyxy, pixels.

    Returns:
        (N, M) in [0, 1].
    """
    shared = box_intersection(boxes1, boxes2)  # (N, M)
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :] - shared
    return torch.where(union > 0, shared / union.where(union > 0, torch.ones_like(union)), torch.zeros_like(union))


def box_ioa(boxes: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Share of each box that lies in each region: what COCO uses instead of IoU where the region is a crowd.

    Args:
        boxes: (N, 4) xyxy, pixels.
        regions: (M, 4) xyxy, pixels.

    Returns:
        (N, M) in [0, 1].
    """
    return box_intersection(boxes, regions) / box_area(boxes).clamp(min=1e-12)[:, None]


def clip_boxes_to_image(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Moves corners that lie outside the image onto its border.

    Args:
        boxes: (..., 4) xyxy, pixels.
        size: image height and width, pixels: of the image itself, not of the padded batch.

    Returns:
        (..., 4), x in [0, W], y in [0, H].
    """
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)  # (..., 2)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def large_enough(boxes: torch.Tensor, min_size: float) -> torch.Tensor:
    """Indices of the boxes whose two sides exceed ``min_size`` (0: those that are not empty).

    Args:
        boxes: (N, 4) xyxy, pixels.
        min_size: pixels.

    Returns:
        (M,) int64.
    """
    sides = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    return torch.where((sides > min_size).all(dim=1))[0]


def encode_boxes(
    reference_boxes: torch.Tensor, proposals: torch.Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> torch.Tensor:
    """Deltas that move each proposal onto its reference box (R-CNN, appendix C; Faster R-CNN, eq. 2).

    A proposal 10 wide whose reference is 20 wide and centred 5 to the right has dx = 0.5, dw = log 2.

    Args:
        reference_boxes: (N, 4) xyxy, pixels: the ground truth.
        proposals: (N, 4) xyxy, pixels: anchors or RoIs, of positive size.
        weights: multiply dx, dy, dw, dh so that each has about unit variance: (10, 10, 5, 5) in the heads.

    Returns:
        (N, 4) dx, dy, dw, dh: no unit.
    """
    size = proposals[:, 2:] - proposals[:, :2]  # (N, 2) width, height
    centre = proposals[:, :2] + 0.5 * size
    reference_size = reference_boxes[:, 2:] - reference_boxes[:, :2]
    reference_centre = reference_boxes[:, :2] + 0.5 * reference_size
    deltas = torch.cat([(reference_centre - centre) / size, torch.log(reference_size / size)], dim=1)
    return deltas * deltas.new_tensor(weights)


def decode_boxes(
    deltas: torch.Tensor, proposals: torch.Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> torch.Tensor:
    """Applies deltas to boxes: the inverse of :func:`encode_boxes`.

    dw and dh are cut at log(1000/16) so that an untrained network cannot overflow exp.

    Args:
        deltas: (N, 4) or (N, K, 4), one set per class: dx, dy, dw, dh.
        proposals: (N, 4) xyxy, pixels.
        weights: those of the encoding.

    Returns:
        the shape of ``deltas``, xyxy, pixels; float32 at least, since fp16 loses half a pixel above 1024.
    """
    deltas, proposals = at_least_float32(deltas), at_least_float32(proposals.to(deltas.device))
    size = proposals[:, 2:] - proposals[:, :2]  # (N, 2)
    centre = proposals[:, :2] + 0.5 * size
    if deltas.dim() == 3:
        size, centre = size[:, None], centre[:, None]  # (N, 1, 2): broadcast over classes
    deltas = deltas / deltas.new_tensor(weights)
    new_centre = centre + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat([new_centre - half, new_centre + half], dim=-1)
