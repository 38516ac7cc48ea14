"""Non-maximum suppression: of boxes that overlap too much, keep the one with the best score.

Backends: "reference" (plain loops, to be read), "torch" (vectorised, any device), "numba" (compiled, CPU) and "cuda"
(Numba CUDA kernels). All of them compute an IoU by the same operations in the same order and precision, so that they
keep the same boxes, to the last one.
"""

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "torch", "numba", "cuda")
BLOCK = 256  # boxes that the torch backend decides together


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, backend: str = "auto") -> Tensor:
    """Greedy NMS: take boxes best first, and drop every later box whose IoU with a kept one exceeds the threshold.

    Two boxes [0, 0, 2, 1] and [1, 0, 3, 1] share 1 of 3 pixels: both stay at 0.34, the worse one goes at 0.33.

    Args:
        boxes: (R, 4) float xyxy, pixels. Half precision is computed in float32.
        scores: (R,) float. Boxes of equal score are taken in their order.
        iou_threshold: between 0 and 1; an IoU equal to it does not suppress.
        backend: "auto" (on a CPU numba, on a GPU cuda; torch where that cannot run), "reference", "torch", "numba" or
            "cuda". "cuda" waits for the GPU once, to learn D; "torch" waits several times for each 256 boxes.
    Returns: (D,) int64 indices of the boxes that stay, best first.
    Raises: ValueError for shapes, dtypes or devices that do not fit, values that are not finite, a threshold outside
        [0, 1], or a backend that cannot run where the boxes are; RuntimeError for one that is not installed.
    """
    return _keep(boxes, scores, None, iou_threshold, backend)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, backend: str = "auto") -> Tensor:
    """NMS within each group: boxes of different classes (or levels, or images) never suppress each other.

    The usual trick, to move each group far from the others and call `nms`, changes coordinates enough to change IoUs,
    and overflows half precision. Here the groups are compared beside the boxes, in one pass over all of them.

    Args: as in `nms`, and idxs: (R,) integers, the group of each box.
    Returns: (D,) int64 indices of the boxes that stay, of all groups, best first.
    """
    _check(boxes, scores, iou_threshold)
    kind = idxs.dtype if isinstance(idxs, Tensor) else type(idxs).__name__
    if not isinstance(idxs, Tensor) or idxs.is_floating_point() or idxs.is_complex():
        raise ValueError(f"idxs must be a tensor of whole numbers, got {kind}")
    if idxs.shape != scores.shape:
        raise ValueError(f"idxs must have one group per box: shape {tuple(idxs.shape)} for {len(scores)} scores")
    if idxs.device != boxes.device:
        raise ValueError(f"idxs lie on {idxs.device} but the boxes on {boxes.device}; move one of them")
    return _keep(boxes, scores, idxs.to(torch.int64), iou_threshold, backend)


def _keep(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, backend: str) -> Tensor:
    _check(boxes, scores, iou_threshold)
    backend = _choose(boxes.device.type, backend)
    work = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes, scores = boxes.detach(), scores.detach()
    corners = boxes.to(work)
    threshold = _at_most(iou_threshold, np.float64 if work == torch.float64 else np.float32)
    if backend in ("reference", "torch"):
        _check_finite(boxes, scores)
        return (_reference if backend == "reference" else _torch)(corners, scores, groups, threshold)
    if backend == "numba":
        from .nms_cpu import keep
    else:
        from .nms_cuda import keep
    kept = keep(corners, scores, groups, threshold)
    if kept is None:
        _check_finite(boxes, scores)
    return kept


