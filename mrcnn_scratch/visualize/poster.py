"""The poster: one image through every stage of Mask R-CNN, drawn from what the model really computes."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ..config import ModelConfig
from ..model import MaskRCNN
from .instances import draw_instances, has_keypoints
from .panels import draw_boxes
from .stages import Stages, run_stages
from .style import INK, MUTED, PALETTE, array, frame, label_colour, show_array, show_image, styled

SHOWN_CLASSES = 5  # of the most likely, in the bars of an RoI
LETTERS = "ABCD"
HEAT = "magma"


@styled
def stage_poster(
    model: MaskRCNN,
    image: torch.Tensor,
    class_names: list[str],
    skeleton: list[tuple[int, int]] = (),
    score_threshold: float = 0.5,
) -> Figure:
    """One image through every stage: pyramid, anchors, proposals, NMS, RoIs, classes, masks, result.

    Args:
        model: any Mask R-CNN, trained or not; panels of branches that it lacks are left out.
        image: (3, H, W) float in [0, 1].
        class_names: index = label, 0 is the background.
        skeleton: pairs of keypoints to join.
        score_threshold: of the last panel, 0..1.
    """
    stages = run_stages(model, image)
    panels = _panels(stages, model.config, len(class_names), score_threshold)
    context = {"class_names": class_names, "skeleton": skeleton, "score_threshold": score_threshold}
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(2.75 * columns, 6.9), dpi=100)
    cells = figure.subfigures(2, columns, wspace=0, hspace=0).flat
    for number, (cell, (heading, caption, draw)) in enumerate(zip(cells, panels, strict=False), 1):
        cell.text(0.045, 0.965, f"{number}", fontsize=12, weight="bold", color=PALETTE[3], va="top")
        cell.text(0.045 + 0.035 * (1 + len(str(number))), 0.965, heading, fontsize=12, weight="bold", va="top")
        cell.text(0.045, 0.895, caption, fontsize=8.5, color=MUTED, va="top", linespacing=1.25)
        draw(cell, stages, context)
    return figure


def _panels(stages: Stages, config: ModelConfig, num_classes: int, score_threshold: float) -> list[tuple]:
    """Heading, caption and drawing function of each panel, in the order of the computation."""
    op = {"align": "RoIAlign", "warp": "RoIWarp", "pool": "RoIPool"}[config.roi_op]
    (height, width), level = stages.image.shape[1:], "pyramid" if len(stages.strength) > 1 else "map"
    cell, bins, shown = stages.anchors_per_cell, config.box_pool, len(stages.before)
    panels = [
        ("image", f"{width} x {height} pixels", _draw_image),
        (f"feature {level}", "how strong the features are in each cell", _draw_pyramid),
        ("anchors", f"{cell} boxes at every cell; here those of one\ncell per level", _draw_anchors),
        (
            "before NMS",
            f"the {shown} proposals with the best objectness,\nmoved by their deltas",
            _draw_before,
        ),
        (
            "after NMS",
            f"{len(stages.after)} of these {shown} are left; in all,\n{stages.count} go on",
            _draw_after,
        ),
        (
            op,
            f"{len(stages.rois)} proposals, cut into {bins} x {bins} bins, and\nwhat was pooled",
            _draw_pooled,
        ),
        ("class of each RoI", f"softmax over {num_classes} classes", _draw_classes),
    ]
    if stages.masks is not None:
        side = stages.masks.shape[-1]
        panels.append(("masks", f"{side} x {side} probabilities in refined boxes", _draw_masks))
    if stages.heatmaps is not None:
        side = stages.heatmaps.shape[-1]
        panels.append(("keypoints", f"{side} x {side} heatmaps of the best person,\nadded up", _draw_heatmap))
    panels.append(("result", f"detections with a score of at least {score_threshold:g}", _draw_result))
    return panels


LEFT_EDGE, BOTTOM, WIDE, HIGH = 0.045, 0.03, 0.91, 0.745  # of the picture in a panel, as fractions of it


def _whole(cell: SubFigure) -> Axes:
    return cell.add_axes((LEFT_EDGE, BOTTOM, WIDE, HIGH), anchor="NW")


def _tiles(cell: SubFigure, rows: int, columns: int, gap: float = 0.03, head: float = 0.0) -> list[Axes]:
    """Small axes in a panel, row by row; ``head`` leaves room above each for a title."""
    w, h = (WIDE - gap * (columns - 1)) / columns, (HIGH - gap * (rows - 1)) / rows
    places = [(row, column) for row in range(rows) for column in range(columns)]
    top = BOTTOM + HIGH
    return [
        cell.add_axes((LEFT_EDGE + c * (w + gap), top - r * (h + gap) - h, w, h - head), anchor="NW") for r, c in places
    ]


def _nothing(cell: SubFigure, text: str) -> None:
    cell.text(0.5, 0.45, text, ha="center", va="center", color=MUTED)


def _draw_image(cell: SubFigure, stages: Stages, context: dict) -> None:
    show_image(_whole(cell), stages.image)


def _draw_pyramid(cell: SubFigure, stages: Stages, context: dict) -> None:
    single = len(stages.strength) == 1
    tiles = [_whole(cell)] if single else _tiles(cell, 2, 2, gap=0.035, head=0.055)
    for axes, strength, stride in zip(tiles, stages.strength, stages.strides, strict=False):
        show_array(axes, strength, cmap=HEAT, interpolation="nearest")
        height, width = strength.shape
        name = f"P{stride.bit_length() - 1}" if not single else "C4"
        axes.set_title(f"{name}, stride {stride}: {width} x {height}", fontsize=8, pad=2)


def _draw_anchors(cell: SubFigure, stages: Stages, context: dict) -> None:
    axes = _whole(cell)
    show_image(axes, stages.image * 0.5 + 0.5)
    places = [
        (0.22, 0.2),
        (0.72, 0.3),
        (0.3, 0.68),
        (0.55, 0.55),
    ]  # of the map, (across, down): spread over it
    for level, (anchors, strength) in enumerate(zip(stages.anchors, stages.strength, strict=True)):
        rows, columns = strength.shape
        across, down = places[level % len(places)] if len(stages.anchors) > 1 else (0.5, 0.5)
        start = (int(down * rows) * columns + int(across * columns)) * stages.anchors_per_cell
        group = array(anchors[start : start + stages.anchors_per_cell])
        draw_boxes(axes, group, PALETTE[level % 4], linewidth=1.5)
        centre = (group[:, :2] + group[:, 2:]).mean(axis=0) / 2
        axes.plot(*centre, "o", color=PALETTE[level % 4], markersize=3.5)
    _keep_view(axes, stages.image)


def _keep_view(axes: Axes, image: torch.Tensor) -> None:
    axes.set(xlim=(0, image.shape[2]), ylim=(image.shape[1], 0))


def _draw_proposals(cell: SubFigure, stages: Stages, boxes: torch.Tensor) -> None:
    axes = _whole(cell)
    show_image(axes, stages.image * 0.7 + 0.3)
    draw_boxes(axes, boxes, INK, linewidth=2.0, alpha=0.25)
    draw_boxes(axes, boxes, PALETTE[1], linewidth=1.0)
    _keep_view(axes, stages.image)


def _draw_before(cell: SubFigure, stages: Stages, context: dict) -> None:
    _draw_proposals(cell, stages, stages.before)


def _draw_after(cell: SubFigure, stages: Stages, context: dict) -> None:
    _draw_proposals(cell, stages, stages.after)


def _draw_pooled(cell: SubFigure, stages: Stages, context: dict) -> None:
    """Two rows of pairs: the RoI in the image with its bins, and the pooled features beside it."""
    tiles = _tiles(cell, 2, 4, gap=0.02, head=0.05)
    shades = {"vmin": stages.pooled.min(), "vmax": stages.pooled.max()} if stages.pooled.size else {}
    for index, (roi, pooled) in enumerate(zip(array(stages.rois), stages.pooled, strict=True)):
        crop, grid = tiles[2 * index], tiles[2 * index + 1]
        show_image(crop, stages.image)
        x1, y1, x2, y2 = roi
        lines = {"color": "white", "linewidth": 0.6, "alpha": 0.85}
        for at in np.linspace(0, 1, pooled.shape[0] + 1):
            crop.plot([x1 + at * (x2 - x1)] * 2, [y1, y2], **lines)
            crop.plot([x1, x2], [y1 + at * (y2 - y1)] * 2, **lines)
        grid.imshow(pooled, extent=(x1, x2, y2, y1), cmap=HEAT, interpolation="nearest", **shades)
        frame(grid)
        for axes in (crop, grid):
            axes.set(xlim=(x1, x2), ylim=(y2, y1))
        crop.set_title(LETTERS[index], fontsize=9, weight="bold", pad=2)
    for axes in tiles[2 * len(stages.rois) :]:
        axes.set_axis_off()


def _draw_classes(cell: SubFigure, stages: Stages, context: dict) -> None:
    names = context["class_names"]
    for index, (axes, row) in enumerate(zip(_tiles(cell, 2, 2, gap=0.05, head=0.05), stages.classes, strict=False)):
        best = row.topk(min(SHOWN_CLASSES, len(row)))
        labels = sorted(best.indices.tolist())
        for place, label in enumerate(labels):
            colour = label_colour(label) if label else "#B8B8B8"
            axes.barh(place, float(row[label]), color=colour, height=0.92)
            axes.text(0.03, place, names[label], va="center", fontsize=8)
        axes.set(xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5), xticks=[], yticks=[], facecolor="#F2F2F2")
        axes.set_title(LETTERS[index], fontsize=9, weight="bold", pad=2)
        for spine in axes.spines.values():
            spine.set_visible(False)


def _draw_masks(cell: SubFigure, stages: Stages, context: dict) -> None:
    detection = stages.detection
    if len(detection["boxes"]) == 0:
        return _nothing(cell, "no detections")
    for axes, index in zip(_tiles(cell, 2, 2, gap=0.035, head=0.05), range(len(detection["boxes"])), strict=False):
        show_array(axes, array(stages.masks[index]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        label, score = int(detection["labels"][index]), float(detection["scores"][index])
        axes.set_title(f"{context['class_names'][label]} {score:.2f}", fontsize=8, pad=2)


def _draw_heatmap(cell: SubFigure, stages: Stages, context: dict) -> None:
    names, detection = context["class_names"], stages.detection
    people = [
        index
        for index, (label, score) in enumerate(
            zip(detection["labels"].tolist(), detection["scores"].tolist(), strict=True)
        )
        if score >= context["score_threshold"] and has_keypoints(label, names)
    ]
    if not people:
        return _nothing(cell, "no person is found here")
    axes = _whole(cell)
    heat = array(stages.heatmaps[people[0]])  # (J, S, S)
    show_array(axes, (heat / heat.max(axis=(1, 2), keepdims=True)).sum(axis=0), cmap=HEAT, interpolation="nearest")


def _draw_result(cell: SubFigure, stages: Stages, context: dict) -> None:
    draw_instances(_whole(cell), stages.image.cpu(), stages.detection, **context)
