"""REPORT.md and its figures, from the results files and nothing else."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..files import whole_file
from ..visualize import ablations as pictures
from . import TABLES
from .cells import IMAGES
from .measures import STRICT
from .plan import EQUAL, NONE
from .report_figures import first_run, main_measures, part_figures, save_figure
from .results import read_results

TIERS = {
    "geometry": "Tier 0, no learning",
    "oracle": "Tier A, oracle boxes",
    "detector": "Tier B, the whole detector",
    "photographs": "photographs, the whole detector",
}
ONLY_THE_PAPERS = ("table1", "table4", "table8", "table9")  # COCO's or Cityscapes': not to be rerun on one machine
HEAD = """# The ablation lab: what came out

{summary}

**How to read it.** Arms are paired by seed: same initial weights where they share parts, same images in
the same order, same RoIs to be measured on. A difference is the mean over the seeds; in brackets its two-sided
95 % interval by Student's t. *Instances* is the interval from drawing the validation objects anew: what hangs on
this validation set. Claims, signs and margins were written into the code before the runs:

- **reproduced**: more was claimed, and the whole interval is above 0;
- **equivalent**: equality was claimed, and the whole interval lies within the margin;
- **not resolved**: anything else, a single seed included. Where nothing was claimed: "no claim".

AP* is the mean over the thresholds .50, .55, .. .95 of the fraction of objects whose mask (or keypoints) reach them;
@.75 is that fraction at one of them, and "{strict}" the mean from .70 on minus the mean below. Never compare these
with an AP on COCO: compare signs, and where along the thresholds a gap sits. All numbers are in points, 0 to 100.