def _iou(a, b):
    """Of two boxes, in the precision of their corners; 0 if they do not overlap."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _reference(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    """The definition, to be read: a box stays if it overlaps no better one that stays."""
    boxes, scores = boxes.numpy(), scores.double().tolist()
    groups = [0] * len(scores) if groups is None else groups.tolist()
    kept = []
    with np.errstate(over="ignore", invalid="ignore"):  # areas beyond the precision: an IoU of 0, or none
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):  # Python's sort leaves ties in order
            rivals = [k for k in kept if groups[k] == groups[i]]
            if not any(_iou(boxes[k], boxes[i]) > threshold for k in rivals):
                kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def _torch(boxes: Tensor, scores: Tensor, groups: Tensor | None, threshold: float) -> Tensor:
    """Block by block, best first: whom the block's boxes leave of their own, and whom those leave of all later ones.

    Within a block, "stays if none that stays suppresses it" is repeated until nothing changes. A box's fate depends on
    better ones only, so the first repetition decides the first box for good, the next one the second at the latest.
    """
    order = scores.argsort(descending=True, stable=True)
    x1, y1, x2, y2 = boxes[order].unbind(1)
    area = (x2 - x1) * (y2 - y1)
    groups = None if groups is None else groups[order]
    keep = torch.ones_like(order, dtype=torch.bool)
    for start in range(0, len(order), BLOCK):
        own, later = (slice(start, start + BLOCK), None), (None, slice(start, None))  # (B, 1), (1, L): L from start on
        width = (torch.minimum(x2[own], x2[later]) - torch.maximum(x1[own], x1[later])).clamp(min=0)
        height = (torch.minimum(y2[own], y2[later]) - torch.maximum(y1[own], y1[later])).clamp(min=0)
        shared = width * height
        over = shared / (area[own] + area[later] - shared) > threshold  # (B, L)
        if groups is not None:
            over &= groups[own] == groups[later]
        over = over.triu(1)  # only a better one suppresses
        B = len(over)
        candidates = keep[start : start + B].clone()
        before, stays = torch.zeros_like(candidates), candidates
        while not torch.equal(before, stays):
            before, stays = stays, candidates & ~(over[:, :B] & stays[:, None]).any(dim=0)
        keep[start : start + B] = stays
        keep[start + B :] &= ~(over[:, B:] & stays[:, None]).any(dim=0)
    return order[keep]


def _at_most(iou_threshold: float, dtype) -> float:
    """The largest number of that precision that is not above the threshold: IoU > either is then the same question."""
    rounded = dtype(iou_threshold)
    return float(rounded if float(rounded) <= iou_threshold else np.nextafter(rounded, dtype(-1)))


def _choose(device: str, backend: str) -> str:
    """The backend to run on a "cpu", a "cuda" or another device."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}; got {backend!r}")
    if backend == "auto":
        compiled = {"cpu": "numba", "cuda": "cuda"}.get(device)
        return compiled if compiled and _runs_or_says_why_not(compiled) else "torch"
    needs = {"reference": "cpu", "numba": "cpu", "cuda": "cuda"}.get(backend, device)
    if needs != device:
        raise ValueError(f'backend "{backend}" needs boxes on the device "{needs}", they lie on "{device}"; use "auto"')
    if reason := _why_not(backend):
        raise RuntimeError(f'backend "{backend}" cannot run: {reason}')
    return backend


@functools.cache
def _runs_or_says_why_not(backend: str) -> bool:
    if reason := _why_not(backend):
        warnings.warn(f'backend "{backend}" cannot run: {reason}. NMS falls back to torch', stacklevel=5)
    return not reason


def _why_not(backend: str) -> str | None:
    """Why a backend cannot run here, None if it can."""
    try:
        if backend == "numba":
            from . import nms_cpu  # noqa: F401
        elif backend == "cuda":
            from ._numba_cuda import why_not

            return why_not()
    except ImportError as error:
        return f"numba cannot be imported ({error})"
    return None


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float) -> None:
    for name, value in (("boxes", boxes), ("scores", scores)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a floating point tensor, got {got}; call torch.as_tensor(...).float()")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (R, 4), xyxy; got {tuple(boxes.shape)}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores must have one value per box: shape {tuple(scores.shape)} for {len(boxes)} boxes")
    if scores.device != boxes.device:
        raise ValueError(f"scores lie on {scores.device} but the boxes on {boxes.device}; move one of them")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie between 0 and 1, got {iou_threshold}")


def _check_finite(boxes: Tensor, scores: Tensor) -> None:
    good = boxes.isfinite().all(dim=1) & scores.isfinite()
    if bool(good.all()):
        return
    bad = int((~good).nonzero()[0, 0])
    raise ValueError(
        f"box {bad} = {boxes[bad].tolist()} with score {float(scores[bad])} is not finite; drop it before NMS"
    )
