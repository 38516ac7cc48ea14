"""What is measured of masks and keypoints whose objects are known: fractions above thresholds, where errors sit."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..roi_ops import roi_align
from .plan import THRESHOLDS

GRID = 28  # cells a side of the error map
AROUND = 1.5  # its side, in sides of the object's box


def at(threshold: float) -> str:
    """How a threshold is written in a measure's name: ``@.50``."""
    return f"@{threshold:.2f}".replace("@0", "@")


# What each measure weighs the ten thresholds by. STRICT says on which side of .70 a gain sits
STRICT = "strict - lenient"
_strict = np.asarray(THRESHOLDS) >= 0.7
WEIGHTS = {
    "AP*": np.full(len(THRESHOLDS), 1 / len(THRESHOLDS)),
    STRICT: _strict / _strict.sum() - ~_strict / (~_strict).sum(),
    **{at(threshold): row for threshold, row in zip(THRESHOLDS, np.eye(len(THRESHOLDS)), strict=True)},
}


def fractions(similarities: Sequence[float], kind: str) -> dict[str, float]:
    """AP* and the fraction of objects at each threshold, the counterpart of AP where every object has an answer.

    IoUs of .60, .80 and .96 reach 3, 7 and 10 of the ten thresholds .50, .55, .. .95: AP* is 20 / 30.

    Args:
        similarities: (instances,) IoU or OKS.
        kind: "mask" or "keypoints", of the measures' names.

    Returns:
        ``{"mask AP*": .., "mask @.50": .., .. "mask @.95": .., "mask strict - lenient": ..}``, the last one the mean
        from .70 on minus the mean below it. Empty where there is no instance.
    """
    if not len(similarities):
        return {}
    means = credits(similarities).mean(axis=0)  # (10,)
    return {f"{kind} {name}": float(weights @ means) for name, weights in WEIGHTS.items()}


def credits(similarities: Sequence[float]) -> np.ndarray:
    """(instances,) -> (instances, 10) 0/1: which thresholds each instance reaches. Its mean is AP*.

    Rounded to 1e-9 first, so that an IoU of exactly .60 reaches .60 in whatever way it was computed.
    """
    values = np.round(np.asarray(similarities, dtype=float), 9)
    return (values[:, None] >= np.asarray(THRESHOLDS)[None]).astype(float)


def credit_of(similarities: Sequence[float], measure: str) -> np.ndarray | None:
    """(instances,): what each instance adds to a measure of :func:`fractions`; None for another measure."""
    weights = WEIGHTS.get(measure.partition(" ")[2])
    return None if weights is None else credits(similarities) @ weights


class ErrorMap:
    """Where wrong pixels lie, averaged over objects in the frame of a box half as large again as the object's."""

    def __init__(self):
        self._sum, self._count = torch.zeros(GRID, GRID, dtype=torch.float64), 0

    def add(self, found: torch.Tensor, truth: torch.Tensor, boxes: torch.Tensor) -> None:
        """Adds (P, H, W) and (P, H, W) booleans, and the objects' boxes (P, 4)."""
        wrong = (found ^ truth)[:, None].float()  # (P, 1, H, W)
        middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * AROUND
        index = torch.arange(len(boxes), device=boxes.device)[:, None].to(boxes)
        rois = torch.cat([index, middle - half, middle + half], dim=1).float()
        crops = roi_align(wrong, rois, GRID, sampling_ratio=0)[:, 0]  # (P, GRID, GRID)
        self._sum += crops.sum(dim=0).double().cpu()
        self._count += len(boxes)

    def mean(self) -> list[list[float]]:
        """(GRID, GRID) share of the objects that are wrong there, to four digits."""
        return [[round(value, 4) for value in row] for row in (self._sum / max(1, self._count)).tolist()]


def example(
    image: torch.Tensor, truth: torch.Tensor, found: torch.Tensor, box: torch.Tensor, similarity: float
) -> dict:
    """One object for the report: the picture around it, its mask and the one found, as PNG in base64.

    Args:
        image: (3, H, W) in [0, 1].
        truth, found: (H, W) bool.
        box: (4,) xyxy, pixels; the crop is half as large again.
        similarity: IoU of the two masks.
    """
    H, W = truth.shape
    x1, y1, x2, y2 = box.tolist()
    across, down = (x2 - x1) * (AROUND - 1) / 2, (y2 - y1) * (AROUND - 1) / 2
    top, bottom = max(0, int(y1 - down)), min(H, int(y2 + down) + 1)
    left, right = max(0, int(x1 - across)), min(W, int(x2 + across) + 1)
    rows, columns = slice(top, bottom), slice(left, right)
    pixels = (image[:, rows, columns].permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    masks = (mask[rows, columns].cpu().numpy().astype(np.uint8) * 255 for mask in (truth, found))
    truth_png, found_png = map(_png, masks)
    return {"image": _png(pixels), "truth": truth_png, "found": found_png, "iou": round(similarity, 3)}


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if pixels.ndim == 3 else image.convert("1")).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
