"""Pasting: from a small mask per box to a mask of the image's size (Mask R-CNN, section 3.1, inference).

On a CPU a compiled version does the work, which gives the same to rounding: see `pasting_cpu`.
"""

import functools
import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-6  # pixels: a narrower box counts as this wide, so that nothing divides by 0


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], legacy: bool = False, threshold: float | None = None
) -> Tensor:
    """Resizes each mask to its box and puts it into the image (section 3.1, inference).

    The centre of pixel (y, x) is (y + .5, x + .5); in a mask of M cells over a box of width w it falls on cell
    coordinate (x + .5 - x1) / w * M. Bilinear between cells; outside the mask is 0. The mask [[0, 1]] over the box
    [1, 0, 5, 1] gives the row 0, 0, .25, .75, .75, 0: the last pixel lies between the 1 and the 0 outside.

    Args:
        masks: (D, M, M) float probabilities.
        boxes: (D, 4) float xyxy, pixels. Those without area, or outside the image, leave theirs empty.
        size: height and width of the image, pixels.
        legacy: torchvision's way: the mask padded by a cell, the box cut to integers and grown by a pixel.
        threshold: None, or a number in (0, 1]: a pixel that reaches it is the object. The paper's is 0.5.

    Returns:
        (D, H, W) in [0, 1], the dtype of ``masks``; with a threshold bool, a quarter of the memory.

    Raises:
        ValueError: for shapes that do not fit, boxes that are not finite, a threshold outside (0, 1].
    """
    boxes = boxes if boxes.is_floating_point() else boxes.to(masks.dtype)
    _check(masks, boxes, size, threshold)
    corners = _legacy_boxes(boxes.detach(), masks.shape[-1]) if legacy else boxes.detach().double()
    if not corners.isfinite().all():
        index = int((~corners.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"boxes[{index}] is {boxes[index].tolist()}; drop boxes that are not finite, or too large")
    suits = masks.device.type == "cpu" and masks.dtype in (torch.float32, torch.float64) and len(masks) > 0
    differentiable = masks.requires_grad and torch.is_grad_enabled()
    if suits and not differentiable and (compiled := _compiled()) is not None:
        return compiled.paste(masks, corners.cpu(), size, int(legacy), threshold)
    return paste_masks_torch(masks, corners, size, int(legacy), threshold)


def paste_masks_torch(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], ring: int = 0, threshold: float | None = None
) -> Tensor:
    """`paste_masks` to be read, on any device, with a gradient by the masks.

    Args: as there, with boxes (D, 4) float64 that are finite and cover, beside the mask, `ring` empty cells around it.
    """
    height, width = size
    canvas = masks.new_zeros(len(masks), height, width, dtype=None if threshold is None else torch.bool)
    masks = F.pad(masks, (ring,) * 4)
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, right = max(math.floor(x1), 0), min(math.ceil(x2), width)
        top, bottom = max(math.floor(y1), 0), min(math.ceil(y2), height)
        if left >= right or top >= bottom or x1 >= x2 or y1 >= y2:  # outside the image, or empty
            continue
        mask = masks[index]
        x, y = _places(left, right, x1, x2, mask), _places(top, bottom, y1, y2, mask)  # (w,), (h,)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2)
        patch = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        canvas[index, top:bottom, left:right] = patch if threshold is None else patch >= threshold
    return canvas


def _places(first: int, last: int, low: float, high: float, mask: Tensor) -> Tensor:
    """(last - first,): where the centres of pixels first to last - 1 lie in a box from low, -1, to high, 1.

    Python's numbers are float64: those of pixels far from 0 would lose digits in the mask's dtype.
    """
    half = max(high - low, LEAST) / 2
    steps = torch.arange(last - first, dtype=torch.promote_types(mask.dtype, torch.float32), device=mask.device)
    places = (first + 0.5 - low) / half - 1 + steps / half
    return places.clamp(-3, 3).to(mask.dtype)  # from -2 and 2 on there is nothing to see, at any number of cells


def _legacy_boxes(boxes: Tensor, M: int) -> Tensor:
    """Detectron's boxes (D, 4) float64: grown as the mask is by an empty cell around it, truncated, plus one pixel.

    In torchvision's order of operations: rounding decides which integer is taken, `* (M + 2) / M` takes others.
    """
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((M + 2) / M)
    grown = torch.cat([centre - half, centre + half], dim=1).trunc().double()
    grown[:, 2:] += 1  # converts "last pixel" to "end"
    return grown


def _check(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float | None) -> None:
    if masks.dim() != 3 or not masks.is_floating_point() or 0 in masks.shape[1:]:
        raise ValueError(f"masks must be floats (D, M, M) with M at least 1, got {masks.dtype} {tuple(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes must be ({len(masks)}, 4), one for each mask; got {tuple(boxes.shape)}")
    if len(size) != 2 or min(size) < 0:
        raise ValueError(f"size must be the height and width of the image, got {size}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}; None gives probabilities")


@functools.cache
def _compiled():
    """The module with the compiled version, None where Numba cannot be imported."""
    try:
        from . import pasting_cpu
    except ImportError as error:
        warnings.warn(f"pasting falls back to torch, which is slower: numba cannot be imported ({error})", stacklevel=3)
        return None
    return pasting_cpu
