"""Checks of what users hand to the RoI ops; every message names the value and the remedy."""

import torch
from torch import Tensor


def as_output_size(output_size) -> tuple[int, int]:
    """7 or (h, w) -> (h, w), whole numbers of at least 1."""
    size = tuple(output_size) if isinstance(output_size, (tuple, list, torch.Size)) else (output_size, output_size)
    if len(size) != 2 or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in size):
        raise ValueError(f"output_size must be a positive int or a pair (h, w) of them, got {output_size!r}")
    return size


def check_features(features: Tensor) -> None:
    if not isinstance(features, Tensor) or features.dim() != 4:
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        remedy = "; add the batch axis with x[None]" if isinstance(features, Tensor) and features.dim() == 3 else ""
        raise ValueError(f"features must be a 4-D tensor (N, C, H, W), got {got}{remedy}")
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}; call features.float()")
    if 0 in features.shape[2:]:
        raise ValueError(f"features must have at least one cell, got shape {tuple(features.shape)}")


def as_rows(boxes, features: Tensor) -> Tensor:
    """Boxes in either form, (R, 5) or a list of N (R_i, 4), as (R, 5)."""
    N = features.shape[0]
    if isinstance(boxes, Tensor):
        _check_form(boxes, 5, "boxes", "[batch index, x1, y1, x2, y2]; or pass a list with one (R_i, 4) per image")
        _check_device(boxes, features, "boxes")
        return boxes
    if not isinstance(boxes, (list, tuple)):
        got = type(boxes).__name__
        raise ValueError(f"boxes must be a tensor (R, 5), or a list with one (R_i, 4) per image; got {got}")
    if len(boxes) != N:
        raise ValueError(f"boxes lists {len(boxes)} images, features hold {N}: one (R_i, 4) tensor per image, please")
    for i, b in enumerate(boxes):
        _check_form(b, 4, f"boxes[{i}]", "xyxy; an image without RoIs has torch.zeros(0, 4)")
        _check_device(b, features, f"boxes[{i}]")
    if N == 0:
        return features.new_zeros(0, 5)
    rows = torch.cat(list(boxes))
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat([index, rows], dim=1)


def _check_form(boxes, columns: int, name: str, meaning: str) -> None:
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.shape[1] != columns:
        got = f"shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f"{name} must have shape (R, {columns}), {meaning}; got {got}")
    if boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be float32 or float64, got {boxes.dtype}: half precision moves corners by half a pixel "
            "beyond 1024; call boxes.float()"
        )


def _check_device(boxes: Tensor, features: Tensor, name: str) -> None:
    if boxes.device != features.device:
        raise ValueError(f"{name} lies on {boxes.device} but the features on {features.device}; move one of them")


def check_boxes(boxes: Tensor, N: int) -> None:
    """The values of (R, 5) boxes: finite, and a whole batch index in 0..N-1."""
    index = boxes[:, 0]
    good = boxes.isfinite().all(dim=1) & (index >= 0) & (index < N) & (index == index.floor())
    if bool(good.all()):
        return
    row = int((~good).nonzero()[0, 0])
    values = [round(v, 4) for v in boxes[row].tolist()]
    if not bool(boxes[row].isfinite().all()):
        raise ValueError(f"boxes[{row}] = {values} is not finite; drop such RoIs, or look for an exploding delta")
    raise ValueError(f"boxes[{row}] has batch index {values[0]}, but features hold {N} images: use 0 to {N - 1}")


def check_scale(spatial_scale: float) -> float:
    if not 0 < float(spatial_scale) < float("inf"):
        raise ValueError(f"spatial_scale must be positive, got {spatial_scale}; at stride 16 it is 1 / 16")
    return float(spatial_scale)


def check_choice(name: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_sampling_ratio(sampling_ratio: int) -> None:
    if not isinstance(sampling_ratio, int) or isinstance(sampling_ratio, bool):
        raise ValueError(f"sampling_ratio must be a whole number (0: adaptive), got {sampling_ratio!r}")
