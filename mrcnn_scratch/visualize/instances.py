"""The objects of a target or of a detection, drawn on an image: masks, boxes, name tags and keypoints."""

from dataclasses import dataclass

import numpy as np
import torch
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from .style import INK, LEFT, MIDDLE, RIGHT, array, label_colour, points_per_pixel, show_image, styled


@dataclass(frozen=True)
class Instance:
    """One object to draw."""

    label: int
    tag: str
    box: np.ndarray  # (4,) xyxy, pixels
    outline: Path | None  # of the mask, pixels
    area: float  # of the mask, or of the box where there is no mask, square pixels
    keypoints: np.ndarray  # (J, 3) x, y, 0 unlabelled | 1 hidden | 2 seen or predicted; (0, 3): none to draw
    crowd: bool


def read_instances(instances: dict, class_names: list[str], score_threshold: float = 0.5) -> list[Instance]:
    """What is to be drawn of a target, or of a detection: of that the good scores, best first.

    Args:
        instances: ``boxes (G, 4)`` xyxy pixels and ``labels (G,)``; optionally ``scores (G,)``, ``masks`` (G,
            H, W) or (G, 1, H, W), ``keypoints (G, J, 3)``, ``iscrowd (G,)``.
        class_names: index = label; :func:`has_keypoints` says which classes' predicted keypoints are drawn.
        score_threshold: of detections, 0..1.

    Raises:
        ValueError: a label without a name.
    """
    values = {key: array(value) for key, value in instances.items()}
    labels, scores = values["labels"], values.get("scores")
    keep = range(len(labels))
    if scores is not None:
        keep = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] >= score_threshold]
    found = []
    for i in keep:
        label = int(labels[i])
        if not 0 <= label < len(class_names):
            raise ValueError(
                f"object {i} has label {label}, but class_names has {len(class_names)} entries: "
                "give one for every label, the background first"
            )
        crowd = bool(values["iscrowd"][i]) if "iscrowd" in values else False
        tag = class_names[label] + (" (crowd)" if crowd else "") + (f" {scores[i]:.2f}" if scores is not None else "")
        box = values["boxes"][i].astype(float)
        outline, area = None, float((box[2] - box[0]) * (box[3] - box[1]))
        if "masks" in values:
            mask = values["masks"][i].reshape(values["masks"].shape[-2:])
            outline, area = mask_outline(mask), float((mask >= 0.5).sum())
        points = np.zeros((0, 3))
        if "keypoints" in values and (scores is None or has_keypoints(label, class_names)):
            points = values["keypoints"][i].copy()
            if scores is not None:  # the third number of a detection is 1 throughout and says nothing
                points[:, 2] = 2
        found.append(Instance(label, tag, box, outline, area, points, crowd))
    return found


def has_keypoints(label: int, class_names: list[str]) -> bool:
    """Whether a class's predicted keypoints mean anything: "person"'s alone, or every class's where none is "person".

    The keypoint branch answers for every box, and for a ring it answers nonsense.

    Args:
        label: a class, 1 or more.
        class_names: index = label.
    """
    return "person" not in class_names or class_names[label] == "person"


def mask_outline(mask: np.ndarray) -> Path | None:
    """The outline of the pixels that are at least 0.5, with its holes; None for an empty mask.

    Args:
        mask: (H, W) in [0, 1], or 0/1. The outline of a soft one runs between pixel centres, where it crosses
            0.5.
    """
    mask = np.asarray(mask, dtype=np.float32)
    rows, columns = (np.flatnonzero((mask >= 0.5).any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    # a ring of zeros closes the outline at the image's border; in padded indices pixel i is i + 1
    around = np.pad(mask, 1)[top : bottom + 2, left : right + 2]
    x, y = np.arange(left - 1, right + 1) + 0.5, np.arange(top - 1, bottom + 1) + 0.5  # pixel centres
    lines = contour_generator(x, y, around).lines(0.5 - 1e-4)  # just below, so that a pixel of exactly 0.5 is inside
    return Path.make_compound_path(*(Path(line, closed=True) for line in lines))


@styled
def draw_instances(
    axes: Axes,
    image: torch.Tensor,
    instances: dict,
    class_names: list[str],
    skeleton: list[tuple[int, int]] = (),
    score_threshold: float = 0.5,
) -> None:
    """An image with its objects: masks, boxes, names and scores, keypoints.

    Args:
        axes: where to draw; matplotlib Axes of any figure.
        image: (3, H, W) float in [0, 1].
        instances: a target or a detection, see :func:`read_instances`.
        class_names: index = label, 0 is the background.
        skeleton: pairs of keypoints to join, 0-based. COCO's 17 keypoints are coloured by side: odd ones are
            left.
        score_threshold: detections below it are not drawn, 0..1.

    Raises:
        ValueError: an image that is not (3, H, W), or a label without a name.
    """
    show_image(axes, image)
    draw_marks(axes, image.shape[-2:], read_instances(instances, class_names, score_threshold), skeleton)


@styled
def draw_marks(
    axes: Axes,
    size: tuple[int, int],
    found: list[Instance],
    skeleton: list[tuple[int, int]] = (),
    tag_size: float = 7.0,
) -> None:
    """The marks of :func:`draw_instances` without the image; keeps the view at ``size`` (H, W) pixels."""
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0), aspect="equal")
    scale = points_per_pixel(axes, size)
    for item in sorted(found, key=lambda item: -item.area):  # small ones on top
        colour, dashes = label_colour(item.label), (0, (3, 2)) if item.crowd else "-"
        if item.outline is not None:
            draw_outline(axes, item.outline, colour, linestyle=dashes)
        x1, y1, x2, y2 = item.box
        corner, edges = (x1, y1), (x2 - x1, y2 - y1)
        axes.add_patch(Rectangle(corner, *edges, fill=False, edgecolor=colour, linewidth=0.8, linestyle=dashes))
    for item in found:
        if len(item.keypoints):
            extent = scale * max(item.box[2] - item.box[0], item.box[3] - item.box[1])  # points
            draw_keypoints(axes, item.keypoints, skeleton, float(np.clip(extent / 28, 1.6, 6)))
    taken: list[tuple[float, float, float, float]] = []
    for item in found:
        others = [other.box for other in found if other is not item]
        draw_tag(axes, item, size, scale, others, taken, tag_size)


