"""A notebook's pictures: a row of axes as wide as the page, and boxes drawn on them."""

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .style import array


def axes_row(*titles: str, height: float = 2.5, widths: tuple[float, ...] | None = None, rows: int = 1) -> list[Axes]:
    """Axes side by side, one for each title, in a figure that pyplot shows below the cell.

    Args:
        titles: one at least.
        height: of the figure, inches; it is 9 inches wide.
        widths: of the axes, as shares; all alike by default.
        rows: more than one below each other; they divide the number of titles.
    """
    import matplotlib.pyplot as plt  # the other figures of the package belong to no backend

    figure = plt.figure(figsize=(9, height), dpi=80, layout="constrained")
    axes = list(figure.subplots(rows, len(titles) // rows, squeeze=False, width_ratios=widths).flat)
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=10)
    return axes


def draw_boxes(axes: Axes, boxes: torch.Tensor, colour: str, **style) -> None:
    """Boxes as rectangles, empty ones unless ``style`` says otherwise; the view stays as it is.

    Args:
        axes: where.
        boxes: (R, 4) or one (4,) xyxy, in the axes' coordinates.
        colour: of the edges.
        style: of matplotlib's Rectangle.
    """
    for x1, y1, x2, y2 in array(boxes).reshape(-1, 4):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **({"fill": False, "edgecolor": colour} | style)))
