"""The files of a run: JSON with everything, a compact table in Markdown, and the plots; each whole or not at all."""

import json
from pathlib import Path

from benchmarks import plots
from benchmarks.contestants import PEER, SLOW
from mrcnn_scratch.files import whole_file
from mrcnn_scratch.visualize.style import figure_png

GROUPS = {
    "sizes": "Sizes of a detector",
    "all backends": "All backends, on a job small enough for plain loops",
    "overhead": "Ten RoIs: what a call costs",
    "growth with RoIs": "Growth with RoIs",
    "growth with channels": "Growth with channels",
    "growth with bins": "Growth with bins",
}


def check_folder(out: Path) -> None:
    """Raises ValueError, before any work is done, for a folder that cannot be made because a file is in its place."""
    for part in (out, *out.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"--out {part} is a file: name a folder")


def stem(report: dict) -> str:
    """roi_ops-cpu; what is no complete run at full size gets another name, so that it replaces none."""
    quick, part = "-quick" * report["quick"], "-part" * (not report["complete"])
    return f"roi_ops-{report['device']}{quick}{part}"


def write(report: dict, out: Path) -> list[Path]:
    """Writes NAME.json, NAME.md and NAME-*.png into the folder, and returns their paths."""
    name = stem(report)
    files = {f"{name}.json": (json.dumps(report, indent=1) + "\n").encode(), f"{name}.md": markdown(report).encode()}
    for kind, figure in plots.figures(report).items():
        files[f"{name}-{kind}.png"] = figure_png(figure)
    for file, content in files.items():
        with whole_file(out / file) as temporary:
            temporary.write_bytes(content)
    return [out / file for file in files]


def progress_line(record: dict, ours: str) -> str:
    """`align/.../forward: 12.3 ms, 24.1 x torchvision`."""
    result = record["results"][ours]
    wrong = "" if result["agrees"] else f"; WRONG by {result['max_difference']}"
    return f"{record['name']}: {_number(result['ms']['median'])} ms, {_ratio(result)} x {PEER}{wrong}"


def must_reach_table(rows: list[dict]) -> str:
    """The lines that must be reached, those that were measured."""
    measured = [row for row in rows if row["reached"] is not None]
    if not measured:
        return "Of the ratios that must be reached none was measured in this run."
    lines = ["| must reach | needed | measured | |", "|---|--:|--:|---|"]
    for row in measured:
        verdict = "reached" if row["reached"] else "**not reached**"
        lines.append(f"| {row['case']} | {row['needed']:g} | {_number(row['measured'])} | {verdict} |")
    if len(measured) < len(rows):
        lines.append(f"\n{len(rows) - len(measured)} of {len(rows)} lines were not measured in this run.")
    return "\n".join(lines)


def markdown(report: dict) -> str:
    """A page: the machine, the lines that must be reached, a table per group, who was left out."""
    parts = [f"# RoI ops and NMS on {_where(report)}", _how(report), must_reach_table(report["must_reach"])]
    for group, title in GROUPS.items():
        records = [record for record in report["cases"] if record["group"] == group]
        if records:
            parts += [f"## {title}", _table(records, report["ours"])]
    parts += ["## Left out", _left_out(report)]
    return "\n\n".join(parts) + "\n"


def _where(report: dict) -> str:
    gpu = report["machine"].get("gpu")
    return gpu["name"] if gpu else f"{report['machine']['processor']}, {report['threads']} threads"


def _how(report: dict) -> str:
    roofs, versions = report["roofs"], report["versions"]
    tested = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    changed = " with changes" if report["changed"] else ""
    return (
        f"`{report['command']}`, {report['date']}, {report['seconds']:.0f} s, commit {report['commit']}{changed}. "
        f"{report['machine']['cores']} cores ({report['machine']['processor']}), {tested}. "
        f"{'Not a complete run. ' * (not report['complete'])}{'Toy sizes. ' * report['quick']}".strip() + "\n\n"
        f"Measured in the same run: copying {roofs['memory_gb_s']:.0f} GB/s from memory ({roofs['memory_mb']} MB), "
        f"{roofs['cache_gb_s']:.0f} GB/s from cache ({roofs['cache_mb']} MB); {roofs['peak_gflop_s']:.0f} GFLOP/s in "
        f"float32.\n\n"
        f"x: how many times faster than torchvision, the median over rounds, with quartiles for ours; ~: fewer rounds. "
        f"GB/s: the bytes that the job cannot avoid, by its time; roofline: the least time by the time, with the "
        f"bandwidth of memory | of cache."
    )


def _table(records: list[dict], ours: str) -> str:
    others = [name for name in (f"{ours}, deterministic", "onnxruntime", *SLOW)
              if any(name in record["results"] for record in records)]  # fmt: skip
    host = any("host_ms" in record["results"][ours] for record in records)
    head = ["case", f"{PEER} ms", f"{ours} ms", "x", *(f"{name} x" for name in others), "max diff", "GB/s", "roofline"]
    head += ["host ms", f"{PEER} host ms"] if host else []
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for record in records:
        result, peer = record["results"][ours], record["results"][PEER]
        cells = [record["name"], *(_number(r["ms"]["median"]) for r in (peer, result)), _with_quartiles(result)]
        cells += [_ratio(record["results"].get(name)) for name in others]
        cells += [f"{result['max_difference']:.0e}" if result["agrees"] else "**wrong**", *_roof(result)]
        cells += [_number(r["host_ms"]["median"]) for r in (result, peer)] if host else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_quartiles(result: dict) -> str:
    return f"**{_ratio(result)}** ({_number(result['ratio']['q1'])} to {_number(result['ratio']['q3'])})"


def _roof(result: dict) -> list[str]:
    if "of_roofline" not in result:
        return ["", ""]
    shares = " \\| ".join(f"{result['of_roofline'][level]:.0%}" for level in ("memory", "cache"))
    return [_number(result["gb_s"]), shares]


def _ratio(result: dict | None) -> str:
    """The median; ~ before it where the slow took part in fewer rounds than seven."""
    if result is None:
        return ""
    return ("~" if len(result["every_ms"]) < 7 else "") + _number(result["ratio"]["median"])


def _number(value: float) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 1.23, 123, 12345."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _left_out(report: dict) -> str:
    reasons: dict[tuple[str, str], int] = {}
    for record in report["cases"]:
        for name, reason in record["left_out"].items():
            reasons[name, reason] = reasons.get((name, reason), 0) + 1
    lines = [f"- {name} in {count} cases: {reason}" for (name, reason), count in reasons.items()]
    lines += [f"- the case {name}, which failed: {error}" for name, error in report["failed"].items()]
    lines.append(f"- growth is measured for {report['ours']} and {PEER} only.")
    if report["device"] == "cuda":
        lines.append("- reference and numba: they compute on the CPU.")
    return "\n".join(lines)
