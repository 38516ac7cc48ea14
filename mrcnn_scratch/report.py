"""report.html of ``mrcnn demo``: one page with numbers, pictures and what they do and do not show."""

import base64
import io
from datetime import date as calendar
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from .files import whole_file
from .visualize import figure_png

KINDS = ("box", "mask", "keypoints")
COLUMNS = ("AP", "AP50", "AP75")
SECONDS = {
    "data": "draw the data", "train_roi_align": "train with RoIAlign", "train_roi_pool": "train with RoIPool",
    "evaluate_roi_align": "evaluate RoIAlign", "evaluate_roi_pool": "evaluate RoIPool",
    "pictures": "draw the pictures",
}  # fmt: skip

CSS = """
:root { color-scheme: light dark;
  --ink: #1f2328; --paper: #ffffff; --muted: #59636e; --line: #d4d9df; --card: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --paper: #15191e; --muted: #a3adb8; --line: #39424c; --card: #1e242b }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem }
p { max-width: 44rem; margin: .5rem 0 }
.muted, figcaption, caption { color: var(--muted) }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card);
  padding: .1em .35em; border-radius: .3em; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
tr.sum td { font-weight: 600 }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; font-size: .9rem; white-space: normal }
figure { margin: .6rem 0 0 }
figure img { display: block; width: 100%; min-width: 40rem; height: auto;
  background: #fff; border-radius: .4rem }
figcaption { margin-top: .5rem; font-size: .95rem; max-width: 44rem }
"""


