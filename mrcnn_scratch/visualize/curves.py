"""Losses over the steps, AP over the IoU that a match needs."""

import math

import numpy as np
from matplotlib.figure import Figure

from .style import INK, styled

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
SERIES = (  # colour, line and marker of each run
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", ":", "^"),
    (INK, "-.", "D"),
)
LOSS_TITLES = {
    "loss": "total", "loss_objectness": "RPN objectness", "loss_rpn_box": "RPN box",
    "loss_classifier": "class", "loss_box": "box", "loss_mask": "mask", "loss_keypoint": "keypoints",
}  # fmt: skip


@styled
def loss_curves(histories: dict[str, list[dict[str, float]]], smooth: int | None = None) -> Figure:
    """The total and each loss of one or more runs: faint as logged, bold as a moving average.

    Args:
        histories: name of the run -> rows of its log (``TrainResult.losses``, ``read_log``): ``step``,
            ``loss``, ``loss_*``.
        smooth: rows in the moving average; by default a twenty-fifth of the run.
    """
    names = ["loss"] + [key for key in LOSS_TITLES if key != "loss"]
    logged = {key for rows in histories.values() for row in rows[:1] for key in row}
    names = [name for name in names if name in logged] + sorted(
        key for key in logged if key.startswith("loss_") and key not in LOSS_TITLES
    )
    columns = min(4, max(1, len(names)))
    figure = Figure(figsize=(9, 0.55 + 2.0 * max(1, math.ceil(len(names) / columns))), dpi=110, layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, index + 1)
        highest = 0.0
        for (run, rows), (colour, dash, _) in zip(histories.items(), _series(len(histories)), strict=True):
            steps = [row["step"] for row in rows if name in row]
            values = np.array([row[name] for row in rows if name in row], dtype=float)
            mean = moving_average(values, smooth or max(1, len(values) // 25))
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.7)
            axes.plot(steps, mean, color=colour, linestyle=dash, linewidth=1.6, label=run)
            highest = max([highest, *mean])
        axes.set(title=LOSS_TITLES.get(name, name), ylim=(0, 1.08 * highest or 1))
        axes.grid(axis="y")
        if index >= len(names) - columns:
            axes.set_xlabel("step")
        axes.locator_params(nbins=4)
    if names:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(histories))
    return figure


def _series(count: int) -> list[tuple[str, str, str]]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """(n,) the mean over the ``window // 2`` values to either side and itself; fewer at the ends.

    ``moving_average([0, 3, 6], 3)`` is [1.5, 3, 4.5].
    """
    half, n = window // 2, len(values)
    if n == 0:
        return values
    weights = np.ones(2 * half + 1)
    sums, counts = np.convolve(values, weights), np.convolve(np.ones(n), weights)
    return (sums / counts)[half : half + n]


@styled
def ap_against_iou(curves: dict, title: str = "") -> Figure:
    """How AP falls as a match must fit better: where RoIAlign pays, according to Mask R-CNN, section 4.2.

    Args:
        curves: panel -> run -> 10 APs in 0..1 at IoU .50:.05:.95, such as ``{"box": {"RoIAlign": [...],
            "RoIPool": [...]}}``; runs alone, ``{"RoIAlign": [...]}``, make one panel. A negative AP is
            undefined and not drawn.
        title: above the figure.

    Raises:
        ValueError: a curve that has not 10 values.
    """
    panels = curves if all(isinstance(value, dict) for value in curves.values()) else {"": curves}
    figure = Figure(figsize=(max(4.5, 3 * len(panels)), 3.3), dpi=110, layout="constrained")
    first = None
    for index, (name, runs) in enumerate(panels.items()):
        axes = figure.add_subplot(1, max(1, len(panels)), index + 1, sharey=first)
        first = first or axes
        for (run, values), (colour, dash, marker) in zip(runs.items(), _series(len(runs)), strict=True):
            if len(values) != len(IOU_THRESHOLDS):
                raise ValueError(f"{name} {run} has {len(values)} APs: give 10, at IoU .50:.05:.95 (AP_by_iou)")
            points = np.where(np.asarray(values, dtype=float) < 0, np.nan, np.asarray(values, dtype=float) * 100)
            mean = "n/a" if np.isnan(points).any() else f"{points.mean():.1f}"
            style = {
                "color": colour,
                "linestyle": dash,
                "marker": marker,
                "markersize": 4.5,
                "linewidth": 1.7,
            }
            axes.plot(IOU_THRESHOLDS, points, **style, label=f"{run}, AP {mean}")
        axes.set(title=name, ylim=(0, 100), xlim=(0.48, 0.97), xticks=[0.5, 0.6, 0.7, 0.8, 0.9])
        axes.set_xlabel("OKS threshold" if name.startswith("keypoint") else "IoU threshold")
        axes.grid()
        axes.tick_params(labelleft=index == 0)
        if runs:
            axes.legend(loc="lower left", handlelength=2.2)
    if first is not None:
        first.set_ylabel("AP")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11) if title else None
    return figure
