"""RoIAlign, RoIWarp and RoIPool in pure torch: any device, gradients by autograd.

The one idea: pooling is a lookup in a table. Lay the features out as a table with a row of C channels per cell; then
each output bin of RoIAlign is a weighted sum of a few rows (`torch.nn.functional.embedding_bag`), and each output of
RoIPool is one entry. Which rows, and with what weights, depends on the boxes alone. Boxes that require a gradient
receive it through the weights; in the paper they do not ("approximate joint training", Faster R-CNN, section 3.2).
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def round_half_away(x: Tensor) -> Tensor:
    """C's `round`, which RoIPool uses: 0.5 -> 1 and -0.5 -> -1, where `torch.round` goes to the even neighbour.

    The gradient is passed straight through, as MNC does for the corners of its boxes.
    """
    size = x.detach().abs()
    whole = size.floor()
    rounded = torch.copysign(whole + (size - whole >= 0.5), x.detach())
    return rounded + (x - x.detach()) if x.requires_grad else rounded


def _whole(value: int, like: Tensor) -> Tensor:
    """By a plain number torch on a GPU does not divide, it multiplies by the reciprocal: another last bit"""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _at_least_one(size: Tensor) -> Tensor:
    """Not `clamp`: versions of torch differ in whether it passes a gradient at 1 itself, where a RoIWarp often is."""
    return torch.where(size >= 1, size, 1.0)


def sampling_geometry(
    boxes: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, convention: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each RoI's samples lie, in cell-index space (cell centres at whole numbers).

    Args:
        boxes: (R, 5) float, batch index and xyxy in image pixels.
        output_size: (h, w) bins.
        spatial_scale: cells per image pixel.
        sampling_ratio: samples per bin and axis; 0 or less: ceil(RoI size / bins).
        convention: "aligned" (Detectron2's and ours), "legacy" (no half-cell shift, RoIs at least one cell), "warp"
            (the cells that RoIPool pools, sampled as in "aligned") or "mnc" (those cells, as MNC's layer samples them).
    Returns:
        start (R, 2) and bin size (R, 2) in cells, both [y, x]; grid (R, 2) int64, samples per bin [y, x].
    """
    low = boxes[:, [2, 1]] * spatial_scale  # (R, 2) [y, x]
    high = boxes[:, [4, 3]] * spatial_scale
    if convention == "aligned":
        start, end = low - 0.5, high - 0.5  # the centre of cell 0 lies at 0.5
        size = end - start
    elif convention == "legacy":
        start, size = low, _at_least_one(high - low)
    else:
        low, high = round_half_away(low), round_half_away(high)
        size = _at_least_one(high - low + 1)  # RoIPool's end is inclusive
        start = low - 0.5 if convention == "warp" else low
    bin_size = size / torch.stack([_whole(bins, size) for bins in output_size])
    if sampling_ratio > 0:
        grid = torch.full_like(bin_size, sampling_ratio, dtype=torch.int64)
    else:
        grid = bin_size.detach().ceil().to(torch.int64).clamp(min=0)
    return start, bin_size, grid


def axis_samples(
    start: Tensor, bin_size: Tensor, bins: int, grid: int, length: int, convention: str
) -> tuple[Tensor, Tensor]:
    """Linear interpolation along one axis: for each sample its two cells and their weights.

    Returns: cells (R, bins, grid, 2) int64 and weights (R, bins, grid, 2); both weights are 0 for a sample too far off
        the map to count; up to there the edge cell's value holds.
    """
    p = torch.arange(bins, dtype=start.dtype, device=start.device).view(1, bins, 1)
    i = torch.arange(grid, dtype=start.dtype, device=start.device).view(1, 1, grid)
    start, bin_size = start.view(-1, 1, 1), bin_size.view(-1, 1, 1)
    offset = 0 if convention == "mnc" else 0.5
    x = start + p * bin_size + (i + offset) * bin_size / _whole(grid, start)  # (R, bins, grid)
    inside = (x > -0.5) & (x < length - 0.5) if convention == "mnc" else (x >= -1.0) & (x <= length)
    clamped = x.detach().clamp(0, length - 1)
    if x.requires_grad:  # a clamped sample reads the same wherever it lies; `clamp` itself: see `_at_least_one`
        clamped = torch.where((x > 0) & (x < length - 1), x, clamped)
    low = clamped.detach().floor()
    fraction = clamped - low
    low = low.to(torch.int64)
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
    return cells, weights


