"""The ablation lab's pictures: seeds as points, differences with intervals, masks side by side, where errors sit."""

import base64
import io
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .curves import IOU_THRESHOLDS
from .pictures import image_grid
from .style import INK, MUTED, PALETTE, frame, show_array, styled

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VERDICTS = {"reproduced": "#009E73", "equivalent": "#0072B2", "not resolved": MUTED}


@styled
def seed_points(arms: dict[str, dict[str, list[float]]], title: str = "") -> Figure:
    """Every run as a point and each arm's mean as a bar, a panel for each measure.

    Args:
        arms: arm -> measure -> values of the seeds, in points of AP.
        title: above the figure.
    """
    measures = list(dict.fromkeys(measure for values in arms.values() for measure in values))
    figure = Figure(figsize=(9, 0.95 + 0.3 * len(arms)), dpi=110, layout="constrained")
    first = None
    for index, measure in enumerate(measures):
        axes = figure.add_subplot(1, len(measures), index + 1, sharey=first)
        first = first or axes
        for row, (_, values) in enumerate(arms.items()):
            points = np.asarray(values.get(measure, []))
            axes.scatter(points, np.full(len(points), row), s=26, color=COLOURS[0], alpha=0.75, linewidths=0, zorder=3)
            if len(points):
                axes.plot([points.mean()] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.6, zorder=4)
        axes.set_title(measure)
        axes.set_yticks(range(len(arms)), [textwrap.fill(name, 34) for name in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.grid(axis="x")
        axes.tick_params(labelleft=index == 0, left=False)
        axes.locator_params(axis="x", nbins=5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


@styled
def difference_forest(comparisons: list[dict], title: str = "") -> Figure:
    """Mean differences with their 95 % intervals, seeds as points; the colour is the verdict.

    Args:
        comparisons: as in a results file, with ``label``; differences in 0..1.
        title: above the figure.
    """
    rows = [c for c in comparisons if c["difference"] is not None]
    figure = Figure(figsize=(9, 1.1 + 0.34 * len(rows)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=MUTED, linewidth=0.9)
    for row, comparison in enumerate(rows):
        colour = VERDICTS[comparison["verdict"]]
        if comparison["margin"]:
            half = 100 * comparison["margin"]
            axes.fill_between([-half, half], row - 0.42, row + 0.42, color="#0072B2", alpha=0.12, linewidth=0)
        points = 100 * np.asarray(comparison.get("differences", []))
        axes.scatter(points, np.full(len(points), row), s=13, color=MUTED, alpha=0.6, linewidths=0, zorder=3)
        if comparison["low"] is not None:
            ends = [100 * comparison["low"], 100 * comparison["high"]]
            axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
        filling = "white" if comparison.get("claim") == "none" else colour
        style = {"marker": "D", "markersize": 6, "color": colour, "markerfacecolor": filling, "zorder": 4}
        axes.plot(100 * comparison["difference"], row, **style)
        if comparison.get("paper") is not None:
            axes.plot(comparison["paper"], row, marker="x", markersize=6, color=INK, zorder=5)
    axes.set_yticks(range(len(rows)), [textwrap.fill(c["label"], 62) for c in rows], fontsize=7.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    papers = any(comparison.get("paper") is not None for comparison in rows)
    axes.set_xlabel("difference in points of AP" + "; x: the paper's, on COCO" * papers)
    axes.grid(axis="x")
    axes.tick_params(left=False)
    claimed = {c["verdict"]: VERDICTS[c["verdict"]] for c in rows if c.get("claim") != "none"}
    nothing = {"nothing claimed": MUTED} if any(c.get("claim") == "none" for c in rows) else {}
    for word, colour in (claimed | nothing).items():
        filling = "white" if word in nothing else colour
        axes.plot([], [], marker="D", color=colour, markerfacecolor=filling, linewidth=2.2, label=word)
    if any(c["margin"] for c in rows):
        axes.fill_between([], [], [], color="#0072B2", alpha=0.12, linewidth=0, label="margin")
    figure.legend(loc="outside upper right", ncols=4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


@styled
def threshold_curves(panels: dict[str, dict[str, list[list[float]]]], title: str = "") -> Figure:
    """AP against the threshold that a match must reach: each arm's mean as a line, its seeds as faint ones.

    Args:
        panels: kind -> arm -> seeds -> 10 values in points, at .50:.05:.95.
        title: above the figure.
    """
    figure = Figure(figsize=(max(5.2, 4.4 * len(panels)), 3.6), dpi=110, layout="constrained")
    first = None
    for index, (kind, arms) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1, sharey=first)
        first = first or axes
        for number, (arm, seeds) in enumerate(arms.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for values in seeds:
                axes.plot(IOU_THRESHOLDS, values, color=colour, alpha=0.2, linewidth=0.8)
            mean = np.mean(seeds, axis=0)
            axes.plot(IOU_THRESHOLDS, mean, color=colour, marker=marker, markersize=4.2, linewidth=1.6, label=arm)
        axes.set(title=kind, ylim=(0, 102), xlim=(0.48, 0.97), xticks=[0.5, 0.6, 0.7, 0.8, 0.9])
        axes.set_xlabel("OKS threshold" if kind.startswith("keypoint") else "IoU threshold")
        axes.grid()
        axes.tick_params(labelleft=index == 0)
        axes.legend(loc="upper right", fontsize=7.5)
    if first is not None:
        first.set_ylabel("% of objects, or AP")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


@styled
def step_curves(arms: dict[str, list[list[list[float]]]], measure: str, title: str = "") -> Figure:
    """A measure against the training steps, the seeds' mean and range.

    Args:
        arms: arm -> seeds -> [step, value in 0..1] pairs.
    """
    figure = Figure(figsize=(5.6, 3.3), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for number, (arm, seeds) in enumerate(arms.items()):
        steps, values = np.asarray(seeds[0])[:, 0], 100 * np.asarray(seeds)[:, :, 1]
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(steps, values.mean(axis=0), color=colour, marker=marker, markersize=4.5, linewidth=1.7, label=arm)
    axes.set(xlabel="training step", ylabel=measure, ylim=(0, None), xlim=(0, None))
    axes.grid()
    axes.legend(loc="best")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


@styled
def masks_side_by_side(objects: list[dict], examples: dict[str, list[dict]], title: str = "") -> Figure:
    """The same objects as different arms see them: the true mask, then each arm's, with its IoU.

    Args:
        objects: ``image`` and ``truth`` of each, PNG in base64.
        examples: arm -> ``object``, its number, ``found``, a PNG, and ``iou``; all arms have the same objects.
        title: above the figure.
    """
    arms, rows = list(examples), list(zip(*examples.values(), strict=True))
    shown = [objects[row[0]["object"]] for row in rows]
    shapes = [_pixels(each["image"]).shape for each in shown]
    aspects = [height / width for height, width, _ in shapes]
    gaps = [0.06] * len(arms)
    figure, grid = image_grid(min(9.0, 1.55 * (len(arms) + 1)), aspects, gaps, 0.62 if title else 0.4, 0.06, 0.07)
    for each, row, cells in zip(shown, rows, grid, strict=True):
        pixels = _pixels(each["image"])
        _mask(cells[0], pixels, _pixels(each["truth"]) > 0, PALETTE[0])
        for axes, found in zip(cells[1:], row, strict=True):
            _mask(axes, pixels, _pixels(found["found"]) > 0, COLOURS[1])
            style = {"boxstyle": "square,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
            axes.text(0.03, 0.04, f"IoU {found['iou']:.2f}", transform=axes.transAxes, fontsize=8, bbox=style)
    for axes, name in zip(grid[0], ["truth", *arms], strict=True):
        axes.set_title(textwrap.fill(name, 15), loc="center", fontsize=8.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


def _mask(axes: Axes, pixels: np.ndarray, mask: np.ndarray, colour: str) -> None:
    """The picture, the mask over it, its edge drawn along the pixels."""
    show_array(axes, pixels)
    tint = np.zeros((*mask.shape, 4))
    tint[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    tint[..., 3] = 0.45 * mask
    height, width = mask.shape
    axes.imshow(tint, extent=(0, width, height, 0), interpolation="nearest")
    for row, column in zip(*np.nonzero(mask), strict=True):
        for edge, beyond in (
            (((column, column + 1), (row, row)), row > 0 and mask[row - 1, column]),
            (((column, column + 1), (row + 1, row + 1)), row + 1 < height and mask[row + 1, column]),
            (((column, column), (row, row + 1)), column > 0 and mask[row, column - 1]),
            (((column + 1, column + 1), (row, row + 1)), column + 1 < width and mask[row, column + 1]),
        ):
            if not beyond:
                axes.plot(*edge, color=colour, linewidth=1.1)
    axes.set(xlim=(0, width), ylim=(height, 0))
    frame(axes)


@styled
def error_maps(maps: dict[str, list[list[float]]], around: float, title: str = "") -> Figure:
    """How often a pixel is wrong, by its place in the frame of the object's box (the dashed square).

    Args:
        maps: arm -> (n, n) shares of objects.
        around: the map's side in sides of the box.
        title: above the figure.
    """
    highest = max(np.max(values) for values in maps.values())
    width = min(9.0, 1.75 * len(maps) + 0.6)
    names = [textwrap.fill(name, 16) for name in maps]
    lines = 1 + max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(width, width / len(maps) + 0.3 + 0.2 * lines), dpi=110, layout="constrained")
    panels, image = [], None
    for index, (name, values) in enumerate(zip(names, maps.values(), strict=True)):
        axes = figure.add_subplot(1, len(maps), index + 1)
        side = len(values)
        image = axes.imshow(
            100 * np.asarray(values), vmin=0, vmax=100 * highest, cmap="magma", extent=(0, side, side, 0)
        )
        low, high = side * (1 - 1 / around) / 2, side * (1 + 1 / around) / 2
        axes.plot(
            [low, high, high, low, low], [low, low, high, high, low], color="white", linewidth=0.9, linestyle="--"
        )
        axes.set_title(f"{name}\n{100 * np.mean(values):.1f} % wrong", loc="center", fontsize=8)
        frame(axes)
        panels.append(axes)
    figure.colorbar(image, ax=panels, label="% of objects", shrink=0.8, pad=0.01)
    figure.supxlabel("dashed: the object's box; % wrong is the mean over the whole square", fontsize=7.5, color=MUTED)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure


def _pixels(png: str) -> np.ndarray:
    """A PNG in base64 as an array; masks become 0 and 255."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    return np.asarray(image.convert("L") if image.mode == "1" else image)
