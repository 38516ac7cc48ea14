"""What every picture shares: colours, fonts, and how an image is put on axes.

Everything is drawn in continuous coordinates, pixel i covering [i, i+1), on matplotlib Axes that the caller
owns. Nothing here touches pyplot or the reader's backend.
"""

import functools
import io

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008): told apart with every common kind of colour blindness. Label 1 first; limbs have others.
PALETTE = ("#009E73", "#E69F00", "#CC79A7", "#0072B2", "#F0E442")
LEFT, RIGHT, MIDDLE = "#56B4E9", "#D55E00", "#FFFFFF"  # of a person's own left and right
INK, MUTED = "#222222", "#6B6B6B"

# a figure looks the same whatever the reader's rcParams say
STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white", "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": False, "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "grid.linestyle": "-",
    "font.family": ["DejaVu Sans"], "font.size": 9.0, "axes.titlesize": 10.0, "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 9.0, "legend.frameon": False,
    "axes.titlelocation": "left", "axes.titleweight": "normal", "image.interpolation": "auto",
    "lines.linestyle": "-", "lines.marker": "None", "path.sketch": None,
    "text.usetex": False, "figure.autolayout": False, "figure.constrained_layout.use": False,
    "savefig.bbox": None, "savefig.transparent": False,
}  # fmt: skip


def styled(function):
    """Runs a function that makes artists under :data:`STYLE`; the reader's rcParams stay as they were."""

    @functools.wraps(function)
    def inside(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return inside


def label_colour(label: int) -> str:
    """The colour of a class, the same in every figure; labels 1 and 6 share one: the tag tells them apart."""
    return PALETTE[(label - 1) % len(PALETTE)]


def array(value) -> np.ndarray:
    """A tensor of any device, or anything else, as a numpy array."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def image_pixels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) float in [0, 1] -> (H, W, 3) uint8.

    Raises:
        ValueError: another shape.
    """
    pixels = array(image)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"an image must be (3, H, W) in [0, 1], this one is {pixels.shape}: permute it first")
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def show_image(axes: Axes, image: torch.Tensor) -> None:
    """Shows an image in continuous coordinates, its corner at (0, 0), without ticks.

    Args:
        axes: where.
        image: (3, H, W) float in [0, 1].
    """
    show_array(axes, image_pixels(image))


def show_array(axes: Axes, pixels: np.ndarray, **style) -> None:
    """The same for an (H, W) or (H, W, C) array; ``style`` goes to ``imshow``."""
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), **style)
    frame(axes)


def frame(axes: Axes) -> None:
    """Takes ticks and spines away: a picture has no scale."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def points_per_pixel(axes: Axes, size: tuple[int, int]) -> float:
    """How large a pixel is on the page, in points of 1/72 inch, once an image of (H, W) fits the axes."""
    across, down = axes.bbox.width / size[1], axes.bbox.height / size[0]
    return min(across, down) / axes.get_figure(root=True).dpi * 72


@styled
def figure_png(figure: Figure, dpi: float | None = None) -> bytes:
    """The figure as a PNG file's bytes; ``dpi`` pixels per inch, the figure's own by default."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi, metadata={"Software": None})
    return buffer.getvalue()