*Cells* says how large the validation objects are for a RoI op: sqrt(area) / stride of the map that it reads, the median
and in brackets what 80 % lie between, over at most {images} images. COCO at 800 pixels and stride 16: small below 3.3,
medium 3.3 to 10.
"""


def write_report(out: Path) -> Path:
    """Writes ``out/REPORT.md`` and ``out/figures/*.png`` from the ``*.json`` in ``out``.

    Raises:
        ValueError: no results there, or a file that is none; says what to do.
    """
    found = [out / f"{name}.json" for name in TABLES if (out / f"{name}.json").is_file()]
    if not found:
        raise ValueError(f"{out} holds no results: make some with mrcnn ablate table2c --out {out}")
    results = [read_results(path) for path in found]
    sections = [_section(result, out) for result in results]
    text = "\n".join([HEAD.format(summary=_summary(results), strict=STRICT, images=IMAGES), *sections, _papers_own()])
    with whole_file(out / "REPORT.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / "REPORT.md"


def comparison_line(comparison: dict) -> str:
    """One comparison as a sentence of a terminal."""
    what = f"{comparison['a']} - {comparison['b']}, {comparison['measure']}"
    if comparison["difference"] is None:
        return f"{what}: no runs"
    return f"{what}: {_signed(comparison['difference'])}{_interval(comparison)}: {_verdict(comparison)}"


def _summary(results: list[dict]) -> str:
    """The claims and their verdicts, a row each."""
    lines = ["| table | claimed | difference | verdict |", "|---|---|--:|---|"]
    for result in results:
        for comparison in result["comparisons"]:
            if comparison["claim"] != NONE and comparison["difference"] is not None:
                sign = "=" if comparison["claim"] == EQUAL else ">"
                claim = f"{_side(comparison['a'])} {sign} {_side(comparison['b'])}, {comparison['measure']}"
                number = _signed(comparison["difference"]) + _interval(comparison)
                link = f"[{result['table']}](#{_anchor(result['title'])})"
                lines.append(f"| {link} | {claim} | {number} | {_verdict(comparison)} |")
    return "\n".join(lines)


def _section(result: dict, out: Path) -> str:
    """A table: the paper's rows beside ours, pictures, comparisons."""
    lines = [f"## {result['title']}", ""]
    papers = _papers(result["table"])
    if papers:
        lines += [f"The paper, on COCO ({papers['what']}):", "", _rows(["", *papers["columns"]], papers["rows"]), ""]
    for tier, arms in _parts(result).items():
        lines += [f"### {result['title'].split(':')[0]}, {TIERS[tier]}", "", _ours(result, arms), ""]
        lines += part_figures(result, tier, arms, out)
    if result["comparisons"]:
        name = f"{result['table']}-differences.png"
        labelled = [c | {"label": _label(c)} for c in result["comparisons"]]
        lines += [
            "### Differences",
            "",
            save_figure(out, name, pictures.difference_forest(labelled), "differences"),
            "",
        ]
        lines += [_comparisons(result["comparisons"]), ""]
    if result.get("caveat"):
        lines += [f"**Mind:** {result['caveat']}", ""]
    for failure in result.get("failures", []):
        last = failure["error"].strip().splitlines()[-1]
        lines += [f"**Failed:** {failure['arm']}, seed {failure['seed']}: {last}", ""]
    return "\n".join([*lines, _made_by(result), ""])


def _parts(result: dict) -> dict[str, list[str]]:
    """tier -> its arms, in the table's order."""
    parts: dict[str, list[str]] = {}
    for arm in result["arms"]:
        parts.setdefault(result["protocols"][result["protocol_of"][arm]]["tier"], []).append(arm)
    return parts


def _ours(result: dict, arms: list[str]) -> str:
    """Arms by measures: mean and standard deviation over the seeds."""
    measures = main_measures(result, arms) + [
        name for name in ("bias, px", "jitter, px", "parameters") if any(name in first_run(result, arm) for arm in arms)
    ]
    rows = []
    for arm in arms:
        values = result["arms"][arm].values()
        row = [arm, _sizes(result, arm), len(values)]
        for measure in measures:
            numbers = [v[measure] for v in values if measure in v]
            row.append(_cell(numbers, measure))
        rows.append(row)
    return _rows(["", "cells", "seeds", *measures], rows)


def _sizes(result: dict, arm: str) -> str:
    """``3.2 (2.6-4.9)``: median, and the sizes between which 80 % of the objects are."""
    sizes = result.get("cells", {}).get(arm)
    return f"{sizes[1]:.1f} ({sizes[0]:.1f}–{sizes[2]:.1f})" if sizes else "-"


def _cell(numbers: list[float], measure: str) -> str:
    if not numbers:
        return "-"
    if measure == "parameters":
        return f"{round(numbers[0]):,}"
    scale = 1 if measure.endswith("px") else 100
    mean, digits = scale * np.mean(numbers), 2 if measure.endswith("px") else 1
    spread = f" ± {scale * np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def _comparisons(comparisons: list[dict]) -> str:
    rows = []
    for c in comparisons:
        if c["difference"] is None:
            rows.append([_side(c["a"]), _side(c["b"]), c["measure"], c.get("paper"), "-", "-", "-", "no runs"])
            continue
        instances = c.get("instances")
        bounds = f"{100 * instances['low']:+.1f} to {100 * instances['high']:+.1f}" if instances else "-"
        margin = f", within {100 * c['margin']:g}" if c["claim"] == EQUAL else ""
        number = f"{_signed(c['difference'])}{_interval(c)}"
        paper = "-" if c.get("paper") is None else f"{c['paper']:+.1f}"
        rows.append(
            [_side(c["a"]), _side(c["b"]), c["measure"], paper, number, bounds, c["seeds"], _verdict(c) + margin]
        )
    return _rows(["a", "b", "measure", "paper", "a − b (low to high)", "instances", "seeds", "verdict"], rows, left=3)


def _label(comparison: dict) -> str:
    """``no learning: RoIAlign − RoIPool, mask AP*``: what both sides begin with stands once, before a colon."""
    a, b = comparison["a"].split(", "), comparison["b"].split(", ")
    common = 0
    while (
        " - " not in comparison["a"] + comparison["b"] and common < min(len(a), len(b)) - 1 and a[common] == b[common]
    ):
        common += 1
    head = ", ".join(a[:common]) + ": " if common else ""
    return f"{head}{_side(', '.join(a[common:]))} − {_side(', '.join(b[common:]))}, {comparison['measure']}"


def _side(name: str) -> str:
    return f"({name.replace(' - ', ' − ')})" if " - " in name else name


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(comparison: dict) -> str:
    if comparison["low"] is None:
        return " (one seed)"
    return f" ({100 * comparison['low']:+.1f} to {100 * comparison['high']:+.1f})"


def _verdict(comparison: dict) -> str:
    if comparison["claim"] == NONE:
        return "no claim"
    other_way = comparison["high"] is not None and comparison["high"] < 0 and comparison["claim"] != EQUAL
    return comparison["verdict"] + (": the other way round" if other_way else "")


def _made_by(result: dict) -> str:
    """The command, and on what it ran."""
    versions = ", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items() if number)
    changed = ", with uncommitted changes" if result.get("changed") else ""
    device = ", ".join(str(part) for part in result.get("device", {}).values())
    others = f" (some runs at {result['mixed'] - 1} other commits or machines)" if "mixed" in result else ""
    return (
        f"Made by `{result['command']}` at commit {result.get('commit')}{changed}{others}: runs of "
        f"{result.get('run_seconds')} s in all, {result.get('seconds')} s by the clock for the last command that made "
        f"any, on {device}; {versions}."
    )


def _papers(table: str) -> dict | None:
    text = files("mrcnn_scratch").joinpath("assets/paper_tables.json").read_text(encoding="utf-8")
    return json.loads(text).get(table)


def _papers_own() -> str:
    """The tables that nobody can rerun here, as the paper has them."""
    lines = ["## The paper's other tables", "", "These need COCO or Cityscapes; the paper's numbers, not ours.", ""]
    for name in ONLY_THE_PAPERS:
        papers = _papers(name)
        lines += [f"### {name.replace('table', 'Table ')}: {papers['what']}", ""]
        lines += [_rows(["", *papers["columns"]], papers["rows"]), ""]
    return "\n".join(lines)


def _rows(head: list, rows: list[list], left: int = 1) -> str:
    """Markdown; the first columns are text."""
    lines = ["| " + " | ".join(map(str, head)) + " |"]
    lines.append("|" + "---|" * left + "--:|" * (len(head) - left))
    return "\n".join(lines + ["| " + " | ".join("-" if v is None else str(v) for v in row) + " |" for row in rows])


def _anchor(title: str) -> str:
    """GitHub's name of a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")
