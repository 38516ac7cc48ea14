"""A RoI that slides over a feature map, and what RoIPool and RoIAlign make of it: a picture, and a slider."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..roi_ops import roi_align, roi_pool
from .roi_grids import draw_bins, exact_bins, outline, pooled_bins, rounded_box, sample_points, show_map
from .style import INK, PALETTE, figure_png, styled


def pooled_and_aligned(features: Tensor, box: Tensor, size: tuple[int, int], stride: float) -> tuple[Tensor, Tensor]:
    """What both ops give for one box: features (H, W), box (4,) xyxy in pixels -> two of (h, w)."""
    case = features[None, None], [box[None]], size, 1 / stride
    return roi_pool(*case)[0, 0], roi_align(*case)[0, 0]


@styled
def roi_frames(features: Tensor, boxes: Tensor, size: tuple[int, int], stride: float) -> Figure:
    """For each box a row: the cells that RoIPool reads, RoIAlign's bins and samples, and the outputs of both.

    Args:
        features: (H, W), one channel.
        boxes: (R, 4) xyxy, in pixels.
        size: (h, w) bins.
        stride: pixels per cell.
    """
    figure = Figure(figsize=(9, 2.75 * len(boxes)), dpi=80, layout="constrained")
    grid = figure.subplots(len(boxes), 4, squeeze=False, width_ratios=[3, 3, 1.4, 1.4])
    limits = {"vmin": float(features.min()), "vmax": float(features.max())}
    for box, (read, sampled, pooled, aligned) in zip(boxes, grid, strict=True):
        for axes, title in ((read, "RoIPool"), (sampled, "RoIAlign")):
            show_map(axes, features, stride, **limits)
            axes.set_title(f"{title}, x1 = {float(box[0]):g}")
        draw_bins(read, pooled_bins(box, size, stride, tuple(features.shape)), PALETTE[:3], inset=stride / 12)
        draw_bins(sampled, exact_bins(box, size), PALETTE[:2])
        sampled.plot(*sample_points(box, size, stride).T, ".", color=INK, markersize=4)
        for axes in (read, sampled):
            outline(axes, box, PALETTE[3], linestyle="--")
        for axes, values, name in zip((pooled, aligned), pooled_and_aligned(features, box, size, stride),
                                      ("RoIPool", "RoIAlign"), strict=True):  # fmt: skip
            show_map(axes, values, 1, numbers=".2f", **limits)
            axes.set(title=f"{name}'s", xlabel="outputs", xticks=[], yticks=[])
    return figure


def roi_slider(features: Tensor, box: Tensor, size: tuple[int, int], stride: float, pixels: int = 48):
    """A slider that moves the box to the right, pixel by pixel, and the picture and a line of text that follow.

    Args:
        features, box, size, stride: as in `roi_frames`, of one box (4,).
        pixels: as far as the box goes.

    Returns:
        An ipywidgets VBox of slider, text and picture; it needs a running kernel to move. The package does not need
        ipywidgets for anything else.
    """
    from ipywidgets import HTML, Image, IntSlider, VBox

    slider = IntSlider(value=0, min=0, max=pixels, description="pixels")
    text, picture = HTML(), Image(format="png", width=720)
    first = pooled_and_aligned(features, box, size, stride)

    def redraw(change=None) -> None:
        moved = box + torch.tensor([1.0, 0.0, 1.0, 0.0]) * slider.value
        read, outputs = rounded_box(moved, stride), pooled_and_aligned(features, moved, size, stride)
        pool, align = (float((now - then).abs().max()) for now, then in zip(outputs, first, strict=True))
        text.value = (
            f"The box reaches from x = {float(moved[0]):g} to {float(moved[2]):g}, RoIPool reads {float(read[0]):g} "
            f"to {float(read[2]):g}. Largest change of an output since the start: "
            f"RoIPool {pool:.3f}, RoIAlign {align:.3f}."
        )
        picture.value = figure_png(roi_frames(features, moved[None], size, stride))

    slider.observe(redraw, names="value")
    redraw()
    return VBox([slider, text, picture])
