"""The pictures: truth beside detections, losses, AP against IoU, RoIAlign beside RoIPool, photos, the poster.

Every figure is a matplotlib Figure that belongs to no window and to no backend: show it in a notebook, or
take :func:`figure_png`.
"""

from .curves import ap_against_iou, loss_curves
from .instances import draw_instances
from .photos import annotated, save_annotated
from .pictures import compare_ops, truth_and_detections
from .poster import stage_poster
from .style import figure_png, label_colour

__all__ = [
    "annotated",
    "ap_against_iou",
    "compare_ops",
    "draw_instances",
    "figure_png",
    "label_colour",
    "loss_curves",
    "save_annotated",
    "stage_poster",
    "truth_and_detections",
]
