"""Which level of the pyramid pools which RoI, as a map of all widths and heights."""

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ..roi_ops.levels import assign_levels
from .style import INK, PALETTE, array

SIDES = (8, 1351)  # pixels that the axes show
TICKS = (14, 28, 56, 112, 224, 448, 896)
NAMES = {"P2": (24, 14), "P3": (500, 50), "P4": (700, 143), "P5": (960, 420)}  # where the names stand: width, height


def level_map(axes: Axes, rois: dict[str, torch.Tensor]) -> None:
    """FPN, eq. 1, with the paper's numbers: a coloured region for each of P2 to P5, and RoIs as points in it.

    Args:
        axes: where; they become logarithmic.
        rois: name of a set -> (R, 4) xyxy, pixels; the first set is drawn dark, the second light.
    """
    side = torch.logspace(*(torch.tensor(SIDES).log2().tolist()), 300, base=2)
    high, wide = torch.meshgrid(side, side, indexing="ij")
    shapes = torch.stack([wide * 0, high * 0, wide, high], dim=-1).view(-1, 4)
    levels = assign_levels(shapes, 2, 5).view(high.shape)
    edges = [-0.5, 0.5, 1.5, 2.5, 3.5]
    axes.contourf(array(side), array(side), array(levels), levels=edges, colors=PALETTE[:4], alpha=0.55)
    for (name, boxes), colour in zip(rois.items(), (INK, "white"), strict=False):
        sides = array(boxes[:, 2:] - boxes[:, :2])
        style = {"markersize": 3, "markeredgecolor": INK, "markeredgewidth": 0.3}
        axes.plot(sides[:, 0], sides[:, 1], "o", color=colour, label=name, **style)
    for name, (x, y) in NAMES.items():
        axes.text(x, y, name, fontsize=14, ha="center", va="center", weight="bold", color=INK)
    axes.set(xscale="log", yscale="log", aspect="equal", xlabel="width, pixels", ylabel="height, pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(TICKS))
        axis.set_major_formatter("{x:.0f}")
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left", fontsize=8.5, frameon=True)