def _zeros(table: Tensor, start: Tensor, rows: int, bins: int) -> Tensor:
    """What RoIs without samples give: 0, but still in the graph, so that everybody's gradient is 0 and not missing."""
    return table.new_zeros(rows, bins, table.shape[1]) + table[:0].sum() + start[:0].sum()


def _pool_grid(table, size, batch, start, bin_size, output_size, grid, reduce, convention):
    """RoIAlign of RoIs that all have the same grid of samples: (R, h*w, C)."""
    (H, W), (h, w), (gh, gw) = size, output_size, grid
    R, C = len(batch), table.shape[1]
    if R == 0 or gh * gw == 0:
        return _zeros(table, start, R, h * w)
    y, wy = axis_samples(start[:, 0], bin_size[:, 0], h, gh, H, convention)  # (R, h, gh, 2)
    x, wx = axis_samples(start[:, 1], bin_size[:, 1], w, gw, W, convention)
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


def _laid_out(pooled: Tensor, features: Tensor) -> Tensor:
    """pooled (R, h, w, C) -> (R, C, h, w), channels_last where the features are that and not plain at once."""
    out = pooled.permute(0, 3, 1, 2)
    channels_last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return out if channels_last else out.contiguous()


def roi_align(features, boxes, output_size, spatial_scale, sampling_ratio, convention, reduce) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3); see `mrcnn_scratch.roi_ops.roi_align`. boxes (R, 5) of the features' dtype.

    Boxes that require a gradient receive one: where a sample is clamped to an outermost cell, or does not count, it has
    no slope; at the centre of a cell it has the slope to the right; adaptive counts are taken as constants.
    """
    N, C, H, W = features.shape
    R, (h, w) = len(boxes), output_size
    table = features.permute(0, 2, 3, 1).reshape(N * H * W, C)
    batch = boxes[:, 0].detach().to(torch.int64)
    start, bin_size, grid = sampling_geometry(boxes, output_size, spatial_scale, sampling_ratio, convention)
    options = reduce, convention
    if sampling_ratio > 0:
        grids = (sampling_ratio, sampling_ratio)
        pooled = _pool_grid(table, (H, W), batch, start, bin_size, output_size, grids, *options)
    else:  # RoIs of different sizes have different grids: take those of one grid together
        pooled = _zeros(table, start, R, h * w)
        for gh, gw in grid.unique(dim=0).tolist():
            same = ((grid[:, 0] == gh) & (grid[:, 1] == gw)).nonzero()[:, 0]
            part = _pool_grid(table, (H, W), batch[same], start[same], bin_size[same], output_size, (gh, gw), *options)
            pooled = pooled.index_copy(0, same, part)
    return _laid_out(pooled.view(R, h, w, C), features)


def pool_geometry(boxes: Tensor, output_size: tuple[int, int], spatial_scale: float, size: tuple[int, int]):
    """RoIPool's bins in whole cells: first (R, h) and end (R, h) rows, first (R, w) and end (R, w) columns; int64."""
    edges = []
    for low, high, bins, length in ((2, 4, output_size[0], size[0]), (1, 3, output_size[1], size[1])):
        first = round_half_away(boxes[:, low] * spatial_scale)
        last = round_half_away(boxes[:, high] * spatial_scale)
        bin_size = (_at_least_one(last - first + 1) / _whole(bins, first))[:, None]
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
            larger = ((value > best) | (winner < 0)) & inside[..., None]  # NaN and -inf too, if they come first
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
    return _laid_out(pooled.view(R, h, w, C), features)
