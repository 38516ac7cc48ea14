"""Annotated photos, at their own resolution: what ``mrcnn predict`` writes."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..files import whole_file
from .instances import draw_marks, read_instances
from .style import image_pixels, styled


@styled
def annotated(
    image: torch.Tensor,
    detection: dict,
    class_names: list[str],
    skeleton: list[tuple[int, int]] = (),
    score_threshold: float = 0.5,
    min_pixels: int = 384,
) -> Image.Image:
    """The photo with its detections, at its own resolution; a small one is magnified by a whole number.

    Args:
        image: (3, H, W) float in [0, 1].
        detection: see :func:`draw_instances`.
        class_names: index = label.
        skeleton: pairs of keypoints to join.
        score_threshold: detections below it are not drawn, 0..1.
        min_pixels: least length of the shorter edge: 128 x 200 becomes 384 x 600.
    """
    pixels = image_pixels(image)
    height, width = pixels.shape[:2]
    factor = max(1, math.ceil(min_pixels / min(height, width)))
    photo = Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    dpi = 100 * max(1.0, min(photo.size) / 480)  # lines and letters grow with large photos
    # half a pixel more, since the canvas cuts the product to whole pixels
    figure = Figure(figsize=((photo.width + 0.5) / dpi, (photo.height + 0.5) / dpi), dpi=dpi, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    found = read_instances(detection, class_names, score_threshold)
    draw_marks(axes, (height, width), found, skeleton, tag_size=8.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    marks = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    return Image.alpha_composite(photo.convert("RGBA"), marks).convert("RGB")


def save_annotated(
    image: torch.Tensor,
    detection: dict,
    class_names: list[str],
    skeleton: list[tuple[int, int]],
    path: str | Path,
    score_threshold: float = 0.5,
    min_pixels: int = 384,
) -> None:
    """Writes :func:`annotated` as a PNG file, whole or not at all.

    Args:
        image, detection, class_names, skeleton, score_threshold, min_pixels: see :func:`annotated`.
        path: the file; its folder is made.

    Raises:
        ValueError: an image that is not (3, H, W), or a label without a name.
    """
    picture = annotated(image, detection, class_names, skeleton, score_threshold, min_pixels)
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")
