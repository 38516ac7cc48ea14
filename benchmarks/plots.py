"""Three pictures of a run: how many times faster, how time grows, how close to the roofline."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.contestants import PEER
from mrcnn_scratch.visualize.style import INK, MUTED, styled

# Okabe & Ito, as in style.PALETTE: of layouts, and of NMS's kinds of boxes
COLOURS = {"channels_last": "#0072B2", "NCHW": "#E69F00", "uniform": "#009E73", "clustered": "#CC79A7"}
MUST = "#D55E00"
NAMES = {"channels_last": "channels_last", "NCHW": "plain NCHW", "uniform": "NMS, uniform boxes",
         "clustered": "NMS, clustered boxes"}  # fmt: skip
OP_NAMES = {"align": "RoIAlign", "pool": "RoIPool", "warp": "RoIWarp", "nms": "NMS"}
OTHERS = (("onnxruntime", "onnxruntime", "D"), ("torch", "pure torch", "o"))
GROWTH = ("RoIs", "channels", "bins")
DOT = {"color": "white", "markeredgecolor": INK, "markersize": 4.5, "linestyle": ""}


def figures(report: dict) -> dict[str, Figure]:
    """name -> figure, of those for which something was measured: "ratios", "growth", "roofline"."""
    drawn = {"ratios": ratio_chart(report), "growth": growth_chart(report), "roofline": roofline_chart(report)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _title(figure: Figure, text: str, report: dict) -> None:
    machine = report["machine"]
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['processor']}, {report['threads']} threads"
    versions = ", ".join(f"{name} {report['versions'].get(name)}" for name in ("torch", PEER))
    toy = ". Toy sizes" if report["quick"] else ""
    figure.suptitle(f"{text}{toy}\n{where}; {versions}; {report['date'][:10]}", x=0.01, ha="left", fontsize=10.5)


def _plain(axis, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Numbers on a logarithmic axis as one reads them, 0.1, 1, 20, not as powers of ten."""
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


# ---- ratios


@styled
def ratio_chart(report: dict) -> Figure | None:
    """A bar per case: how many times faster than torchvision; a tick where it must be."""
    records = [record for record in report["cases"] if record["group"] == "sizes"]
    columns = {
        "forward": [r for r in records if r["op"] != "nms" and r["direction"] == "forward"],
        "backward, gradient of the features": [r for r in records if r["direction"] == "backward"],
        "NMS": [r for r in records if r["op"] == "nms"],
    }
    columns = {name: rows for name, rows in columns.items() if rows}
    if not columns:
        return None
    needed = {row["case"]: row["needed"] for row in report["must_reach"]}
    labels = list(dict.fromkeys(_job(record) for record in records if record["op"] != "nms"))
    longest = max(len(labels), 3)
    figure = Figure(figsize=(12.5, 2.1 + 0.52 * longest), dpi=110, layout="constrained")
    widths = [0.65 if name == "NMS" else 1 for name in columns]
    grid = figure.add_gridspec(longest, len(columns), width_ratios=widths)
    for i, (name, rows) in enumerate(columns.items()):
        own = list(dict.fromkeys(map(_job, rows))) if name == "NMS" else labels
        axes = figure.add_subplot(grid[: len(own), i])
        _bars(axes, rows, report["ours"], needed, own)
        axes.set(title=name, ylim=(len(own) - 0.45, -0.55))
        if name == "NMS":  # a narrow panel over three powers of ten
            _plain(axes.xaxis, (1,))
        axes.set_yticks(range(len(own)), own if i == 0 or name == "NMS" else [""] * len(own))
    _ratio_legend(figure, records, report["ours"], any(record["name"] in needed for record in records))
    _title(figure, f"How many times faster than {PEER}", report)
    return figure


