"""Which objects a layout of anchors reaches: recall of each design, and how it depends on the object's size."""

import torch
from matplotlib.axes import Axes

from .style import PALETTE


def draw_recall(axes: Axes, best_ious: dict[str, torch.Tensor]) -> None:
    """A bar for each design: the share of objects with an anchor of IoU 0.5, and in it, dark, of 0.7.

    Args:
        axes: where.
        best_ious: name of a design -> (G,) the IoU of each object with its best anchor.
    """
    for place, best in enumerate(best_ious.values()):
        axes.barh(place, float((best >= 0.5).float().mean()), color=PALETTE[1])
        axes.barh(place, float((best >= 0.7).float().mean()), color=PALETTE[3], height=0.35)
    axes.set(yticks=range(len(best_ious)), yticklabels=best_ious, xlim=(0, 1), xlabel="share of the objects")
    axes.invert_yaxis()


def draw_iou_by_size(axes: Axes, size: torch.Tensor, best_ious: dict[str, torch.Tensor], bins: int = 12) -> None:
    """A curve for each design: the mean IoU of an object with its best anchor, by the object's size.

    Args:
        axes: where; its x becomes logarithmic.
        size: (G,) square root of each object's area, pixels.
        best_ious: up to three designs' names -> (G,).
        bins: intervals of size, equal on the logarithmic axis; those without an object are left out.
    """
    edges = torch.linspace(float(size.log2().min()), float(size.log2().max()) + 1e-4, bins + 1)
    where = torch.bucketize(size.log2(), edges, right=True) - 1  # (G,) 0 .. bins - 1
    filled = where.unique()
    middles = 2 ** ((edges[1:] + edges[:-1]) / 2)[filled]
    for (name, best), colour in zip(best_ious.items(), (PALETTE[1], PALETTE[2], PALETTE[0]), strict=False):
        means = torch.stack([best[where == each].mean() for each in filled])
        axes.semilogx(middles, means, "o-", base=2, color=colour, markersize=4, label=name.strip())
    ticks = [2**k for k in range(int(edges[0]), int(edges[-1]) + 1) if edges[0] <= k <= edges[-1]]
    axes.set(ylim=(0, 1.28), yticks=(0, 0.25, 0.5, 0.75, 1), xlabel="√(width x height), pixels", ylabel="IoU")
    axes.set(xticks=ticks, xticklabels=ticks)
    axes.legend(fontsize=8, loc="upper center")
