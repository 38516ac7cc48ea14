"""Truth beside detections, and two models' masks beside each other."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch

from ..boxes import box_iou
from .instances import draw_instances, draw_outline, mask_outline
from .style import INK, LEFT, MUTED, RIGHT, array, label_colour, show_image, styled


def image_grid(width: float, aspects: list[float], gaps: list[float], top: float, bottom: float, between: float):
    """A grid of equally wide axes, each row as high as its pictures need; all lengths in inches.

    Args:
        width: of the figure.
        aspects: height / width of each row's pictures.
        gaps: between neighbouring columns; there is one column more.
        top, bottom: margins for headings and legend.
        between: rows.

    Returns:
        Figure and a list of rows of Axes.
    """
    side = 0.05
    cell = (width - 2 * side - sum(gaps)) / (len(gaps) + 1)
    height = top + bottom + sum(cell * aspect for aspect in aspects) + between * max(0, len(aspects) - 1)
    figure = Figure(figsize=(width, height), dpi=110)
    rows, y = [], height - top
    for aspect in aspects:
        y -= cell * aspect
        x, row = side, []
        for gap in [*gaps, 0]:
            row.append(figure.add_axes((x / width, y / height, cell / width, cell * aspect / height)))
            x += cell + gap
        rows.append(row)
        y -= between
    return figure, rows


@styled
def truth_and_detections(
    samples: list[tuple[torch.Tensor, dict, dict]],
    class_names: list[str],
    skeleton: list[tuple[int, int]] = (),
    columns: int = 2,
    score_threshold: float = 0.5,
) -> Figure:
    """Pairs of pictures: the ground truth on the left, what the model says on the right.

    Args:
        samples: (image (3, H, W) in [0, 1], target, detection) each; images may differ in size.
        class_names: index = label.
        skeleton: pairs of keypoints to join.
        columns: pairs side by side.
        score_threshold: detections below it are not drawn, 0..1.

    Raises:
        ValueError: no samples, or a label without a name.
    """
    if not samples:
        raise ValueError("there is nothing to draw: give at least one (image, target, detection)")
    columns = min(columns, len(samples))
    lines = [samples[start : start + columns] for start in range(0, len(samples), columns)]
    aspects = [max(image.shape[1] / image.shape[2] for image, _, _ in line) for line in lines]
    gaps = ([0.06, 0.24] * columns)[:-1]
    people = len(skeleton) > 0
    figure, grid = image_grid(2.28 * 2 * columns, aspects, gaps, 0.3, 0.32 if people else 0.06, 0.1)
    for line, row in zip(lines, grid, strict=True):
        for axes in row:
            axes.set_axis_off()
        for pair, (image, target, detection) in enumerate(line):
            draw_instances(row[2 * pair], image, target, class_names, skeleton)
            draw_instances(row[2 * pair + 1], image, detection, class_names, skeleton, score_threshold)
    for pair in range(columns):
        grid[0][2 * pair].set_title("ground truth")
        grid[0][2 * pair + 1].set_title(f"detections (score ≥ {score_threshold:g})")
    if people:
        figure.legend(handles=_limb_handles(), loc="lower center", ncols=3, handlelength=1.4, borderaxespad=0.3)
    return figure


def _limb_handles() -> list[Line2D]:
    hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "markeredgecolor": MUTED}
    return [
        Line2D([], [], color=LEFT, linewidth=2.5, label="the person's left"),
        Line2D([], [], color=RIGHT, linewidth=2.5, label="the person's right"),
        Line2D([], [], **hollow, label="hidden keypoint (ground truth)"),
    ]


VERDICTS = ("#2FA87C", "#0072B2", "#D55E00")
VERDICT_NAMES = ("right", "missed", "too much")


@styled
def compare_ops(
    samples: list[tuple[torch.Tensor, dict]],
    detections_a: list[dict],
    detections_b: list[dict],
    names: tuple[str, str] = ("RoIAlign", "RoIPool"),
    class_names: list[str] | None = None,
) -> Figure:
    """Masks of two models pixel by pixel, on the largest object of each image: where exactly they miss.

    A row shows the object, then the mask of each model on it: green is right, blue was missed, red is too
    much, and the black line is the true outline. The object is chosen by its size alone, never by how a model
    fares on it. A model's answer is its best-scored detection of that class with box IoU of at least 0.5.

    Args:
        samples: (image (3, H, W), target) each; images without objects, or with crowds alone, are left out.
        detections_a: of the first model, one for each sample.
        detections_b: of the second.
        names: of the two models.
        class_names: index = label, for the row's heading.

    Raises:
        ValueError: numbers of samples and detections that differ, or no image with an object.
    """
    if not len(samples) == len(detections_a) == len(detections_b):
        counts = f"{len(samples)} samples, {len(detections_a)} and {len(detections_b)} detections"
        raise ValueError(f"{counts}: give one detection of each model for every sample")
    rows = [row for row in zip(samples, detections_a, detections_b, strict=True) if _single(row[0][1]).any()]
    if not rows:
        raise ValueError("no image has an object to compare: give samples with ground truth")
    figure, grid = image_grid(7.6, [1.0] * len(rows), [0.08, 0.08], 0.48, 0.36, 0.3)
    for (sample, *detections), line in zip(rows, grid, strict=True):
        _compare_row(line, *sample, detections, class_names)
    for axes, name in zip(grid[0], ("ground truth", *names), strict=True):
        x, _, _, top = axes.get_position(original=True).extents
        figure.text(x, top + 0.26 / figure.get_figheight(), name, fontsize=11, weight="bold")
    patches = [Patch(color=colour, label=text) for colour, text in zip(VERDICTS, VERDICT_NAMES, strict=True)]
    handles = [*patches, Line2D([], [], color=INK, label="true outline")]
    figure.legend(handles=handles, loc="lower center", ncols=4, handlelength=1.4, borderaxespad=0.3)
    return figure


def _compare_row(line: list[Axes], image, target, detections: list[dict], class_names) -> None:
    sizes = array(target["masks"]).sum(axis=(1, 2), dtype=np.int64)
    chosen = int(np.argmax(np.where(_single(target), sizes, -1)))
    truth, label = array(target["masks"][chosen]) > 0, int(target["labels"][chosen])
    outline, size = mask_outline(truth), truth.shape
    show_image(line[0], image)
    if outline is not None:
        draw_outline(line[0], outline, label_colour(label), alpha=0.25)
    if class_names:
        line[0].set_title(class_names[label])
    pale = (image.mean(dim=0, keepdim=True) * 0.5 + 0.5).expand(3, -1, -1)  # so that only the verdicts have colour
    for axes, detection in zip(line[1:], detections, strict=True):
        show_image(axes, pale)
        found = _match(detection, target["boxes"][chosen], label)
        axes.set_title("not found")
        if found is not None:
            mask = array(detection["masks"][found]).reshape(size) >= 0.5
            axes.imshow(_verdict(mask, truth), extent=(0, size[1], size[0], 0), interpolation="nearest")
            axes.set_title(f"mask IoU {(mask & truth).sum() / max(1, (mask | truth).sum()):.2f}")
        if outline is not None:
            axes.add_patch(PathPatch(outline, fill=False, edgecolor=INK, linewidth=0.9))
    for axes in line:
        axes.set(**_view(target["boxes"][chosen].tolist(), size), facecolor="#EEEEEE", aspect="equal")


def _single(target: dict) -> np.ndarray:
    """(G,) which objects are not crowds."""
    return array(target["iscrowd"]) == 0 if "iscrowd" in target else np.ones(len(target["boxes"]), bool)


def _view(box: list[float], size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Limits of a square view around a box, moved into the image where it fits."""
    half = 0.6 * max(box[2] - box[0], box[3] - box[1]) + 2  # pixels, with a margin
    limits = []
    for low, high, length in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        centre = (low + high) / 2
        centre = length / 2 if 2 * half > length else min(max(centre, half), length - half)
        limits.append((centre - half, centre + half))
    return {"xlim": limits[0], "ylim": limits[1][::-1]}


def _match(detection: dict, box: torch.Tensor, label: int) -> int | None:
    """Index of the best-scored detection of the class with box IoU of at least 0.5."""
    iou = box_iou(box[None].cpu().float(), detection["boxes"].cpu().float())[0]  # (D,)
    fits = ((iou >= 0.5) & (detection["labels"].cpu() == label)).nonzero()[:, 0]
    return int(fits[detection["scores"].cpu()[fits].argmax()]) if len(fits) else None


def _verdict(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8: right, missed and surplus pixels in their colours, others transparent."""
    picture = np.zeros((*truth.shape, 4), np.uint8)
    for where, colour in zip((mask & truth, truth & ~mask, mask & ~truth), VERDICTS, strict=True):
        picture[where] = [*bytes.fromhex(colour[1:]), 190]
    return picture