def draw_outline(axes: Axes, outline: Path, colour: str, alpha: float = 0.38, linestyle="-", linewidth=1.2) -> None:
    """A translucent mask with a crisp edge; white beside the colour, so that it shows on any ground."""
    axes.add_patch(PathPatch(outline, facecolor=(*to_rgb(colour), alpha), edgecolor="none"))
    casing = [withStroke(linewidth=linewidth + 0.9, foreground="white", alpha=0.9)]
    axes.add_patch(
        PathPatch(
            outline,
            fill=False,
            edgecolor=colour,
            linewidth=linewidth,
            linestyle=linestyle,
            path_effects=casing,
        )
    )


def side_colour(joint: int, count: int) -> str:
    """Of a keypoint: COCO's 17 alternate, nose in the middle, then left, right; others have no side."""
    return MIDDLE if count != 17 or joint == 0 else (LEFT if joint % 2 else RIGHT)


def draw_keypoints(axes: Axes, points: np.ndarray, skeleton, diameter: float) -> None:
    """Joints and limbs of one object; hidden joints (visibility 1) are hollow, unlabelled ones (0) absent.

    Args:
        points: (J, 3) x, y in pixels and visibility.
        skeleton: pairs of 0-based joints.
        diameter: of a joint, in points.
    """
    J, labelled, hidden = len(points), points[:, 2] > 0, points[:, 2] == 1
    dark = [withStroke(linewidth=diameter * 0.4 + 1.0, foreground=INK, alpha=0.85)]
    for a, b in skeleton:
        if labelled[a] and labelled[b]:
            ends = {side_colour(a, J), side_colour(b, J)}
            colour = ends.pop() if len(ends) == 1 else (ends - {MIDDLE}).pop() if MIDDLE in ends else MIDDLE
            x, y = points[[a, b], :2].T
            axes.plot(x, y, color=colour, linewidth=diameter * 0.4, path_effects=dark, zorder=3)
    for joint in np.flatnonzero(labelled):
        colour = side_colour(joint, J)
        face, edge = ((0, 0, 0, 0.55), colour) if hidden[joint] else (colour, INK)
        marker = {"marker": "o", "markersize": diameter, "markerfacecolor": face, "markeredgecolor": edge}
        axes.plot(*points[joint, :2], **marker, markeredgewidth=0.8, linestyle="none", zorder=4)


def draw_tag(axes: Axes, item: Instance, size, scale: float, others: list, taken: list, tag_size: float) -> None:
    """A name tag at the object's box, where it hides least; ``taken`` collects where tags are."""
    height, width = size
    w, h = (
        (0.62 * len(item.tag) + 0.5) * tag_size / scale,
        1.45 * tag_size / scale,
    )  # pixels, a little generous
    x1, y1, x2, y2 = item.box
    outside = [(x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2)]
    corners = outside + [(x1, y1), (x2 - w, y1), (x1, y2 - h)]
    corners = [(min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))) for x, y in corners]

    def hidden(corner) -> float:
        tag = (*corner, corner[0] + w, corner[1] + h)
        # other tags are worst to hide, then other objects, then the object itself
        return 10 * _shared(tag, taken) + _shared(tag, others) + 0.3 * _shared(tag, [item.box])

    x, y = min(corners, key=hidden)  # the first of the best
    taken.append((x, y, x + w, y + h))
    colour = label_colour(item.label)
    light = np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) > 0.45
    plate = {"boxstyle": "square,pad=0.16", "facecolor": colour, "edgecolor": "none"}
    style = {"fontsize": tag_size, "color": INK if light else "white", "va": "center_baseline", "bbox": plate}
    axes.text(x + 0.22 * tag_size / scale, y + h / 2, item.tag, **style, zorder=6, clip_on=True)


def _shared(tag, boxes) -> float:
    """Square pixels that a box shares with others, summed."""
    x1, y1, x2, y2 = tag
    return sum(max(0, min(x2, b[2]) - max(x1, b[0])) * max(0, min(y2, b[3]) - max(y1, b[1])) for b in boxes)
