"""Non-maximum suppression: of boxes that overlap too much, keep the one with the best score."""

import functools
import warnings

import numpy as np
import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS: take boxes best first, and drop every later box whose IoU with a kept one exceeds the threshold.

    Two boxes [0, 0, 2, 1] and [1, 0, 3, 1] share 1 of 3 pixels: both stay at 0.34, the worse one goes at 0.33.

    Args:
        boxes: (R, 4) float xyxy, pixels.
        scores: (R,) float. Boxes of equal score are taken in their order.
        iou_threshold: between 0 and 1; an IoU equal to it does not suppress.
    Returns: (D,) int64 indices of the boxes that stay, best first.
    Raises: ValueError for shapes that do not fit, values that are not finite, or a threshold outside [0, 1].
    """
    _check(boxes, scores, iou_threshold)
    boxes, scores = boxes.detach(), scores.detach()
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes.to(torch.float64 if boxes.dtype == torch.float64 else torch.float32)[order]
    if boxes.device.type == "cpu" and _numba_works():
        keep = torch.from_numpy(_compiled_sweep()(boxes.contiguous().numpy(), float(iou_threshold)))
    else:
        keep = _sweep_torch(boxes, iou_threshold)
    return order[keep]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each group: boxes of different classes (or levels, or images) never suppress each other.

    Groups are taken one by one. The usual trick, to move each group far from the others and call NMS once, changes
    coordinates enough to change IoUs, and overflows half precision.

    Args: as in `nms`, and idxs: (R,) integers, the group of each box.
    Returns: (D,) int64 indices of the boxes that stay, of all groups, best first.
    """
    _check(boxes, scores, iou_threshold)
    if idxs.shape != scores.shape:
        raise ValueError(f"idxs must have one group per box: shape {tuple(idxs.shape)} for {len(scores)} scores")
    keep = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for group in idxs.unique():
        members = (idxs == group).nonzero()[:, 0]
        keep.append(members[nms(boxes[members], scores[members], iou_threshold)])
    keep = torch.cat(keep).sort().values  # by index first, so that ties in score stay in order
    return keep[scores.detach()[keep].argsort(descending=True, stable=True)]


def _sweep(boxes, threshold):
    """Which of the boxes, sorted best first, stay: (R,) bool. Plain Python; runs compiled, see `_compiled_sweep`."""
    R = boxes.shape[0]
    keep = np.ones(R, np.bool_)
    x1, y1, x2, y2 = boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy()
    area = (x2 - x1) * (y2 - y1)
    for i in range(R):
        if not keep[i]:
            continue
        for j in range(i + 1, R):
            width = min(x2[i], x2[j]) - max(x1[i], x1[j])
            height = min(y2[i], y2[j]) - max(y1[i], y1[j])
            shared = max(width, 0) * max(height, 0)
            if shared > threshold * (area[i] + area[j] - shared):
                keep[j] = False
    return keep


def _sweep_torch(boxes: Tensor, threshold: float) -> Tensor:
    """`_sweep` for any device: one vectorised step per kept box."""
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in range(len(boxes)):
        if not keep[i]:
            continue
        low = torch.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        high = torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        keep[i + 1 :] &= ~(shared / (area[i] + area[i + 1 :] - shared) > threshold)
    return keep


@functools.cache
def _numba_works() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        warnings.warn(f"numba cannot be imported ({error}): NMS falls back to torch", stacklevel=3)
        return False
    return True


@functools.cache
def _compiled_sweep():
    from ._numba import compiled

    return compiled(_sweep)


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (R, 4), xyxy; got {tuple(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores must have one value per box: shape {tuple(scores.shape)} for {len(boxes)} boxes")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie between 0 and 1, got {iou_threshold}")
    if not bool(boxes.isfinite().all() & scores.isfinite().all()):
        bad = int((~(boxes.isfinite().all(dim=1) & scores.isfinite())).nonzero()[0, 0])
        raise ValueError(
            f"box {bad} = {boxes[bad].tolist()} with score {float(scores[bad])} is not finite; drop it before NMS"
        )
