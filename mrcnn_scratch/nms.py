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
        return order[_sweep_numba(boxes, iou_threshold)]
    return order[_sweep_torch(boxes, iou_threshold)]


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


def _sweep(boxes, threshold, keep):
    """Clear keep[j] for each box that a better one suppresses. boxes (R, 4), best first; keep (R,) uint8, all ones.

    Written for Numba, see `_compiled_sweep`. The inner loop has no branch, so it becomes SIMD: it compares a kept box
    with *every* later one. Two boxes without area have no IoU (0 / 0 exceeds nothing): both stay.
    """
    R = boxes.shape[0]
    x1, y1, x2, y2 = boxes[:, 0].copy(), boxes[:, 1].copy(), boxes[:, 2].copy(), boxes[:, 3].copy()
    area = (x2 - x1) * (y2 - y1)
    zero = area.dtype.type(0)
    for i in range(R):
        if keep[i] == 0:
            continue
        left, top, right, bottom, size = x1[i], y1[i], x2[i], y2[i], area[i]
        n = i + 1  # views: for all the compiler knows, an index i + 1 + j could be negative, and that is no SIMD
        lefts, tops, rights, bottoms, areas, stays = x1[n:], y1[n:], x2[n:], y2[n:], area[n:], keep[n:]
        for j in range(len(stays)):
            width = (right if right < rights[j] else rights[j]) - (left if left > lefts[j] else lefts[j])
            height = (bottom if bottom < bottoms[j] else bottoms[j]) - (top if top > tops[j] else tops[j])
            shared = (width if width > zero else zero) * (height if height > zero else zero)
            stays[j] = 0 if shared / (size + areas[j] - shared) > threshold else stays[j]


def _threshold_for(dtype, iou_threshold: float):
    """The largest number of that precision that is not above the threshold: IoU > either is then the same question."""
    rounded = dtype.type(iou_threshold)
    return rounded if float(rounded) <= iou_threshold else np.nextafter(rounded, dtype.type(-1))


def _sweep_numba(boxes: Tensor, iou_threshold: float) -> Tensor:
    boxes = boxes.contiguous().numpy()
    keep = np.ones(len(boxes), np.uint8)
    _compiled_sweep()(boxes, _threshold_for(boxes.dtype, iou_threshold), keep)
    return torch.from_numpy(keep).bool()


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
        iou = (shared / (area[i] + area[i + 1 :] - shared)).double()
        keep[i + 1 :] &= ~(iou > threshold)
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

    return compiled(_sweep, error_model="numpy")


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
