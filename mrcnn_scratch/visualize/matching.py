"""Who is asked what: anchors on their image, coloured by the label that matching gave them."""

import torch
from matplotlib.axes import Axes

from ..matching import BACKGROUND, IGNORED
from .panels import draw_boxes
from .style import MUTED, PALETTE, array, show_image

POSITIVE_COLOUR, IGNORED_COLOUR, BACKGROUND_COLOUR = PALETTE[3], PALETTE[1], MUTED


def draw_labels(axes: Axes, image: torch.Tensor, anchors: torch.Tensor, matches: torch.Tensor) -> None:
    """A dot in the middle of each anchor: small and grey background, orange ignored; positives blue, with their box.

    Anchors of a cell share their middle: a positive one is drawn over an ignored one, this over background.

    Args:
        axes: where.
        image: (3, H, W) float in [0, 1], drawn pale.
        anchors: (A, 4) xyxy, pixels.
        matches: (A,) as :func:`mrcnn_scratch.matching.match` gives them.
    """
    show_image(axes, image * 0.45 + 0.55)
    x, y = array((anchors[:, :2] + anchors[:, 2:]).T / 2)
    kinds = (
        (matches == BACKGROUND, BACKGROUND_COLOUR, 0.7),
        (matches == IGNORED, IGNORED_COLOUR, 3.0),
        (matches >= 0, POSITIVE_COLOUR, 5.0),
    )
    for kind, colour, size in kinds:
        kind = array(kind)
        axes.plot(x[kind], y[kind], "o", color=colour, markersize=size, markeredgewidth=0)
    draw_boxes(axes, anchors[matches >= 0], POSITIVE_COLOUR, linewidth=1.5)
    axes.set(xlim=(0, image.shape[2]), ylim=(image.shape[1], 0))
