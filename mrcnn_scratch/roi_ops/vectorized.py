"""RoIAlign, RoIWarp and RoIPool in pure torch: any device, gradients by autograd.

The one idea: pooling is a lookup in a table. Lay the features out as a table with a row of C channels per cell; then
each output bin of RoIAlign is a weighted sum of a few rows (`torch.nn.functional.embedding_bag`), and each output of
RoIPool is one entry. Which rows, and with what weights, depends on the boxes alone, through which no gradient flows.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def round_half_away(x: Tensor) -> Tensor:
    """C's `round`, which RoIPool uses: 0.5 -> 1 and -0.5 -> -1, where `torch.round` goes to the even neighbour."""
    size = x.abs()
    whole = size.floor()
    return torch.copysign(whole + (size - whole >= 0.5), x)


def sampling_geometry(
    boxes: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, convention: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each RoI's samples lie, in cell-index space (cell centres at whole numbers).

    Args:
        boxes: (R, 5) float, batch index and xyxy in image pixels.
        output_size: (h, w) bins.
        spatial_scale: cells per image pixel.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(RoI size / bins).
        convention: "aligned" (Detectron2's and ours), "legacy" (no half-cell shift, RoIs at least one cell), or
            "warp" (the cells that RoIPool pools, sampled as in "aligned").
    Returns:
        start (R, 2) and bin size (R, 2) in cells, both [y, x]; grid (R, 2) int64, samples per bin [y, x].
    """
    low = boxes[:, [2, 1]] * spatial_scale  # (R, 2) [y, x]
    high = boxes[:, [4, 3]] * spatial_scale
    if convention == "warp":
        low, high = round_half_away(low), round_half_away(high)
        size = (high - low + 1).clamp(min=1)  # RoIPool's end is inclusive
        start = low - 0.5
    elif convention == "aligned":
        start, end = low - 0.5, high - 0.5  # the centre of cell 0 lies at 0.5
        size = end - start
    else:
        start, size = low, (high - low).clamp(min=1)
    bins = torch.tensor(output_size, dtype=boxes.dtype, device=boxes.device)
    bin_size = size / bins
    if sampling_ratio > 0:
        grid = torch.full_like(bin_size, sampling_ratio, dtype=torch.int64)
    else:
        grid = bin_size.ceil().to(torch.int64).clamp(min=0)
    return start, bin_size, grid


def axis_samples(start: Tensor, bin_size: Tensor, bins: int, grid: int, length: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation along one axis: for each sample its two cells and their weights.

    Returns: cells (R, bins, grid, 2) int64 and weights (R, bins, grid, 2); both weights are 0 for a sample that lies
        more than half a cell off the map; up to there the edge cell's value holds.
    """
    p = torch.arange(bins, dtype=start.dtype, device=start.device).view(1, bins, 1)
    i = torch.arange(grid, dtype=start.dtype, device=start.device).view(1, 1, grid)
    start, bin_size = start.view(-1, 1, 1), bin_size.view(-1, 1, 1)
    x = start + p * bin_size + (i + 0.5) * bin_size / max(grid, 1)  # (R, bins, grid)
    inside = (x >= -1.0) & (x <= length)
    x = x.clamp(0, length - 1)
    low = x.floor()
    fraction = x - low
    low = low.to(torch.int64)
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
    return cells, weights


def _pool_grid(table, size, batch, start, bin_size, output_size, grid, reduce):
    """RoIAlign of RoIs that all have the same grid of samples: (R, h*w, C)."""
    (H, W), (h, w), (gh, gw) = size, output_size, grid
    R, C = len(batch), table.shape[1]
    if R == 0 or gh * gw == 0:  # a RoI of no size has no samples: 0, but still in the graph
        return table.new_zeros(R, h * w, C) + table[:0].sum()
    y, wy = axis_samples(start[:, 0], bin_size[:, 0], h, gh, H)  # (R, h, gh, 2)
    x, wx = axis_samples(start[:, 1], bin_size[:, 1], w, gw, W)
    y = (batch.view(-1, 1, 1, 1) * H + y).view(R, h, 1, gh, 1, 2, 1)
    cells = y * W + x.view(R, 1, w, 1, gw, 1, 2)  # (R, h, w, gh, gw, 2, 2)
    weights = wy.view(R, h, 1, gh, 1, 2, 1) * wx.view(R, 1, w, 1, gw, 1, 2)
    if reduce == "mean":
        bag = (R * h * w, gh * gw * 4)
        weights = weights / (gh * gw)
        pooled = embedding_bag(cells.reshape(bag), table, mode="sum", per_sample_weights=weights.reshape(bag))
        return pooled.view(R, h * w, C)
    bag = (R * h * w * gh * gw, 4)
    samples = embedding_bag(cells.reshape(bag), table, mode="sum", per_sample_weights=weights.reshape(bag))
    return samples.view(R, h * w, gh * gw, C).max(dim=2).values


def roi_align(features, boxes, output_size, spatial_scale, sampling_ratio, convention, reduce) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3); see `mrcnn_scratch.roi_ops.roi_align`. boxes (R, 5) of the features' dtype."""
    N, C, H, W = features.shape
    R, (h, w) = len(boxes), output_size
    table = features.permute(0, 2, 3, 1).reshape(N * H * W, C)
    batch = boxes[:, 0].to(torch.int64)
    start, bin_size, grid = sampling_geometry(boxes, output_size, spatial_scale, sampling_ratio, convention)
    if sampling_ratio > 0:
        grids = (sampling_ratio, sampling_ratio)
        pooled = _pool_grid(table, (H, W), batch, start, bin_size, output_size, grids, reduce)
    else:  # RoIs of different sizes have different grids: take those of one grid together
        pooled = table.new_zeros(R, h * w, C) + table[:0].sum()
        for gh, gw in grid.unique(dim=0).tolist():
            same = ((grid[:, 0] == gh) & (grid[:, 1] == gw)).nonzero()[:, 0]
            part = _pool_grid(table, (H, W), batch[same], start[same], bin_size[same], output_size, (gh, gw), reduce)
            pooled = pooled.index_copy(0, same, part)
    return pooled.view(R, h, w, C).permute(0, 3, 1, 2).contiguous()


def pool_geometry(boxes: Tensor, output_size: tuple[int, int], spatial_scale: float, size: tuple[int, int]):
    """RoIPool's bins in whole cells: first (R, h) and end (R, h) rows, first (R, w) and end (R, w) columns; int64."""
    edges = []
    for low, high, bins, length in ((2, 4, output_size[0], size[0]), (1, 3, output_size[1], size[1])):
        first = round_half_away(boxes[:, low] * spatial_scale)
        last = round_half_away(boxes[:, high] * spatial_scale)
        bin_size = ((last - first + 1).clamp(min=1) / bins)[:, None]
        p = torch.arange(bins, dtype=boxes.dtype, device=boxes.device)
        start = (p * bin_size).floor() + first[:, None]
        end = ((p + 1) * bin_size).ceil() + first[:, None]
        edges += [start.clamp(0, length).to(torch.int64), end.clamp(0, length).to(torch.int64)]
    return edges


@torch.no_grad()
def _pool_argmax(table, size, batch, top, bottom, left, right) -> Tensor:
    """The table row that holds each bin's maximum, -1 for a bin without cells: (R, h, w, C) int64.

    All bins step through their cells together, in reading order: as many steps as the largest bin has cells.
    """
    H, W = size
    (R, h), w, C = top.shape, left.shape[1], table.shape[1]
    best = table.new_full((R, h, w, C), -torch.inf)
    winner = torch.full((R, h, w, C), -1, dtype=torch.int64, device=table.device)
    for dy in range(int((bottom - top).max())):
        y = top + dy  # (R, h)
        for dx in range(int((right - left).max())):
            x = left + dx  # (R, w)
            inside = (y < bottom)[:, :, None] & (x < right)[:, None, :]
            row = (batch[:, None] * H + y.clamp(max=H - 1))[:, :, None] * W + x.clamp(max=W - 1)[:, None, :]
            value = table[row]  # (R, h, w, C)
            larger = (value > best) & inside[..., None]
            best = torch.where(larger, value, best)
            winner = torch.where(larger, row[..., None], winner)
    return winner


def roi_pool(features, boxes, output_size, spatial_scale) -> Tensor:
    """RoIPool (Fast R-CNN, section 2.1); see `mrcnn_scratch.roi_ops.roi_pool`. boxes (R, 5) of the features' dtype."""
    N, C, H, W = features.shape
    R, (h, w) = len(boxes), output_size
    if R == 0:
        return features.new_zeros(0, C, h, w) + features[:0].sum()
    table = features.permute(0, 2, 3, 1).reshape(N * H * W, C)
    edges = pool_geometry(boxes, output_size, spatial_scale, (H, W))
    winner = _pool_argmax(table, (H, W), boxes[:, 0].to(torch.int64), *edges).view(-1, C)  # (R*h*w, C)
    pooled = table.gather(0, winner.clamp(min=0)).masked_fill(winner < 0, 0)
    return pooled.view(R, h, w, C).permute(0, 3, 1, 2).contiguous()
