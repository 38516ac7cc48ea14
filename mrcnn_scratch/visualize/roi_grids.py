"""Regions of interest on a feature map: its cells, the bins that each RoI op makes, its samples, and arrows between.

All in image pixels: cell i of a map at stride s covers [i * s, (i + 1) * s).
"""

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ..roi_ops.reference import round_half_away
from ..roi_ops.reference.pool import pool_bins
from ..roi_ops.reference.sampling import axis_samples, bilinear
from .style import INK, array, styled


def exact_bins(box: Tensor, size: tuple[int, int]) -> Tensor:
    """The h x w equal parts of a box [x1, y1, x2, y2] -> (h, w, 4) xyxy."""
    (x1, y1, x2, y2), (h, w) = box.tolist(), size
    x, y = torch.linspace(x1, x2, w + 1), torch.linspace(y1, y2, h + 1)
    return _boxes(list(zip(x[:-1], x[1:], strict=True)), list(zip(y[:-1], y[1:], strict=True)))


def pooled_bins(box: Tensor, size: tuple[int, int], stride: float, map_size: tuple[int, int]) -> Tensor:
    """The cells that RoIPool reads for each bin -> (h, w, 4) xyxy, in pixels; map_size: (H, W) in cells."""
    (x1, y1, x2, y2), (h, w), (H, W) = box.tolist(), size, map_size
    spans = [
        [(cells.start * stride, cells.stop * stride) for cells in pool_bins(low, high, bins, 1 / stride, length)]
        for low, high, bins, length in ((x1, x2, w, W), (y1, y2, h, H))
    ]
    return _boxes(*spans)


def rounded_box(box: Tensor, stride: float) -> Tensor:
    """What RoIPool and RoIWarp take for the box: from the first cell's beginning to the last cell's end -> (4,)."""
    cells = [round_half_away(v / stride) for v in box.tolist()]
    return torch.tensor([cells[0], cells[1], cells[2] + 1, cells[3] + 1]) * stride


def sample_points(box: Tensor, size, stride: float, ratio: int = 2, convention: str = "aligned") -> Tensor:
    """Where the samples of all bins lie -> (h * ratio * w * ratio, 2) x, y. Conventions: see roi_ops.reference."""
    (x1, y1, x2, y2), (h, w) = box.tolist(), size
    x = [v for q in range(w) for v, _ in axis_samples(x1, x2, w, q, 1 / stride, ratio, convention)]
    y = [v for p in range(h) for v, _ in axis_samples(y1, y2, h, p, 1 / stride, ratio, convention)]
    return (torch.cartesian_prod(torch.tensor(y), torch.tensor(x)).flip(1) + 0.5) * stride  # index to continuous


def centres(bins: Tensor) -> Tensor:
    """(..., 4) xyxy -> (..., 2) x, y."""
    return (bins[..., :2] + bins[..., 2:]) / 2


def _boxes(x: list[tuple], y: list[tuple]) -> Tensor:
    return torch.tensor([[[x1, y1, x2, y2] for x1, x2 in x] for y1, y2 in y], dtype=torch.float32)


@styled
def show_map(axes: Axes, values, stride: float = 1, numbers: str = "", grid: str = "0.75", **style) -> None:
    """A feature map as squares of `stride` pixels, its cells outlined, ticks at every other border.

    Args:
        axes: where.
        values: (H, W), one channel.
        stride: pixels per cell.
        numbers: a format such as ".0f", to write each value into its cell.
        grid: the lines' colour.
        style: for `imshow`; light grey by default, so that what is drawn on it can be seen.
    """
    cells = array(values)
    H, W = cells.shape
    look = {"cmap": "Greys", "interpolation": "nearest", "alpha": 0.45} | style
    axes.imshow(cells, extent=(0, W * stride, H * stride, 0), **look)
    for i in range(W + 1):
        axes.plot([i * stride] * 2, [0, H * stride], color=grid, linewidth=0.7, zorder=1)
    for i in range(H + 1):
        axes.plot([0, W * stride], [i * stride] * 2, color=grid, linewidth=0.7, zorder=1)
    for y in range(H if numbers else 0):
        for x in range(W):
            place = ((x + 0.5) * stride, (y + 0.5) * stride)
            axes.text(*place, f"{cells[y, x]:{numbers}}", ha="center", va="center", fontsize=9, color=INK, clip_on=True)
    step = stride * (2 if W > 6 else 1)
    axes.set(xlim=(0, W * stride), ylim=(H * stride, 0), xlabel="x, pixels", aspect="equal")
    axes.set(xticks=_ticks(W * stride, step), yticks=_ticks(H * stride, step))


def _ticks(length: float, step: float) -> list[float]:
    return [i * step for i in range(int(length // step) + 1)]


def outline(axes: Axes, box, colour: str, inset: float = 0.0, **style) -> None:
    """Draws a box [x1, y1, x2, y2], its border moved inwards by some pixels."""
    x1, y1, x2, y2 = (float(v) for v in box)
    look = {"fill": False, "edgecolor": colour, "linewidth": 2} | style
    axes.add_patch(Rectangle((x1 + inset, y1 + inset), x2 - x1 - 2 * inset, y2 - y1 - 2 * inset, **look))


def draw_bins(axes: Axes, bins: Tensor, colours: list[str], inset: float = 0.0, alpha: float = 0.25) -> None:
    """Bins (h, w, 4) as filled boxes, neighbours in turn in one of the colours, each a little further in than the last:
    where two share cells both can be seen."""
    for p, line in enumerate(bins):
        for q, box in enumerate(line):
            colour = colours[(p + q) % len(colours)]
            further = inset * (1 + (p + q) % len(colours))
            outline(axes, box, colour, further, linewidth=1.8)
            outline(axes, box, colour, further, fill=True, alpha=alpha, linewidth=0, facecolor=colour)


def draw_arrows(axes: Axes, start: Tensor, end: Tensor, colour: str) -> None:
    """Arrows between points (..., 2) x, y; one of less than a tenth of a pixel is a dot."""
    for (x, y), (u, v) in zip(start.reshape(-1, 2).tolist(), end.reshape(-1, 2).tolist(), strict=True):
        axes.plot(x, y, "o", color=colour, markersize=4)
        if abs(u - x) + abs(v - y) > 0.1:
            axes.annotate("", (u, v), (x, y), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.6,
                                                          "shrinkA": 0, "shrinkB": 0})  # fmt: skip


def draw_sample(axes: Axes, x: float, y: float, map_size: tuple[int, int], stride: float, colour: str) -> None:
    """A sample at (x, y) in pixels and lines to the centres of the four cells it reads, with their weights."""
    axes.plot(x, y, "o", color=colour, markersize=8, zorder=5)
    for row, column, weight in bilinear(y / stride - 0.5, x / stride - 0.5, *map_size, "aligned"):
        centre = ((column + 0.5) * stride, (row + 0.5) * stride)
        axes.plot([x, centre[0]], [y, centre[1]], color=colour, linewidth=1 + 8 * weight, alpha=0.6, zorder=3)
        axes.annotate(
            f"{weight:.3f}", centre, (0, -14), textcoords="offset points", ha="center", color=colour, fontsize=9
        )
