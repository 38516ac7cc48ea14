"""Threads laid over the outputs of a RoI layer, and what one output costs on different machines."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .style import INK, MUTED, PALETTE, frame, styled

WARP = 32  # threads that do the same instruction in step


@styled
def show_threads(rois: int, channels: int, bins: tuple[int, int], marked: int | None = None) -> Figure:
    """The number of the thread on each output (R, C, h, w) in the order of memory, coloured by warp.

    Args:
        rois: R, a row of planes each.
        channels: C, a plane of bins each.
        bins: (h, w) of a plane.
        marked: a thread to frame.
    """
    h, w = bins
    figure = Figure(figsize=(9, 0.35 + 1.6 * rois), dpi=80, layout="constrained")
    axes = figure.subplots(rois, channels, squeeze=False)
    for r in range(rois):
        for c in range(channels):
            _plane(axes[r, c], (r * channels + c) * h * w, bins, marked)
            axes[r, c].set_title(f"RoI {r}, channel {c}")
    warps = range(-(-rois * channels * h * w // WARP))
    patches = [Patch(facecolor=_colour(warp), label=f"warp {warp}") for warp in warps]
    figure.legend(handles=patches, loc="outside right upper")
    return figure


def _colour(warp: int) -> str:
    return PALETTE[warp % len(PALETTE)]


def _plane(axes: Axes, first: int, bins: tuple[int, int], marked: int | None) -> None:
    """One plane of h x w bins, the thread `first` on its first bin."""
    h, w = bins
    for place in range(h * w):
        thread, (p, q) = first + place, divmod(place, w)
        axes.add_patch(Rectangle((q, p), 1, 1, facecolor=_colour(thread // WARP), alpha=0.45, edgecolor="white"))
        here = thread == marked
        axes.text(q + 0.5, p + 0.5, str(thread), ha="center", va="center", weight="bold" if here else "normal")
        if here:
            axes.add_patch(Rectangle((q, p), 1, 1, fill=False, edgecolor=INK, linewidth=2.5, zorder=3))
    frame(axes)
    axes.set(xlim=(-0.05, w + 0.05), ylim=(h + 0.05, -0.05), aspect="equal")
    axes.set_xticks([q + 0.5 for q in range(w)], [f"q {q}" for q in range(w)])
    axes.set_yticks([p + 0.5 for p in range(h)], [f"p {p}" for p in range(h)])
    axes.tick_params(length=0)


@styled
def time_bars(nanoseconds: dict[str, float], reference: float, reference_name: str) -> Figure:
    """Time for one output, a bar each on a logarithmic axis, with a line for a machine that is not here.

    Args:
        nanoseconds: name -> time for one output; names with "simulated" are hatched: no speed of anything.
        reference: nanoseconds of the line.
        reference_name: what the line is.
    """
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(nanoseconds)), dpi=80, layout="constrained")
    axes = figure.subplots()
    for place, (name, value) in enumerate(nanoseconds.items()):
        simulated = "simulated" in name
        style = {"facecolor": "white", "edgecolor": MUTED, "hatch": "///"} if simulated else {"color": PALETTE[3]}
        axes.barh(place, value, height=0.6, left=0, **style)
        axes.text(value * 1.15, place, _duration(value), va="center")
    axes.axvline(reference, color=PALETTE[1], linewidth=2.5)
    axes.text(reference * 1.2, -0.75, f"{reference_name}: {_duration(reference)}", color=INK, va="center")
    axes.set(xscale="log", xlim=(reference / 3, max(nanoseconds.values()) * 12), xlabel="nanoseconds for one output")
    axes.set(ylim=(len(nanoseconds) - 0.5, -1.2))
    axes.set_yticks(range(len(nanoseconds)), list(nanoseconds))
    axes.grid(axis="x")
    return figure


def _duration(nanoseconds: float) -> str:
    """Two digits: 0.012 ns, 8.3 ns, 45 us."""
    for unit in ("ns", "us", "ms"):
        if nanoseconds < 1000 or unit == "ms":
            return f"{nanoseconds:.2g} {unit}" if nanoseconds < 100 else f"{nanoseconds:.0f} {unit}"
        nanoseconds /= 1000
    return ""