def _job(record: dict) -> str:
    """What two bars share: all but the layout, or the kind of boxes."""
    if record["op"] == "nms":
        return f"{record['rois']:,} boxes"
    N, C, H, W = record["features"]
    sampling = {2: ", 2x2 samples", 0: ", adaptive", None: ""}[record["sampling"]]
    size = f"{record['rois']:,} RoIs, {record['bins']}x{record['bins']} bins"
    return f"{OP_NAMES[record['op']]}{sampling}\n{size} of {f'{N}x' * (N > 1)}{C}x{H}x{W}"


def _bars(axes: Axes, records: list[dict], ours: str, needed: dict, labels: list[str]) -> None:
    """Two bars per job; whiskers are quartiles, dots other contestants."""
    for record in records:
        above = record["layout"] == "channels_last" or (record["op"] == "nms" and record["boxes"] == "uniform")
        y = labels.index(_job(record)) + (-0.2 if above else 0.2)
        ratio, must = record["results"][ours]["ratio"], needed.get(record["name"])
        colour = COLOURS[record["layout"] or record["boxes"]]
        axes.barh(y, ratio["median"] - 1, left=1, height=0.36, color=colour)
        axes.plot([ratio["q1"], ratio["q3"]], [y, y], color=INK, linewidth=1.1)
        end = max(ratio["q3"], 1.0, must or 0.0)
        axes.annotate(f"{ratio['median']:.3g}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
        for name, _, marker in OTHERS:
            if name in record["results"]:
                axes.plot(record["results"][name]["ratio"]["median"], y, marker, **DOT)
        if must:
            axes.plot([must, must], [y - 0.2, y + 0.2], color=MUST, linewidth=2.6, solid_capstyle="butt")
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=0.9)
    axes.set_xlabel("times faster, log scale")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / min(low, 1)) ** 0.12)  # room for the numbers at the bars' ends
    _plain(axes.xaxis)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _ratio_legend(figure: Figure, records: list[dict], ours: str, must: bool) -> None:
    kinds = {record["layout"] or record["boxes"] for record in records}
    handles = [Patch(color=COLOURS[kind], label=f"{ours}, {NAMES[kind]}") for kind in COLOURS if kind in kinds]
    for name, text, marker in OTHERS:
        if any(name in record["results"] for record in records):
            handles.append(Line2D([], [], marker=marker, label=text, **DOT))
    if must:
        handles.append(Line2D([], [], color=MUST, linewidth=2.6, label="must reach"))
    handles.append(Line2D([], [], color=INK, linewidth=1.1, label="quartiles"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.4, fontsize=8.5)


# ---- growth


@styled
def growth_chart(report: dict) -> Figure | None:
    """Milliseconds against RoIs, channels and bins, forward above backward."""
    records = [record for record in report["cases"] if record["group"].startswith("growth")]
    if not records:
        return None
    figure = Figure(figsize=(11, 6.6), dpi=110, layout="constrained")
    grid = figure.subplots(2, 3, sharey="row", sharex="col")
    for row, direction in zip(grid, ("forward", "backward"), strict=True):
        for axes, quantity in zip(row, GROWTH, strict=True):
            group = [r for r in records if r["group"] == f"growth with {quantity}" and r["direction"] == direction]
            _curves(axes, group, quantity, report["ours"])
            axes.set_title(f"{direction}, {_kept(group, quantity)}" if group else direction)
        row[0].set_ylabel("milliseconds, log scale")
    for axes, quantity in zip(grid[1], GROWTH, strict=True):
        axes.set_xlabel(f"{quantity}{' per axis' * (quantity == 'bins')}, log scale")
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid.flat), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    _title(figure, "RoIAlign, 2x2 samples: how time grows", report)
    return figure


def _kept(records: list[dict], quantity: str) -> str:
    """What does not grow."""
    first = records[0]
    C, H, W = first["features"][1:]
    size = f"{H}x{W}" if quantity == "channels" else f"{C}x{H}x{W}"
    parts = {"RoIs": f"{first['rois']} RoIs", "bins": f"{first['bins']}x{first['bins']} bins"}
    return ", ".join([text for name, text in parts.items() if name != quantity] + [size])


