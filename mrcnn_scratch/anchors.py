"""Anchors: a few boxes of fixed shape at every cell of every feature map (Faster R-CNN, section 3.1.1).

Order is a contract with the RPN head: levels one after the other; in a level row by row, cell (i, j) at
``i * W + j``; in a cell ratio by ratio, sizes fastest within a ratio.
"""

from collections.abc import Sequence

import torch


def cell_anchors(
    sizes: tuple[float, ...], aspect_ratios: tuple[float, ...], rounded: bool = False
) -> torch.Tensor:
    """The anchors of one cell, centred on the origin. A ratio is h / w, so 0.5 is a wide box; its area is size².

    Size 32 with ratio 0.5 is 45.25 wide and 22.63 high.

    Args:
        sizes: square roots of the areas, pixels.
        aspect_ratios: heights over widths.
        rounded: round the corners to whole pixels, as torchvision does (the areas then vary).

    Returns:
        (A, 4) float32 xyxy, pixels, A = ratios x sizes, ratios slowest.

    Raises:
        ValueError: a size or ratio is not positive.
    """
    if not sizes or not aspect_ratios or min(*sizes, *aspect_ratios) <= 0:
        raise ValueError(f"anchor sizes {sizes} and aspect ratios {aspect_ratios} must be positive and not empty")
    ratio = torch.tensor(aspect_ratios, dtype=torch.float64)[:, None]  # (ratios, 1)
    size = torch.tensor(sizes, dtype=torch.float64)[None, :]  # (1, sizes)
    half_width = (size / ratio.sqrt() / 2).flatten()  # (A,)
    half_height = (size * ratio.sqrt() / 2).flatten()
    anchors = torch.stack([-half_width, -half_height, half_width, half_height], dim=1)
    return (anchors.round() if rounded else anchors).float()


def grid_anchors(
    cell: torch.Tensor, height: int, width: int, stride: tuple[float, float], offset: float = 0.5
) -> torch.Tensor:
    """One cell's anchors repeated over a feature map.

    Args:
        cell: (A, 4) xyxy around the origin, pixels.
        height: H of the feature map, cells.
        width: W of the feature map, cells.
        stride: image pixels per cell, (down, across).
        offset: where in its cell an anchor is centred: 0.5 is the middle (ours), 0 the corner (torchvision's).

    Returns:
        (H * W * A, 4) xyxy, image pixels; anchors of a cell are neighbours.
    """
    y = (torch.arange(height, dtype=cell.dtype, device=cell.device) + offset) * stride[0]  # (H,)
    x = (torch.arange(width, dtype=cell.dtype, device=cell.device) + offset) * stride[1]  # (W,)
    y, x = torch.meshgrid(y, x, indexing="ij")  # (H, W)
    shifts = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
    return (shifts[:, :, None] + cell).reshape(-1, 4)  # (H, W, A, 4) -> (H*W*A, 4)


def pyramid_anchors(
    shapes: list[tuple[int, int]],
    strides: Sequence[int | tuple[int, int]],
    sizes: tuple[tuple[float, ...], ...],
    aspect_ratios: tuple[float, ...],
    offset: float = 0.5,
    rounded: bool = False,
) -> list[torch.Tensor]:
    """The anchors of every level: FPN gives each level one size, C4 gives its only level all five (FPN, section 4.1).

    Args:
        shapes: (H, W) of each level, cells.
        strides: image pixels per cell of each level, or (down, across).
        sizes: anchor sizes of each level, pixels.
        aspect_ratios: heights over widths, the same at every level.
        offset: see :func:`grid_anchors`.
        rounded: see :func:`cell_anchors`.

    Returns:
        for each level (H * W * A, 4) xyxy, image pixels.

    Raises:
        ValueError: the numbers of levels disagree.
    """
    if not len(shapes) == len(strides) == len(sizes):
        raise ValueError(f"{len(shapes)} feature maps, {len(strides)} strides and {len(sizes)} anchor sizes: one each")
    pairs = [stride if isinstance(stride, tuple) else (stride, stride) for stride in strides]
    return [
        grid_anchors(cell_anchors(size, aspect_ratios, rounded), height, width, stride, offset)
        for (height, width), stride, size in zip(shapes, pairs, sizes, strict=True)
    ]