def write_report(
    path: str | Path,
    metrics: dict,
    figures: list[tuple[str, str, Figure]],
    title: str = "Mask R-CNN from scratch: the demo",
    date: str | None = None,
) -> None:
    """Writes the report, one file that loads nothing, for phones and desktops; whole or not at all.

    Args:
        path: the .html file; its folder is made.
        metrics: what the demo measured. ``box``, ``mask`` and ``keypoints`` each with ``AP``, ``AP50``,
            ``AP75`` in 0..1 (negative: undefined); the same three under ``roi_pool``; ``seconds`` per part
            with ``total``; ``command``, ``seed``, ``versions``. What is missing is left out of the page.
        figures: (heading, caption, figure) each, in the order of the page.
        title: of the page.
        date: of the run; today by default.
    """
    body = "\n".join(
        [
            _headline(title, metrics, date or calendar.today().isoformat()),
            _ap_table(metrics),
            _reading(metrics),
            *(_figure(*figure) for figure in figures),
            _facts(metrics),
        ]
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def ap_panels(metrics: dict, names: tuple[str, str] = ("RoIAlign", "RoIPool")) -> dict[str, dict[str, list[float]]]:
    """The ``AP_by_iou`` of metrics as ``ap_against_iou`` takes them: kind -> arm -> 10 APs."""
    arms = dict(zip(names, (metrics, metrics.get("roi_pool", {})), strict=True))
    return {
        kind: {name: arm[kind]["AP_by_iou"] for name, arm in arms.items() if "AP_by_iou" in arm.get(kind, {})}
        for kind in KINDS
        if kind in metrics
    }


def points(value: float | None) -> str:
    """An AP in 0..1 as the paper prints it: 0.3034 is "30.3", a negative or missing one is "n/a"."""
    return "n/a" if value is None or value < 0 else f"{100 * value:.1f}"


def difference(one: float | None, other: float | None) -> str:
    """AP points between two arms with a sign, from the unrounded values; "n/a" where one is undefined."""
    if one is None or other is None or min(one, other) < 0:
        return "n/a"
    text = f"{100 * (one - other):+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def _headline(title: str, metrics: dict, date: str) -> str:
    measured = [f"{kind} AP {points(metrics[kind].get('AP'))}" for kind in KINDS if kind in metrics]
    total = metrics.get("seconds", {}).get("total")
    facts = [f"<code>{escape(str(metrics['command']))}</code>"] if "command" in metrics else []
    facts += [escape(date)]
    facts += [f"seed {escape(str(metrics['seed']))}"] if "seed" in metrics else []
    facts += [f"{escape(duration(total))} in all"] if total is not None else []
    lead = f"<p><strong>{escape(', '.join(measured))}</strong> with RoIAlign, trained from random weights.</p>"
    return f'<h1>{escape(title)}</h1>\n<p class="muted">{" · ".join(facts)}</p>\n{lead if measured else ""}'


def duration(seconds: float) -> str:
    """75.4 is "1 min 15 s", 7.26 is "7.3 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _ap_table(metrics: dict) -> str:
    kinds, pool = [kind for kind in KINDS if kind in metrics], metrics.get("roi_pool", {})
    if not kinds:
        return ""
    rows = []
    for kind in kinds:
        for column in COLUMNS:
            align, pooled = metrics[kind].get(column), pool.get(kind, {}).get(column)
            cells = [f"{kind} {column}", points(align)]
            cells += [points(pooled), difference(align, pooled)] if pool else []
            rows.append(_row(cells, "sum" if column == "AP" else ""))
    heads = ["", "RoIAlign"] + (["RoIPool", "difference"] if pool else [])
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    note = "In points, 0 to 100. AP is the mean over IoU (for keypoints OKS) .50:.05:.95, AP50 that at .50."
    return (
        f'<h2>Average precision</h2>\n<div class="wide"><table><caption>{note}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: list[str], style: str = "") -> str:
    mark = f' class="{style}"' if style else ""
    return f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n"


def _reading(metrics: dict) -> str:
    """What the numbers say and what they cannot say."""
    texts = []
    mask, pool = metrics.get("mask", {}), metrics.get("roi_pool", {}).get("mask", {})
    if all(min(arm.get(column, -1) for column in COLUMNS) >= 0 for arm in (mask, pool)):
        gaps = [difference(mask[column], pool[column]) for column in COLUMNS]
        texts += [COMPARED.format(*gaps) + " " + _verdict(mask, pool), IN_THE_PAPER]
    run = f"one run (seed {metrics['seed']})" if "seed" in metrics else "one run"
    texts.append(CAVEAT.format(run=run))
    return "<h2>How to read this</h2>\n" + "\n".join(f"<p>{escape(text)}</p>" for text in texts)


COMPARED = (
    "Two models saw the same images in the same order, from the same initial weights; only the RoI "
    "layer differs. RoIPool rounds every RoI, and every bin in it, to whole cells of the feature map; "
    "RoIAlign samples where the bins really are. RoIAlign minus RoIPool is {0} points of mask AP here, "
    "{1} at IoU 0.50 and {2} at IoU 0.75."
)
IN_THE_PAPER = (
    "In the paper (Table 2c: ResNet-50-C4 on COCO, stride 16) it is 30.3 against 26.9: +3.4 points of "
    "mask AP, +2.4 at IoU 0.50 and +5.1 at IoU 0.75. Another network, other data: compare the "
    "direction, not the size."
)
CAVEAT = (
    "What this is not: the images are drawn shapes, not photographs, the model is tiny, and this is "
    "{run}. Another seed moves every number, and a difference of a point or two between the columns may "
    "be chance. None of these numbers can be set beside those of the paper."
)


def _verdict(mask: dict, pool: dict) -> str:
    loose, strict = mask["AP50"] - pool["AP50"], mask["AP75"] - pool["AP75"]
    if mask["AP"] <= pool["AP"]:
        return "RoIAlign is not ahead in this run: suspect the seed and the short training before the idea."
    if strict > loose:
        return "The gap is wider where a match must fit better, as it should be if alignment is the reason."
    return "It is not wider where a match must fit better: this run does not show that alignment is why."


def _figure(heading: str, caption: str, figure: Figure) -> str:
    source, (width, height) = _picture(figure)
    alt = escape(f"{heading}: {caption}" if caption else heading, quote=True)
    return (
        f'<h2>{escape(heading)}</h2>\n<figure><div class="wide">'
        f'<img src="{source}" width="{width}" height="{height}" alt="{alt}"></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _picture(figure: Figure) -> tuple[str, tuple[int, int]]:
    """The figure as a data URI, PNG or JPEG by which is smaller, and its size in pixels.

    Sharp enough for a screen with two pixels to the point, at 1500 pixels across.
    """
    png = figure_png(figure, dpi=1500 / figure.get_figwidth())
    with Image.open(io.BytesIO(png)) as picture:
        buffer = io.BytesIO()
        # not optimize=True: pillow then fails on noisy pictures ("broken data stream")
        picture.convert("RGB").save(buffer, format="JPEG", quality=85, subsampling=0)
        size = picture.size
    kind, data = min((("png", png), ("jpeg", buffer.getvalue())), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", size


def _facts(metrics: dict) -> str:
    """Seconds per part, versions."""
    parts = []
    seconds = metrics.get("seconds", {})
    if seconds:
        named = {SECONDS.get(key, key.replace("_", " ")): value for key, value in seconds.items() if key != "total"}
        rows = [_row([name, f"{value:.1f}"]) for name, value in named.items()]
        if "total" in seconds:
            rows.append(_row(["total", f"{seconds['total']:.1f}"], "sum"))
        head = '<thead><tr><th scope="col"></th><th scope="col">seconds</th></tr></thead>'
        parts.append(f'<h2>Time</h2>\n<div class="wide"><table>{head}<tbody>\n{"".join(rows)}</tbody></table></div>')
    if metrics.get("versions"):
        rows = [_row([str(name), str(version)]) for name, version in metrics["versions"].items()]
        parts.append(f'<h2>Versions</h2>\n<div class="wide"><table><tbody>\n{"".join(rows)}</tbody></table></div>')
    return "\n".join(parts)