def _curves(axes: Axes, records: list[dict], quantity: str, ours: str) -> None:
    series = (
        (PEER, "NCHW", MUTED, ":", "s"),
        (PEER, "channels_last", INK, "--", "D"),
        (ours, "NCHW", COLOURS["NCHW"], "-", "^"),
        (ours, "channels_last", COLOURS["channels_last"], "-", "o"),
    )
    for who, layout, colour, dash, marker in series:
        rows = [record for record in records if record["layout"] == layout]
        x = [{"RoIs": r["rois"], "channels": r["features"][1], "bins": r["bins"]}[quantity] for r in rows]
        y = [r["results"][who]["ms"]["median"] for r in rows]
        style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4.5, "linewidth": 1.6}
        if rows:
            axes.plot(x, y, label=f"{who}, {NAMES[layout]}", **style)
    axes.set(xscale="log", yscale="log")
    _plain(axes.yaxis)
    if records:
        axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid()


# ---- roofline


@styled
def roofline_chart(report: dict) -> Figure | None:
    """Operations a second against operations per byte: the roofs that were measured, and each kernel under them."""
    records = [r for r in report["cases"] if r["group"] == "sizes" and r["op"] == "align" and r["sampling"] == 2]
    if not records:
        return None
    figure = Figure(figsize=(11, 5.6), dpi=110, layout="constrained")
    panels, roofs = figure.subplots(1, 2, sharey=True), report["roofs"]
    at = {r["name"]: r["work"]["flops"] / r["work"]["bytes"] for r in records}
    x = np.geomspace(min(at.values()) / 2, 3 * max(*at.values(), roofs["peak_gflop_s"] / roofs["memory_gb_s"]), 200)
    jobs = dict(zip(dict.fromkeys(map(_job, records)), "os^D", strict=False))
    for axes, direction in zip(panels, ("forward", "backward"), strict=True):
        _roofs(axes, x, roofs)
        for record in (r for r in records if r["direction"] == direction):
            style = {"marker": jobs[_job(record)], "markersize": 8, "linestyle": "", "zorder": 3}
            colour = COLOURS[record["layout"]]
            done = {who: record["results"][who]["gflop_s"] for who in (report["ours"], PEER)}
            axes.plot(at[record["name"]], done[PEER], color="white", markeredgecolor=colour, **style)
            axes.plot(at[record["name"]], done[report["ours"]], color=colour, **style)
        axes.set(title=direction, xlim=(x[0], x[-1]), xlabel="operations per byte that the job cannot avoid, log scale")
    panels[0].set_ylabel("GFLOP/s, log scale")
    _roofline_legend(figure, panels[0], jobs, report["ours"])
    _title(figure, "RoIAlign, 2x2 samples, under the roofline of the machine", report)
    return figure


def _roofs(axes: Axes, x: np.ndarray, roofs: dict) -> None:
    for level, dash in (("memory", "-"), ("cache", "--")):
        slope = roofs[f"{level}_gb_s"]
        label = f"copies from {level}, {slope:,.0f} GB/s; peak {roofs['peak_gflop_s']:,.0f} GFLOP/s"
        axes.plot(x, np.minimum(slope * x, roofs["peak_gflop_s"]), dash, color=INK, linewidth=1.6, label=label)
    axes.set(xscale="log", yscale="log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.grid()


def _roofline_legend(figure: Figure, axes: Axes, jobs: dict[str, str], ours: str) -> None:
    handles, _ = axes.get_legend_handles_labels()
    dots = {"linestyle": "", "markersize": 7}
    for label, face in ((ours, INK), (PEER, "white")):
        handles.append(Line2D([], [], marker="o", color=face, markeredgecolor=INK, label=label, **dots))
    handles += [Patch(color=COLOURS[layout], label=NAMES[layout]) for layout in ("channels_last", "NCHW")]
    for job, marker in jobs.items():
        handles.append(Line2D([], [], marker=marker, color=INK, label=job.split("\n")[1], **dots))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
