"""Which pyramid level pools which RoI (FPN, eq. 1), and pooling from all levels in one call."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assign_levels(
    boxes: Tensor,
    k_min: int,
    k_max: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
    eps: float = 1e-8,
    eps_inside_log: bool = True,
) -> Tensor:
    """FPN, eq. 1: k = floor(k0 + log2(sqrt(w h) / 224)), kept between k_min and k_max.

    A RoI of 224 x 224, the size of an ImageNet crop, goes to P4; half as large on a side goes one level finer.

    Args:
        boxes: (R, 4) float xyxy, image pixels.
        k_min, k_max: finest and coarsest level, as in P2..P5.
        canonical_size, canonical_level: pixels, and the level that a RoI of this size goes to.
        eps, eps_inside_log: added to the ratio inside the log (ours, Detectron2: 1e-8; Detectron: 1e-6), or, if
            False, to the logarithm itself (torchvision: 1e-6, which sends 223.9999 to P4).
    Returns: (R,) int64, the place of the level in a list that starts at k_min: 0 .. k_max - k_min.
    Raises: ValueError if k_max < k_min or boxes are not (R, 4).
    """
    if k_max < k_min:
        raise ValueError(f"k_max must be at least k_min, got k_min={k_min}, k_max={k_max}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (R, 4), xyxy; got {tuple(boxes.shape)}")
    boxes = boxes.detach()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    ratio = area.clamp(min=0).sqrt() / canonical_size  # a proposal turned inside out goes to the finest level
    log = torch.log2(ratio + eps) if eps_inside_log else torch.log2(ratio) + eps
    levels = torch.floor(canonical_level + log).clamp(k_min, k_max)
    return levels.to(torch.int64) - k_min


def multiscale_roi(
    features: Sequence[Tensor],
    boxes: Sequence[Tensor],
    output_size: int | tuple[int, int],
    strides: Sequence[int],
    pool: Callable[[Tensor, Tensor, tuple[int, int], float], Tensor],
    canonical_size: float = 224,
    canonical_level: int = 4,
    eps: float = 1e-8,
    eps_inside_log: bool = True,
) -> Tensor:
    """Pool each RoI from the pyramid level that suits its size (FPN, section 4.2).

    Args:
        features: per level (N, C, H_l, W_l), finest first.
        boxes: N of (R_i, 4) float xyxy, image pixels.
        output_size: h = w, or (h, w).
        strides: per level, image pixels per cell; powers of two, each twice the one before.
        pool: (features, boxes (R, 5), output_size, spatial_scale) -> (R, C, h, w); for instance `roi_align`.
        canonical_size, canonical_level, eps, eps_inside_log: as in `assign_levels`. One level needs none.
    Returns: (R, C, h, w) in the order of torch.cat(boxes).
    Raises: ValueError if features and strides differ in number, strides do not double, or boxes do not fit the images.
    """
    k_min, k_max = _level_range(features, strides)
    N, C = features[0].shape[:2]
    if len(boxes) != N:
        raise ValueError(f"boxes lists {len(boxes)} images, features hold {N}: one (R_i, 4) tensor per image, please")
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size
    flat = torch.cat(list(boxes)) if boxes else features[0].new_zeros(0, 4)
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)]) if boxes else flat[:, :1]
    rows = torch.cat([index, flat], dim=1).detach()  # (R, 5)
    if len(features) == 1:
        return pool(features[0], rows, (h, w), 1 / strides[0])
    levels = assign_levels(flat, k_min, k_max, canonical_size, canonical_level, eps, eps_inside_log)
    members = [(levels == k).nonzero()[:, 0] for k in range(len(features))]
    parts = [pool(x, rows[m], (h, w), 1 / s) for x, m, s in zip(features, members, strides, strict=True)]
    order = torch.cat(members)  # order[j]: which RoI came out j-th
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return _rows(torch.cat(parts), back)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] of x (R, C, h, w), in its memory format; its backward copies rows, where x[index]'s sorts and adds."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)  # index_select knows plain tensors alone


def _level_range(features: Sequence[Tensor], strides: Sequence[int]) -> tuple[int, int]:
    """Level k has stride 2**k: the k of the first and of the last level."""
    if len(features) != len(strides) or not strides:
        raise ValueError(f"one stride per level, please: got {len(features)} feature maps and strides {strides}")
    levels = [int(s).bit_length() - 1 for s in strides]
    if any(2**k != s for k, s in zip(levels, strides, strict=True)):
        raise ValueError(f"strides must be powers of two, got {list(strides)}")
    if any(b != a + 1 for a, b in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"each stride must be twice the one before, finest first, got {list(strides)}")
    return levels[0], levels[-1]
